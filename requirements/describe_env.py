"""Print the versions of the environment that runs this script, as JSON. It needs only Python's standard library."""

import importlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTIONS = {
    'torch': ('torch',),
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
    'numpy': ('numpy',),
}  # by import name: the toolkits come from one of two families of distributions


def describe():
    """Return Python, the distribution and version of each package, and the machine."""
    return {'python': platform.python_version(),
            'versions': {name: installed(distributions) for name, distributions in DISTRIBUTIONS.items()},
            'mmcv_operators': has_operators(),
            'machine': f'{platform.platform()}, {os.cpu_count()} cores'}


def installed(distributions):
    """Return for example 'onedl-mmcv 2.3.6', or None."""
    for name in distributions:
        try:
            return f'{name} {version(name)}'
        except PackageNotFoundError:
            continue
    return None


def has_operators():
    try:
        importlib.import_module('mmcv._ext')
    except ImportError:
        return False
    return True


if __name__ == '__main__':
    print(json.dumps(describe()))
