import json
import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmws import WSError
from mmws.experiments.landscape import MULTIPLES, _ProbeHook, probe
from mmws.experiments.short_run import load_training_config, short_run
from tests.helpers.commands import REPOSITORY, run_tool, tool_error
from tests.helpers.models import HEADS, SEGMENTATION, small

DETECTION = REPOSITORY / 'configs' / 'demo' / 'mask_rcnn_r18_gnws_digits.py'


class Quadratic(BaseModel):
    """L(x) = x A x / 2, with an unused and a frozen parameter, which must not count."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix
        self.x = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        self.unused, self.frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, inputs, mode):
        return {'loss': 0.5 * self.x @ self.matrix @ self.x * self.frozen.item()}


def test_the_measures_follow_their_definitions():
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))
    model, rate = Quadratic(matrix), 0.1
    x = model.x.detach().clone()
    found = probe(model, {'inputs': torch.zeros(1)}, rate)
    gradient = matrix @ x
    points = [x - multiple * rate * gradient for multiple in MULTIPLES]
    loss, losses = 0.5 * x @ matrix @ x, [0.5 * point @ matrix @ point for point in points]
    assert found['loss'] == pytest.approx(float(loss))
    assert found['losses'] == pytest.approx([float(value) for value in losses])
    assert found['gradient_norm'] == pytest.approx(float(gradient.norm()))
    assert found['gradient_changes'] == pytest.approx(
        [float((multiple * rate * matrix @ gradient).norm()) for multiple in MULTIPLES])
    assert found['beta'] == pytest.approx(float((matrix @ gradient).norm() / gradient.norm()))
    assert found['lipschitz'] == pytest.approx(max(
        float(abs(value - loss)) / (multiple * rate * float(gradient.norm()))
        for value, multiple in zip(losses, MULTIPLES)))
    assert torch.equal(model.x, x)
    assert model.x.grad is None


def test_a_gradient_of_zero_is_refused():
    with pytest.raises(WSError, match=r'the gradient of the loss \(0\) has the length 0; .* lower its learning rate'):
        probe(Quadratic(torch.zeros(3, 3, dtype=torch.float64)), {'inputs': torch.zeros(1)}, 0.1)


class Witness(_ProbeHook):
    """Record the losses of a training, and its weights, buffers and random generators at the end."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.measurements.append(outputs['loss'].item())

    def after_train(self, runner):
        self.state = {name: value.clone() for name, value in runner.model.state_dict().items()}
        self.generators = torch.get_rng_state(), random.getstate(), tuple(map(str, np.random.get_state()))


@pytest.mark.parametrize('options', [
    {'model.type': 'MaskRCNN'}, {'model.ws': {'weight': 'spectral', 'norm': 'EstBN'}}], ids=['BN', 'EstBN, spectral'])
def test_the_measurement_does_not_change_a_bit_of_the_training(options, digits, tmp_path):
    smaller = {'base_channels': 8, 'stem_channels': 8}
    config = load_training_config(str(DETECTION), {
        **options, 'model.backbone': smaller, 'model.neck.in_channels': [8, 16, 32, 64],
        'train_dataloader': {'num_workers': 0, 'persistent_workers': False, 'dataset': {'data_root': f'{digits}/'}}})
    measured, plain = Witness(1), Witness(10 ** 9)
    plain.before_train_iter = lambda *_, **__: None
    for witness in (measured, plain):
        short_run(config, witness, 3, tmp_path, [])
    probes = [entry for entry in measured.measurements if isinstance(entry, dict)]
    assert [entry['step'] for entry in probes] == [0, 1, 2]
    assert [entry for entry in measured.measurements if isinstance(entry, float)] == plain.measurements
    assert probes[0]['loss'] == pytest.approx(plain.measurements[0])  # the same batch as in the step
    assert all(torch.equal(value, measured.state[name]) for name, value in plain.state.items())
    assert torch.equal(measured.generators[0], plain.generators[0])
    assert measured.generators[1:] == plain.generators[1:]


def test_the_tool_compares_two_networks(digits, tmp_path, capsys):
    run_tool('landscape.py', str(SEGMENTATION), '--against', 'model.ws.weight=plain', '--steps', '2', '--every', '1',
             '--out', str(tmp_path), '--cfg-options', *small(HEADS, digits))
    result = json.loads((tmp_path / 'landscape.json').read_text())
    assert list(result['measured']) == ['deeplabv3_r18_gnws_digits', 'model.ws.weight=plain']
    first, second = result['measured'].values()
    assert [line['step'] for line in first] == [line['step'] for line in second] == [0, 1]
    assert first[0]['beta'] != second[0]['beta']
    assert (tmp_path / 'landscape.png').read_bytes().startswith(b'\x89PNG')
    assert 'effective smoothness' in capsys.readouterr().out


@pytest.mark.parametrize(('arguments', 'message'), [
    (['nope.py'], 'config nope.py not found'),
    (['--steps', '5', '--every', '6'], '--every: expected 1 to 5, the number of steps, got 6'),
    (['--steps', '0'], '--steps: expected at least 1, got 0'),
])
def test_a_mistake_of_the_user_is_one_line(arguments, message, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = [] if arguments[0] == 'nope.py' else [str(SEGMENTATION)]
    assert message in tool_error('landscape.py', *config, *arguments, '--cfg-options', *small(HEADS, digits))
