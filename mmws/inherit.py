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

__all__ = ['read_config', 'stock_config']


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
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise WSError(f'{name}: {package} is not installed')
    folder = Path(spec.origin).parent / '.mim' / 'configs'
    if not (folder / inner).is_file():
        there = [str(path.relative_to(folder)) for path in folder.rglob('*.py')]
        raise WSError(f'{folder} has no {inner}: {near_matches(inner, there)}')
    return str(folder / inner)


def read_config(name: str) -> dict[str, Any]:
    """Return the variables of one of our configs, with all it inherits merged in.

    Args:
        name: path below ``configs``, such as ``'mask_rcnn_r50_gnws.py'``.

    Example:
        >>> read_config('mask_rcnn_r50_gnws.py')['model']['type']
        'mmws.MaskRCNN'
    """
    from mmengine.config import Config  # here, for the rest needs no mmengine
    variables: dict[str, Any] = Config.fromfile(Path(__file__).parent / '.mim' / 'configs' / name).to_dict()
    return variables
