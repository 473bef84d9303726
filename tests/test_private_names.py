"""Private names of torch and mmengine are in one module each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache

import pytest

from tests.helpers.commands import REPOSITORY, tracked_files

COMPAT = ('mmws/ops/torch_compat.py', 'mmws/openmmlab/mmengine_compat.py')
OTHERS = ('torch', 'mm')  # torch, mmengine, mmcv, and the toolkits
FACE_OF_MODULE = {'_parameters', '_buffers', '_modules', '_forward_hooks', '_forward_pre_hooks',
                  '_load_state_dict_pre_hooks'}
SOURCES = [name for name in tracked_files()
           if name.startswith(('mmws/', 'tools/')) and name.endswith('.py') and (REPOSITORY / name).is_file()]


def is_other(module: str) -> bool:
    return module.startswith(OTHERS) and not module.startswith('mmws')


def is_private(name: str) -> bool:
    return name.startswith('_') and not name.startswith('__')


def root(node: ast.expr) -> str:
    """Return the first name of ``a.b().c``; 'super' for ``super().c``."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ''


@lru_cache(maxsize=None)
def own_names() -> frozenset[str]:
    """Return the private names that mmws itself defines."""
    names = set()
    for node in (node for name in SOURCES for node in ast.walk(ast.parse((REPOSITORY / name).read_text()))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and root(node) == 'self':
            names.add(node.attr)
    return frozenset(names)


def private_names(source: str) -> Iterator[str]:
    """Yield the private names of torch and mmengine in a source, but for those that a subclass has by ``self``."""
    tree = ast.parse(source)
    modules = {}  # by the name that an import binds
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, 'module', None) or node.names[0].name
            modules.update({(name.asname or name.name).partition('.')[0]: module for name in node.names})
            names = [*module.split('.'), *(name.name for name in node.names)]
            yield from filter(is_private, names if is_other(module) else ())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and root(node) not in ('self', 'cls', 'super'):
            unknown = node.attr not in own_names() | FACE_OF_MODULE
            if is_other(modules[root(node)]) if root(node) in modules else unknown:
                yield node.attr


@pytest.mark.parametrize('name', SOURCES)
def test_private_names_are_in_the_compat_modules_alone(name):
    found = list(private_names((REPOSITORY / name).read_text()))
    assert bool(found) == (name in COMPAT), found


@pytest.mark.parametrize(('source', 'found'), [
    ('import torch\ntorch._C._is_tracing()', {'_is_tracing', '_C'}),
    ('from torch.utils._pytree import tree_leaves', {'_pytree'}),
    ('from torch.nn.modules.conv import _ConvNd', {'_ConvNd'}),
    ('from torch import nn\nnn.modules.batchnorm._BatchNorm', {'_BatchNorm'}),
    ('tensor._lazy_clone()', {'_lazy_clone'}),
    ('self._conv_forward(x); super()._conv_forward(x)', set()),
    ('module._parameters', set()),
    ('from mmws.ops import _private', set()),
])
def test_the_check_finds_private_names(source, found):
    assert set(private_names(source)) == found
