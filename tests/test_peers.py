"""The page of ``make test-peers`` has the counts of its run, and the run finds its sources."""

import json
import re

import pytest

from tests.helpers.commands import REPOSITORY
from tests.peers import run

NUMBERS = ('No', 'One', 'Two', 'Three', 'Four', 'Five', 'Six')


def test_the_page_has_the_counts_of_the_run():
    counts = json.loads(run.COUNTS.read_text())
    page = (REPOSITORY / 'docs' / 'peers.md').read_text()
    rows = re.findall(r'\| (\d+) \| (\d+) \| (\d+) \|$', page, re.M)
    assert [[int(count) for count in row] for row in rows] == [counts[name] for name in run.SUITES]
    assert f'{NUMBERS[counts["only with WS"]]} tests fail only with WS' in page
    in_both = sum(tests - passed for tests, passed, _ in (counts[name] for name in run.SUITES))
    assert f'{NUMBERS[in_both]} tests fail in both cases' in page


@pytest.mark.parametrize('suite', [name for name, source in run.SUITES.items() if source])
def test_the_lock_has_the_source_of_a_suite(suite):
    stack, name, _ = run.SUITES[suite]
    assert re.match(rf'{name}==\S+ \\\n +--hash=sha256:', run.pin(stack, name))
