"""Fuzz options and checkpoints for ten minutes. A recorded seed reproduces its input."""

import os
import random
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests.helpers import fuzz

pytestmark = pytest.mark.filterwarnings('ignore')
SECONDS = float(os.environ.get('FUZZ_SECONDS', 300))  # per test
BATCH = 200
random_seed = random.SystemRandom().randrange  # new in each run: conftest.py seeds `random`


@pytest.mark.parametrize(('target', 'attempt', 'share'), [
    ('a torch network', fuzz.try_options, 0.5), ('a ResNet of mmdet', fuzz.try_config, 0.5)])
def test_options(target, attempt, share, record_property):
    outcomes, first, end = Counter(), random_seed(10**9), time.monotonic() + SECONDS * share
    batches = 0
    while time.monotonic() < end:
        @seed(first + batches)
        @settings(deadline=None, database=None, max_examples=BATCH, suppress_health_check=list(HealthCheck))
        @given(fuzz.options())
        def batch(options):
            if time.monotonic() < end:
                outcomes[attempt(options)] += 1

        batch()
        batches += 1
    record_property(f'random ws= options on {target}: it converts and runs, or mmws refuses and does not change it',
                    f'{sum(outcomes.values())} tries: {fuzz.format_counts(outcomes)}; '
                    f'hypothesis seeds {first} to {first + batches - 1}, no other exception')
    assert outcomes['accepted'] > 0
    assert outcomes['refused'] > 0


def test_checkpoints(record_property, tmp_path, monkeypatch):
    for name in ('here', 'files'):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    intact, first, end = fuzz.checkpoints(), random_seed(10**9), time.monotonic() + SECONDS
    outcomes, number = Counter(), first
    while time.monotonic() < end:
        try:
            outcomes[fuzz.try_checkpoint(tmp_path / 'files', intact, number)] += 1
        except Exception as error:
            raise AssertionError(f'seed {number}: {error!r}') from error
        number += 1
    record_property('damaged checkpoints: mmws converts them correctly, or refuses and writes nothing; it executes '
                    f'nothing; at most {fuzz.MEMORY >> 20} MiB and {fuzz.SECONDS} s each',
                    f'{sum(outcomes.values())} tries: {fuzz.format_counts(outcomes)}; seeds {first} to {number - 1}')
    assert outcomes['accepted'] > 0
    assert outcomes['refused'] > 0
