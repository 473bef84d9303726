import copy

import pytest
import torch
from torch import nn

from mmws.layers.batch_channel_norm import BatchChannelNorm, EstimatedBatchChannelNorm, EstimatedBatchNorm
from tests.helpers.pairs import pairs

SHAPES = [(3, 6, 5), (2, 6, 5, 4), (1, 6, 2, 3, 3)]


def random_norm(kind, channels=6, groups=3):
    norm = kind(channels, num_groups=groups).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def normalize_groups(norm, x):
    """Normalize each group, with one affine map per group."""
    parts = x.split(norm.num_features // norm.num_groups, dim=1)
    normalized = []
    for part, weight, bias in pairs(parts, norm.weight, norm.bias):
        dims = tuple(range(1, part.dim()))
        mean, variance = part.mean(dims, keepdim=True), part.var(dims, keepdim=True, correction=0)
        normalized.append(weight * (part - mean) / (variance + norm.eps).sqrt() + bias)
    return torch.cat(normalized, 1)


def normalize_channels(bn, x, mean, variance):
    view = (1, -1, *[1] * (x.dim() - 2))
    normalized = (x - mean.view(view)) / (variance.view(view) + bn.eps).sqrt()
    return normalized * bn.weight.view(view) + bn.bias.view(view)


@pytest.mark.parametrize('shape', SHAPES)
def test_batch_channel_norm_matches_the_definition(shape):
    norm, x = random_norm(BatchChannelNorm), torch.randn(shape, dtype=torch.float64) * 2 + 3
    dims = (0, *range(2, len(shape)))
    mean, variance = x.mean(dims), x.var(dims, correction=0)
    torch.testing.assert_close(norm(x), normalize_groups(norm, normalize_channels(norm.bn, x, mean, variance)))
    torch.testing.assert_close(norm.bn.running_mean, 0.1 * mean)
    norm.eval()
    running = norm.bn.running_mean, norm.bn.running_var
    torch.testing.assert_close(norm(x), normalize_groups(norm, normalize_channels(norm.bn, x, *running)))


@pytest.mark.parametrize('shape', [*SHAPES, (1, 6, 1, 1)])
def test_estimates_are_updated_before_they_normalize(shape):
    norm, x = random_norm(EstimatedBatchChannelNorm), torch.randn(shape, dtype=torch.float64) * 2 + 3
    dims = (0, *range(2, len(shape)))
    variance = 0.9 * torch.ones(6) + 0.1 * (x ** 2).mean(dims)  # the old estimate of the mean is 0
    expected = normalize_groups(norm, normalize_channels(norm.bn, x, 0.1 * x.mean(dims), variance))
    torch.testing.assert_close(norm(x), expected)
    assert norm.bn.num_batches_tracked == 1
    torch.testing.assert_close(norm.eval()(x), expected)
    assert norm.bn.num_batches_tracked == 1


@pytest.mark.parametrize(('kind', 'training'), [(BatchChannelNorm, True), (BatchChannelNorm, False),
                                                (EstimatedBatchChannelNorm, False)])
def test_gradients(kind, training):
    norm = random_norm(kind).train(training)
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))


def test_estimates_get_no_gradient_and_a_shared_layer_may_run_twice():
    norm = EstimatedBatchNorm(2)
    x = torch.randn(3, 2, 4, requires_grad=True)
    y = norm(x)
    slope = 1 / (norm.running_var + norm.eps).sqrt()
    norm(x * 7)  # before the first backward pass
    y.sum().backward()
    torch.testing.assert_close(x.grad, slope.detach().view(1, 2, 1).expand_as(x))


def test_a_single_value_per_channel_is_an_error_without_estimates():
    x = torch.randn(1, 6, 1, 1)
    with pytest.raises(ValueError, match='Expected more than 1 value per channel when training'):
        BatchChannelNorm(6, num_groups=2)(x)
    assert EstimatedBatchChannelNorm(6, num_groups=2)(x).isfinite().all()


def test_copies_and_keys():
    norm = random_norm(EstimatedBatchChannelNorm)
    assert list(norm.state_dict()) == ['weight', 'bias', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var',
                                       'bn.num_batches_tracked']
    assert list(copy.deepcopy(norm).state_dict()) == list(random_norm(BatchChannelNorm).state_dict())
