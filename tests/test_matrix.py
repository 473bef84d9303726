"""``make matrix`` on a small project: the outcome of its tests, resumption, failures, and the documents."""

import importlib
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import compatibility
import describe_env
import matrix
import pytest
import torch

from tests.helpers.commands import REPOSITORY

TESTS = '''
import pytest
def test_passes(): pass
@pytest.mark.parametrize('value', [1, 2])
def test_some(value): assert value == 1
@pytest.mark.skip(reason='needs torch >= 2.6 | or newer')
def test_new(): pass
@pytest.fixture
def broken(): raise OSError
def test_broken(broken): pass
'''
OUTCOME = {
    'passed': 2, 'failed': 1, 'errors': 2, 'skipped': 2,
    'skips': {"could not import 'nowhere': No module named 'nowhere'": 1, 'needs torch >= 2.6 | or newer': 1},
    'failures': ['tests/test_unreadable.py::tests.test_unreadable', 'tests/test_x.py::test_some[2]',
                 'tests/test_x.py::test_broken']}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Return a repository whose tests all pass, with two environments, which are this one."""
    (tmp_path / 'tests').mkdir()
    (tmp_path / 'tests' / '__init__.py').touch()
    (tmp_path / 'tests' / 'test_x.py').write_text('def test_passes(): pass\n')
    (tmp_path / 'pyproject.toml').write_text('[tool.pytest.ini_options]\ntestpaths = ["tests"]\n')
    subprocess.run(['git', 'init', '-q', tmp_path], check=True)
    monkeypatch.setattr(matrix, 'environment', lambda root, stack: sys.executable)
    monkeypatch.setattr(matrix, 'IN_PARALLEL', ('-n', '1', '--dist', 'loadfile'))  # one process starts faster
    two = {name: compatibility.ENVIRONMENTS[name] for name in ('guide', 'oldest')}
    monkeypatch.setattr(matrix, 'ENVIRONMENTS', two)
    return tmp_path


@pytest.fixture
def run(project, monkeypatch, capfd):
    """Return a function that runs the matrix for the named environments and returns its status and output."""
    def run_matrix(*names: str):
        monkeypatch.setattr(sys, 'argv', ['matrix.py', *names])
        status = ''
        try:
            matrix.main(project)
        except SystemExit as error:
            status = error.code
        return status, capfd.readouterr().out
    return run_matrix


def test_outcomes_reasons_and_names_are_those_of_pytest(project, capsys, monkeypatch):
    monkeypatch.setenv('PYTEST_ADDOPTS', '-k passes')  # of the user; it would leave out tests
    (project / 'tests' / 'test_x.py').write_text(TESTS)
    (project / 'tests' / 'test_missing.py').write_text("import pytest\npytest.importorskip('nowhere')\n")
    (project / 'tests' / 'test_unreadable.py').write_text('1 / 0\n')
    assert matrix.run_tests(sys.executable, project, project / 'x.log') == OUTCOME
    assert '[matrix] x: 100%, 2 failed\n' in capsys.readouterr().out
    assert 'ZeroDivisionError' in (project / 'x.log').read_text()


def test_each_environment_has_a_result_and_a_row(run, project):
    status, output = run()
    assert status == ''
    for name in matrix.ENVIRONMENTS:
        assert f'[matrix] {name}: 1 passed, 0 failed, 0 errors, 0 skipped\n' in output
        assert json.loads((project / 'docs' / 'compatibility' / f'{name}.json').read_text())['passed'] == 1
    page = (project / 'docs' / 'compatibility.md').read_text()
    assert page.count(f'| {platform.python_version()} |') == 2


def test_a_result_is_kept_until_the_sources_change_or_it_is_named(run, project):
    run()
    (project / 'README.md').write_text('It is not a source.\n')
    kept = [f'[matrix] {name}: 1 passed, 0 failed, 0 errors, 0 skipped; kept' for name in ('guide', 'oldest')]
    assert all(line in run()[1] for line in kept)
    assert 'kept' not in run('guide')[1]
    (project / 'tests' / 'test_y.py').write_text('def test_also_passes(): pass\n')
    assert 'kept' not in run('guide')[1]
    assert '[matrix] guide: 2 passed, 0 failed, 0 errors, 0 skipped; kept' in run()[1]


def test_other_pins_of_an_environment_make_its_result_stale(project):
    assert matrix.fingerprint(project, 'guide') != matrix.fingerprint(project, 'oldest')


def test_a_red_environment_gives_a_status_and_is_in_the_documents(run, project):
    (project / 'tests' / 'test_x.py').write_text(TESTS)
    for outcome in (run(), run()):  # the second time, the results are kept
        assert outcome[0].startswith('[matrix] not green: guide, oldest; see docs/compatibility.md')
    page = (project / 'docs' / 'compatibility.md').read_text()
    assert '- `tests/test_x.py::test_some[2]`\n' in page
    assert '| 1 | needs torch >= 2.6 \\| or newer |\n' in page
    assert '| 2 | 2 | 1 (20.0%) |' in page


def test_a_test_that_crashes_has_failed(run, project):
    (project / 'tests' / 'test_x.py').write_text('import os\ndef test_ends(): os._exit(7)\n')
    status, output = run('guide')
    assert status.startswith('[matrix] not green: guide')
    assert '[matrix] guide: 0 passed, 0 failed, 1 errors, 0 skipped' in output
    assert '- `tests/test_x.py::test_ends`\n' in (project / 'docs' / 'compatibility.md').read_text()


def test_a_crash_of_pytest_keeps_the_other_results_and_the_old_one(run, project):
    run('guide', 'oldest')
    old = (project / 'docs' / 'compatibility' / 'guide.json').read_text()
    (project / 'tests' / 'test_x.py').write_text('import os\ndef test_ends(): os.kill(os.getppid(), 9)\n')
    status, output = run('guide')
    assert status.startswith('[matrix] not green: guide')
    assert 'pytest ended with exit status' in output
    assert (project / 'docs' / 'compatibility' / 'guide.json').read_text() == old


def test_a_failed_setup_goes_on_with_the_next_environment(run, project, monkeypatch):
    def environment(root, stack):
        if stack == 'guide':
            sys.exit('Python 3.8 not found')
        return sys.executable
    monkeypatch.setattr(matrix, 'environment', environment)
    status, output = run('guide', 'oldest')
    assert 'Python 3.8 not found\n[matrix] guide: no result\n' in output
    assert '[matrix] oldest: 1 passed' in output
    assert status.startswith('[matrix] not green: guide;')


def test_an_interruption_is_one_line_and_keeps_the_finished_environments(run, project):
    run('guide')
    old = (project / 'docs' / 'compatibility' / 'guide.json').read_text()
    (project / 'tests' / 'test_x.py').write_text(
        'import os\n'
        'def test_x():\n'
        '    matrix = open(f"/proc/{os.getppid()}/stat").read().split()[3]  # the parent of pytest\n'
        '    os.kill(int(matrix), 2)\n')
    code = ('import signal, sys; sys.path.append(sys.argv.pop(1)); import matrix; from pathlib import Path\n'
            'signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it\n'
            'matrix.environment = lambda root, stack: sys.executable\n'
            'matrix.main(Path.cwd())')
    result = subprocess.run([sys.executable, '-c', code, REPOSITORY / 'requirements', 'oldest'], cwd=project,
                            capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert result.stderr.strip().startswith('[matrix] interrupted; run the same command again')
    assert 'Traceback' not in result.stderr
    assert (project / 'docs' / 'compatibility' / 'guide.json').read_text() == old
    assert not (project / 'docs' / 'compatibility' / 'oldest.json').exists()


def test_an_unknown_environment_is_one_line(run):
    assert run('guides')[0] == 'error: unknown environment guides; choose from guide, oldest'


def test_versions_are_those_of_the_environment():
    described = json.loads(subprocess.run([sys.executable, describe_env.__file__], capture_output=True, text=True,
                                          check=True).stdout)
    assert described['python'] == platform.python_version()
    assert described['versions']['torch'].partition('+')[0] == f'torch {torch.__version__.partition("+")[0]}'
    for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
        distribution, number = described['versions'][name].split()
        assert version(distribution) == number == importlib.import_module(name).__version__
    assert described['mmcv_operators']


def test_a_row_says_what_is_missing_and_which_family(tmp_path):
    result = {'python': '3.8.18', 'mmcv_operators': False, **OUTCOME,
              'versions': {**dict.fromkeys(describe_env.DISTRIBUTIONS), 'torch': 'torch 2.0.1', 'numpy': 'numpy 1.24.4',
                           'mmcv': 'onedl-mmcv 2.3.6'}}
    assert compatibility.table({'guide': result}).splitlines()[-1] == (
        "| guide: what the toolkits' guides lead to | 3.8.18 | 2.0.1 | none | OneDL 2.3.6, no operators | none | none "
        '| none | 1.24.4 | 2 | 3 | 2 (28.6%) |')


def test_the_page_matches_the_results():
    results = compatibility.read_results(REPOSITORY)
    assert (REPOSITORY / 'docs' / 'compatibility.md').read_text() == compatibility.page(results)
