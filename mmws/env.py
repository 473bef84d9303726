"""Report of an installation, for bug reports: ``python -m mmws.env``. It needs torch alone.

Lists the versions of the packages, which of mmcv's operators can be used, what this torch lacks, and the environment
variables that mmws reads.
"""

from __future__ import annotations

import os
import platform
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
VARIABLES = 'MMWS_CHECKPOINTS', 'MMWS_CPP', 'MMWS_DATA', 'MMWS_SHA256'
FEATURES = {'cache of standardized weights': torch_compat.DETECTS_WRITES,
            "ws=dict(weight='wn')": 'wn' in torch_compat.NORMALIZE,
            'export to ONNX': torch_compat.DYNAMIC is not None}


def describe_environment() -> dict[str, str]:
    """Return the report, by name.

    Example:
        >>> describe_environment()['mmws'] == __version__
        True
    """
    return {
        'mmws': __version__,
        'Python': f'{platform.python_version()}, {platform.platform()}',
        'torch': f'{torch.__version__}, {torch.get_num_threads()} threads, {_gpus()}',
        **{name: ', '.join(filter(None, map(_version, distributions))) or 'not installed'
           for name, distributions in DISTRIBUTIONS.items()},
        "mmcv's compiled operators": _operators(),
        **{feature: 'yes' if available else f'not with torch {torch.__version__}'
           for feature, available in FEATURES.items()},
        **{name: os.environ.get(name, 'not set') for name in VARIABLES}}


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
    for name, value in describe_environment().items():
        print(f'{name}: {value}')


if __name__ == '__main__':
    main()
