import copy
import pickle

import pytest
import torch
from torch import nn

from mmws import ConvTransposeWS1d, ConvTransposeWS2d, ConvTransposeWS3d
from tests.helpers.versions import ONE_GRAPH

PAIRS = [(ConvTransposeWS1d, nn.ConvTranspose1d, 1), (ConvTransposeWS2d, nn.ConvTranspose2d, 2),
         (ConvTransposeWS3d, nn.ConvTranspose3d, 3)]


@pytest.mark.parametrize('arguments', [
    {}, {'stride': 2, 'padding': 1, 'output_padding': 1}, {'groups': 2, 'bias': False}], ids=str)
@pytest.mark.parametrize(('standardized', 'plain', 'dims'), PAIRS)
def test_each_output_channel_has_a_filter_of_mean_0_and_std_1(standardized, plain, dims, arguments):
    conv = standardized(4, 6, 3, dtype=torch.float64, **arguments)
    reference = plain(4, 6, 3, dtype=torch.float64, **arguments)
    reference.load_state_dict(conv.state_dict())
    groups = conv.groups
    with torch.no_grad():
        for group in range(groups):
            inputs = slice(group * 4 // groups, (group + 1) * 4 // groups)
            for output in range(6 // groups):
                taps = conv.weight[inputs, output]
                reference.weight[inputs, output] = (taps - taps.mean()) / (taps.std() + 1e-5)
    x = torch.randn(2, 4, *[5] * dims, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(conv(x), reference(x), rtol=1e-12, atol=1e-12)
    size = [9] * dims if 'stride' in arguments else None  # one less than with output_padding
    torch.testing.assert_close(conv(x, output_size=size), reference(x, output_size=size), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('layer', [ConvTransposeWS1d, ConvTransposeWS2d, ConvTransposeWS3d])
def test_fan_in_is_counted_along_the_inputs(layer):
    layer(2, 1, 1)
    with pytest.raises(ValueError, match='fan-in of at least 2, got 1'):
        layer(2, 8, 1, groups=2)


def test_copies_pickles_and_compiled_graphs_compute_the_same():
    conv, x = ConvTransposeWS2d(4, 6, 2, eps=1e-2), torch.randn(1, 4, 8, 8)
    for copied in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)),
                   torch.compile(conv, fullgraph=ONE_GRAPH, backend='aot_eager')):
        torch.testing.assert_close(copied(x), conv(x))
