import json

import pytest
from mmengine.config import Config

from mmws.experiments.lr_range import measure_lr_ranges, plot_lr_ranges, usable_range
from mmws.experiments.short_run import load_training_config
from tests.helpers.commands import run_tool, tool_error
from tests.helpers.models import HEADS, SEGMENTATION, small


@pytest.mark.parametrize(('smoothed', 'usable'), [
    ([5.0, 5.0, 4.4, 3.0, 2.0, 2.9, 2.5, 3.1], [3, 7]),
    ([5.0, 4.4, 4.9, 3.0, 2.0], [4, 5]),  # above the limit again at 3
    ([5.0, 3.0, 2.0, 2.1, 2.2], [2, 5]),  # never exceeds the limit
    ([5.0, 5.1, 5.2], None),
    ([5.0, 4.0, 3.0, 9.0, 1.0], [5, 5]),
])
def test_the_usable_range_follows_its_definition(smoothed, usable):
    assert usable_range(range(1, len(smoothed) + 1), smoothed, smoothed) == usable


def test_the_loss_at_the_start_is_a_median():
    assert usable_range(range(20), [0.1, 5.0, 5.0] + [4.8] * 17, [5.0] * 10 + [1.0] * 10) == [10, 19]


def test_the_tool_raises_the_rate_stops_at_divergence_and_writes_the_results(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = small([*HEADS, 'optim_wrapper.paramwise_cfg.bias_lr_mult=2.0', 'optim_wrapper.clip_grad=None'], digits)
    run_tool('lr_range.py', str(SEGMENTATION), '--low', '1e-2', '--high', '1e6', '--steps', '17', '--out', 'out',
             '--cfg-options', *options, '--against', 'model.ws.weight=plain')
    results = json.loads((tmp_path / 'out' / 'lr_range.json').read_text())
    assert list(results) == [SEGMENTATION.stem, 'model.ws.weight=plain']
    result, plain = results.values()
    assert result['losses'] != plain['losses']
    steps = len(result['rates'])
    assert result['rates'] == pytest.approx([10 ** (-2 + index / 2) for index in range(steps)])
    assert 2 < steps < 17
    assert result['diverged'] == result['rates'][-1]
    assert steps - 1 <= len(result['losses']) == len(result['smoothed']) <= steps
    assert result['smoothed'][1] == pytest.approx((0.95 * 0.05 * result['losses'][0] + 0.05 * result['losses'][1])
                                                  / (1 - 0.95 ** 2))
    assert result['usable'] == usable_range(result['rates'], result['losses'], result['smoothed'])
    assert (tmp_path / 'out' / 'lr_range.png').read_bytes().startswith(b'\x89PNG')
    assert not list((tmp_path / 'out').rglob('*.pth'))
    assert 'model.ws.weight=plain' in capsys.readouterr().out


def test_a_config_that_does_not_diverge_is_measured_to_the_end_and_does_not_change(digits, tmp_path):
    options = dict(option.split('=') for option in small(HEADS, digits))
    config = load_training_config(str(SEGMENTATION), {
        key: eval(value) if value[0].isdigit() or value == 'False' else value for key, value in options.items()})
    before = config.pretty_text
    result = measure_lr_ranges({'a': config}, 1e-5, 1e-4, 4, tmp_path)['a']
    assert config.pretty_text == before
    assert (len(result['rates']), result['diverged']) == (4, None)
    plot_lr_ranges({'a': result, 'b': {**result, 'usable': None}}, tmp_path / 'both.png')
    assert (tmp_path / 'both.png').is_file()


@pytest.mark.parametrize(('arguments', 'message'), [
    (['nope.py'], 'config nope.py not found'),
    (['no_rate.py'], 'no_rate.py has no optim_wrapper.optimizer.lr'),
    ([str(SEGMENTATION)], 'needs data/digits/'),
    (['no_data.py', '--low', '1', '--high', '0.1'], 'a low to a higher learning rate in 2 steps or more, got 1 to'),
    (['no_data.py', '--steps', '1'], 'got 0.0001 to 10 in 1'),
])
def test_a_mistake_of_the_user_is_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Config({'model': {'type': 'X'}, 'default_scope': 'mmseg'}).dump('no_rate.py')
    Config({'model': {'type': 'ResNet', 'depth': 18}, 'default_scope': 'mmseg', 'train_dataloader': {},
            'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 1.0}}}).dump('no_data.py')
    assert message in tool_error('lr_range.py', *arguments)
