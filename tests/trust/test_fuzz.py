"""Ten minutes of wrong input made at random; each seed that is noted gives the same input again."""

import os
import random
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests.helpers import fuzz

pytestmark = pytest.mark.filterwarnings('ignore')
SECONDS = float(os.environ.get('FUZZ_SECONDS', 300))  # of each test
BATCH = 200


@pytest.mark.parametrize(('what', 'attempt', 'share'), [
    ('a torch network', fuzz.try_options, 0.5), ('a ResNet of mmdet', fuzz.try_config, 0.5)])
def test_options(what, attempt, share, record_property):
    outcomes, first, end = Counter(), random.randrange(10**9), time.monotonic() + SECONDS * share
    batches = 0
    while time.monotonic() < end:
        @seed(first + batches)
        @settings(deadline=None, database=None, max_examples=BATCH, suppress_health_check=list(HealthCheck))
        @given(fuzz.options())
        def batch(made):
            if time.monotonic() < end:
                outcomes[attempt(made)] += 1

        batch()
        batches += 1
    record_property(f'ws= options at random on {what}: it converts and runs, or is refused and stays as it was',
                    f'{outcomes.total()} tries: {fuzz.told(outcomes)}; '
                    f'hypothesis seeds {first} to {first + batches - 1}, no other exception')
    assert outcomes['accepted'] > 0
    assert outcomes['refused'] > 0


def test_checkpoints(record_property, tmp_path, monkeypatch):
    for name in ('here', 'files'):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    whole, first, end = fuzz.checkpoints(), random.randrange(10**9), time.monotonic() + SECONDS
    outcomes, number = Counter(), first
    while time.monotonic() < end:
        try:
            outcomes[fuzz.try_checkpoint(tmp_path / 'files', whole, number)] += 1
        except Exception as error:
            raise AssertionError(f'seed {number}: {error!r}') from error
        number += 1
    record_property('spoilt checkpoints: converted as they should, or refused with nothing written, nothing executed, '
                    f'under {fuzz.MEMORY >> 20} MiB and {fuzz.SECONDS} s each',
                    f'{outcomes.total()} tries: {fuzz.told(outcomes)}; seeds {first} to {number - 1}')
    assert outcomes['accepted'] > 0
    assert outcomes['refused'] > 0
