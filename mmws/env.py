"""Report of an installation, for bug reports: ``python -m mmws.env``. It needs torch alone.

Lists the folder of mmws, the versions of the packages, whether mmcv's operators can be used, the compiler and ninja
(for ``MMWS_CPP=1``), what this torch lacks, and the environment variables that mmws reads.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mmws.errors import FOREIGN_ERRORS, format_exception
from mmws.openmmlab.toolkits import TOOLKITS
from mmws.ops import torch_compat
from mmws.version import __version__

__all__ = ['describe_environment', 'main']

DISTRIBUTIONS = {'mmengine': ('onedl-mmengine', 'mmengine'), 'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite'),
                 **{name: toolkit.distributions for name, toolkit in TOOLKITS.items()},
                 'opencv': ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python'),
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
        'folder of mmws': str(Path(__file__).resolve().parent),
        'Python': f'{platform.python_version()}, {platform.platform()}',
        'torch': f'{torch.__version__}, {torch.get_num_threads()} threads, {_gpus()}',
        **{name: ', '.join(filter(None, map(_version, distributions))) or 'not installed'
           for name, distributions in DISTRIBUTIONS.items()},
        "mmcv's compiled operators": _operators(),
        'C++ compiler': _program(os.environ.get('CXX', 'c++')),  # as torch finds it
        'ninja': _program('ninja'),
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


def _program(name: str) -> str:
    """Return the path of a program and the first line of its version; pip installs ninja beside Python."""
    path = shutil.which(name, path=os.pathsep.join([sysconfig.get_path('scripts'), os.environ.get('PATH', '')]))
    if path is None:
        return f'{name} not found'
    try:
        text = subprocess.run([path, '--version'], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f'{path}: {format_exception(error)}'
    return ', '.join([path, *text.splitlines()[:1]])


def main() -> None:
    """Print the report."""
    for name, value in describe_environment().items():
        print(f'{name}: {value}')


if __name__ == '__main__':
    main()
