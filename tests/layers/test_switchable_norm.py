import copy
import pickle

import pytest
import torch
from torch import nn

from mmws.layers.switchable_norm import SwitchableNorm
from tests.helpers.pairs import pairs


def random_norm(channels: int) -> SwitchableNorm:
    norm = SwitchableNorm(channels).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def by_definition(norm: SwitchableNorm, x, batch=None):
    """Compute the statistics from the values. The variance of an instance is unbiased, as in the authors' code."""
    space = tuple(range(2, x.dim()))
    positions = x[0, 0].numel()
    unbiased = x.var(space, keepdim=True) if positions > 1 else torch.zeros_like(x)
    surplus = unbiased - x.var(space, keepdim=True, correction=0)  # also in the authors' other variances
    each = ((x.mean(space, keepdim=True), unbiased),
            (x.mean((1, *space), keepdim=True),
             x.var((1, *space), keepdim=True, correction=0) + surplus.mean(1, keepdim=True)),
            batch or (x.mean((0, *space), keepdim=True),
                      x.var((0, *space), keepdim=True, correction=0) + surplus.mean(0, keepdim=True)))
    shape = (1, -1, *[1] * len(space))
    mean = sum(w * m for w, (m, _) in pairs(norm.mean_weight.softmax(0), each))
    variance = sum(w * v for w, (_, v) in pairs(norm.var_weight.softmax(0), each))
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize('shape', [(3, 4, 5), (3, 4, 5, 6), (1, 4, 2, 3, 3), (2, 4, 1, 1)])
def test_training_and_evaluation_match_the_definition(shape):
    norm, x = random_norm(4), torch.randn(shape, dtype=torch.float64) * 3 + 1
    torch.testing.assert_close(norm(x), by_definition(norm, x))
    assert not torch.equal(norm.running_mean, torch.zeros(4))
    view = (1, -1, *[1] * (len(shape) - 2))
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    torch.testing.assert_close(norm(x), by_definition(norm, x, (norm.running_mean.view(view),
                                                               norm.running_var.view(view))))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_moving_averages_keep_nine_tenths():
    norm, x = SwitchableNorm(2), torch.randn(4, 2, 50, 50) * 2 + 5
    norm(x)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var((0, 2, 3)), rtol=1e-3, atol=0)


@pytest.mark.parametrize('training', [True, False])
def test_gradients(training):
    norm = random_norm(3).train(training)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))


def test_a_single_weight_gives_that_norm():
    norm, x = SwitchableNorm(6).eval(), torch.randn(2, 6, 32, 32)
    for index, other in enumerate((nn.InstanceNorm2d(6), nn.GroupNorm(1, 6), nn.BatchNorm2d(6))):
        for weight in (norm.mean_weight, norm.var_weight):
            nn.init.constant_(weight, -50)
            weight.data[index] = 50
        torch.testing.assert_close(norm.train()(x), other(x), rtol=2e-3, atol=1e-3)


def test_copies_and_pickles():
    norm, x = random_norm(3), torch.randn(2, 3, 4, dtype=torch.float64)
    for copied in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(copied(x), norm(x))


def test_half_precision_has_float32_statistics():
    norm, x = SwitchableNorm(4), torch.randn(2, 4, 9, 9).bfloat16() + 30
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x).float(), norm(x.float()), rtol=1e-2, atol=1e-2)
