"""Report of an installation, for bug reports: ``python -m mmws.env``. It needs torch alone.

Lists the versions of the packages, which of mmcv's operators can be used, what this torch lacks, and the environment
variables that mmws reads.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch

from mmws.errors import FOREIGN_ERRORS, format_exception
from mmws.openmmlab.toolkits import TOOLKITS
from mmws.ops import torch_compat
from mmws.version import __version__

__all__ = ['describe_environment', 'main']

DISTRIBUTIONS = {'mmengine': ('onedl-mmengine', 'mmengine'), 'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite'),
                 **{name: toolkit.distributions for name, toolkit in TOOLKITS.items()},
                 **{name: (name, ) for name in ('torchvision', 'timm', 'safetensors', 'numpy', 'onnx', 'onnxruntime')}}
VARIABLES = 'MMWS_CHECKPOINTS', 'MMWS_DATA', 'MMWS_SHA256'
FEATURES = {'cache of standardized weights': torch_compat.DETECTS_WRITES,
            "ws=dict(weight='wn')": 'wn' in torch_compat.NORMALIZE,
            'export to ONNX': torch_compat.DYNAMIC is not None}


def describe_environment() -> dict[str, str]:
    """Return the report, by name.

    Example:
        >>> describe_environment()['mmws'] == __version__
        True
    """
    return dict(_lines())


def _lines() -> Iterator[tuple[str, str]]:
    yield 'mmws', __version__
    yield 'Python', f'{platform.python_version()}, {platform.platform()}'
    yield 'torch', f'{torch.__version__}, {torch.get_num_threads()} threads, {_gpus()}'
    for name, distributions in DISTRIBUTIONS.items():
        yield name, ', '.join(filter(None, map(_version, distributions))) or 'not installed'
    yield "mmcv's compiled operators", _operators()
    for feature, available in FEATURES.items():
        yield feature, 'yes' if available else f'not with torch {torch.__version__}'
    for name in VARIABLES:
        yield name, os.environ.get(name, 'not set')


def _gpus() -> str:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f'CUDA {torch.version.cuda}: {", ".join(names)}' if names else 'no GPU'


def _version(distribution: str) -> str:
    try:
        return f'{distribution} {version(distribution)}'
    except PackageNotFoundError:
        return ''


def _operators() -> str:
    try:
        import_module('mmcv._ext')
    except FOREIGN_ERRORS as error:
        return f'no: {format_exception(error)}'
    return 'yes'


def main() -> None:
    """Print the report."""
    for name, value in _lines():
        print(f'{name}: {value}')


if __name__ == '__main__':
    main()
