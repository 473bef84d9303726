"""torch's own tests of its convolutions: gradients of both orders and in batches, forward mode, strides, pickling."""

import pytest
import torch
from torch.testing._internal.common_nn import NewModuleTest, NNTestCase, get_new_module_tests
from torch.testing._internal.common_utils import freeze_rng_state

CASES = [case for case in get_new_module_tests() if 'Conv' in case.get('module_name', case.get('fullname', ''))]


class Caller(NNTestCase):
    """The test case that torch's cases call, as in its test/test_nn.py."""

    def _forward(self, module, arguments):
        with freeze_rng_state():
            return module(*arguments) if isinstance(arguments, tuple) else module(arguments)

    def _backward(self, module, arguments, output, grad_output, create_graph=False):
        output.backward(grad_output, retain_graph=True, create_graph=create_graph)
        return arguments.grad

    def _get_parameters(self, module):
        return list(module.parameters()), [parameter.grad for parameter in module.parameters()]

    def _zero_grad_parameters(self, module):
        module.zero_grad(set_to_none=False)


def name(case: dict) -> str:
    return case.get('fullname') or '_'.join(filter(None, [case['module_name'], case.get('desc')]))


@pytest.mark.parametrize('case', CASES, ids=name)
def test_convolution(case):
    constructor = case.get('constructor') or getattr(torch.nn, case['module_name'])
    NewModuleTest(**{**case, 'constructor': constructor})(Caller())
