import pytest
import torch
from torch import nn

from mmws.transplant.sampling import at_positions, inputs_of_filters, moments, random_positions


@pytest.mark.parametrize('options', [
    {}, {'stride': 2}, {'padding': 1}, {'padding': 'same'}, {'padding': 'valid'},
    {'padding': 'same', 'kernel_size': (2, 4), 'dilation': (3, 1)}, {'dilation': 2, 'padding': 2}, {'groups': 3},
    {'groups': 6, 'stride': (2, 1)}, {'padding': (2, 1), 'padding_mode': 'reflect'}, {'kernel_size': (1, 5)},
], ids=str)
def test_inputs_of_filters_give_the_output_of_the_convolution(options):
    conv = nn.Conv2d(6, 12, **{'kernel_size': 3, 'bias': False, **options})
    x = torch.randn(4, 6, 11, 13)
    output = conv(x)
    positions = random_positions(output, 80, torch.Generator().manual_seed(0))
    inputs = inputs_of_filters(conv, x, positions, output.shape[-1])
    filters = conv.weight.flatten(1).reshape(conv.groups, -1, inputs.shape[-1])
    found = (inputs @ filters.mT).transpose(0, 1).flatten(1)
    assert positions.shape == (4, 20)
    assert torch.allclose(found, at_positions(output, positions), atol=1e-5)


@pytest.mark.parametrize('shape', [(3, 5), (3, 5, 7), (3, 5, 7, 2), (3, 5, 2, 2, 2)], ids=str)
def test_moments_are_those_of_each_channel(shape):
    x = torch.randn(shape) * 3 + 2
    channels = x.transpose(0, 1).flatten(1)
    found = moments(x)
    assert torch.allclose(found.mean, channels.mean(1), atol=1e-5)
    assert torch.allclose(found.variance, channels.var(1, unbiased=False), atol=1e-4)
    assert at_positions(x, random_positions(x, 6, torch.Generator())).shape == (min(6, channels[0].numel()), 5)


def test_merged_and_pooled_moments_are_those_of_all_values():
    one, other = torch.randn(2, 6, 9), torch.randn(4, 6, 9) * 2 + 3
    merged = moments(one).merged(moments(other))
    expected = moments(torch.cat([one, other]))
    assert torch.allclose(merged.mean, expected.mean, atol=1e-5)
    assert torch.allclose(merged.variance, expected.variance, atol=1e-4)
    pooled = expected.pooled(2)
    groups = torch.cat([one, other]).transpose(0, 1).reshape(2, -1)
    assert torch.allclose(pooled.variance, groups.var(1, unbiased=False), atol=1e-4)
    assert merged.number == 54
    assert pooled.number == 3 * 54
