"""What tests need of torch and of OpenMMLab. All reasons of skipped tests have one form."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from mmengine.utils import digit_version

from mmws.ops.torch_compat import DETECTS_WRITES, NORMALIZE

ONE_GRAPH = torch.__version__ >= '2.3'  # an older torch.compile breaks the graph inside a standardized convolution


def needs_torch(version: str, feature: str, available: bool | None = None) -> pytest.MarkDecorator:
    """Skip a test in a torch older than ``version``; if ``available`` is given, it alone decides."""
    found = torch.__version__ >= version if available is None else available
    return pytest.mark.skipif(not found, reason=f'{feature} needs torch >= {version}')


def is_older(package: str, version: str) -> bool:
    return bool(digit_version(import_module(package).__version__) < digit_version(version))


def needs_package(package: str, version: str, feature: str) -> pytest.MarkDecorator:
    """Skip a test if a package of OpenMMLab is older than ``version``."""
    return pytest.mark.skipif(is_older(package, version), reason=f'{feature} needs {package} >= {version}')


needs_weight_norm = needs_torch('2.1', "the option weight='wn'", 'wn' in NORMALIZE)
WN = pytest.param('wn', marks=needs_weight_norm)
HALF = pytest.param(torch.float16, marks=needs_torch('2.3', 'a float16 network on CPU'))
needs_cache = needs_torch('2.4', 'the cache of standardized weights', DETECTS_WRITES)


def times(cached: int, calls: int) -> int:
    """Return how often weights are standardized: at each call, in a torch that cannot detect a write to a weight."""
    return cached if DETECTS_WRITES else calls
