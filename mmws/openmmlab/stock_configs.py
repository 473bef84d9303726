"""Inheritance of configs where mmengine's own ways end.

:func:`stock_config` finds a toolkit's config. :func:`read_config` lets a new-style config inherit one of ours, with
``with read_base(): from mmws.configs.<name> import *``: mmengine looks for the base in the package's folder and takes
new-style files alone, while the toolkits' base files, which our configs inherit, are old-style. So the package carries
one line a config, written by setup.py, that calls :func:`read_config`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmws.errors import WSError, near_matches

__all__ = ['read_config', 'stock_config', 'stock_configs']


def stock_config(name: str) -> str:
    """Return the path of a config that a toolkit's package carries, for ``_base_``.

    mmengine's own ``_base_ = 'mmseg::...'`` asks for a distribution named mmsegmentation, which OneDL's is not, and its
    pattern admits no ``+``, as in mmdet's ``gn+ws``. A config cannot import, hence
    ``_base_ = __import__('mmws').stock_config('mmseg::...')``.

    Args:
        name: ``<package>::<path below its configs>``.

    Raises:
        WSError: if the package is not installed or has no such config.

    Example:
        >>> Path(stock_config('mmdet::gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py')).is_file()
        True
    """
    package, _, inner = name.partition('::')
    folder = _configs_of(package)
    if not (folder / inner).is_file():
        there = [str(path.relative_to(folder)) for path in folder.rglob('*.py')]
        raise WSError(f'{folder} has no {inner}: {near_matches(inner, there)}')
    return str(folder / inner)


def stock_configs(package: str) -> list[str]:
    """Return the names of all the configs that a toolkit's package carries, as :func:`stock_config` takes them.

    Raises:
        WSError: if the package is not installed.

    Example:
        >>> 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py' in stock_configs('mmseg')
        True
    """
    folder = _configs_of(package)
    inside = (path.relative_to(folder) for path in sorted(folder.rglob('*.py')))
    return [f'{package}::{path}' for path in inside if '_base_' not in path.parts]


def _configs_of(package: str) -> Path:
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise WSError(f'{package} is not installed; expected <package>::<path below its configs>, as in '
                      'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    return Path(spec.origin).parent / '.mim' / 'configs'


def read_config(name: str) -> dict[str, Any]:
    """Return the variables of one of our configs, with all it inherits merged in.

    Args:
        name: path below ``configs``, such as ``'mask_rcnn_r50_gnws.py'``.

    Example:
        >>> read_config('mask_rcnn_r50_gnws.py')['model']['type']
        'mmws.MaskRCNN'
    """
    from mmengine.config import Config  # here, for the rest needs no mmengine
    variables: dict[str, Any] = Config.fromfile(Path(__file__).parents[1] / '.mim' / 'configs' / name).to_dict()
    return variables
