"""A short, deterministic part of the fuzzing in ``make trust``."""

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.helpers import fuzz

pytestmark = pytest.mark.filterwarnings('ignore')
QUICK = settings(derandomize=True, suppress_health_check=list(HealthCheck))  # few: with free draws all may be refused


@pytest.mark.parametrize(('attempt', 'examples'), [(fuzz.try_options, 25), (fuzz.try_config, 6)])
def test_random_options_convert_or_are_refused(attempt, examples):
    outcomes = Counter()

    @settings(QUICK, max_examples=examples)
    @given(fuzz.options())
    def run(made):
        outcomes[attempt(made)] += 1

    run()
    assert outcomes['accepted'] > 0
    assert outcomes['refused'] > 0


def test_damaged_checkpoints_are_converted_correctly_or_refused(tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    (tmp_path / 'files').mkdir()
    intact = fuzz.checkpoints()
    outcomes = Counter(fuzz.try_checkpoint(tmp_path / 'files', intact, seed) for seed in range(60))
    assert outcomes['refused'] > 20
    assert outcomes['accepted'] > 2


def test_intact_checkpoints_are_accepted(tmp_path):
    for name, content in fuzz.checkpoints().items():
        (tmp_path / name).write_bytes(content)
        assert fuzz.convert_checkpoint(tmp_path / name).state_dict


def test_the_check_finds_a_wrong_result(tmp_path):
    torch.save({'backbone.gn1.weight': torch.ones(4)}, tmp_path / 'x.pth')
    converted = fuzz.convert_checkpoint(tmp_path / 'x.pth')
    converted.state_dict['backbone.gn1.weight'] = torch.zeros(3)
    fuzz.write_checkpoint(tmp_path / 'out.pth', converted.state_dict, converted.meta)
    with pytest.raises(AssertionError):
        fuzz.check_converted(tmp_path / 'x.pth', tmp_path / 'out.pth', converted.state_dict)
