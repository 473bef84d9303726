"""Look up known vulnerabilities of the pinned versions with pip-audit, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def audit(tmp_path_factory) -> Path:
    """Return the command of the pinned pip-audit."""
    venv = tmp_path_factory.mktemp('audit') / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    installed = subprocess.run([venv / 'bin' / 'pip', 'install', '-q', '--require-hashes', '-r',
                                REPOSITORY / 'requirements' / 'audit.lock'], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f'cannot install pip-audit: {installed.stderr.strip()[-300:]}')
    return venv / 'bin' / 'pip-audit'


@pytest.mark.parametrize('lock', ['audit', 'common', 'onedl', 'openmmlab', 'torch'])
def test_known_vulnerabilities_are_in_security_md(lock, audit, record_property):
    result = subprocess.run([audit, '--disable-pip', '--require-hashes', '--progress-spinner', 'off', '-f', 'json',
                             '-r', REPOSITORY / 'requirements' / f'{lock}.lock'], capture_output=True, text=True)
    if not result.stdout:
        pytest.skip(f'pip-audit cannot reach its service: {result.stderr.strip()[-300:]}')
    pinned = json.loads(result.stdout)['dependencies']
    unknown = [pin['name'] for pin in pinned if 'skip_reason' in pin]
    found = {f'{pin["name"]} {pin["version"]}: {flaw["id"]}': {flaw['id'], *flaw['aliases']}
             for pin in pinned for flaw in pin.get('vulns', ())}
    security = (REPOSITORY / 'SECURITY.md').read_text()
    new = [finding for finding, names in found.items() if not any(name in security for name in names)]
    record_property(f'known vulnerabilities of {lock}.lock, all listed in SECURITY.md',
                    f'{len(pinned) - len(unknown)} of {len(pinned)} pins found on PyPI; {len(found)} vulnerabilities, '
                    f'{len(new)} not listed')
    assert pinned
    assert not new
    if unknown:  # pip-audit counts these as clean
        pytest.skip(f'PyPI has no record of {len(unknown)} of {len(pinned)} pins, for example {unknown[0]}')
