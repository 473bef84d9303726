"""Lets a new-style config inherit ours: ``with read_base(): from mmws.configs.<name> import *``.

mmengine looks for the base in the package's folder and takes new-style files alone, while the toolkits' base files,
which our configs inherit, are old-style. So the package carries one line a config, written by setup.py, that calls
:func:`read_config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

__all__ = ['read_config']


def read_config(name: str) -> dict[str, Any]:
    """Return the variables of one of our configs, with all it inherits merged in.

    Args:
        name: path below ``configs``, such as ``'mask_rcnn_r50_gnws.py'``.

    Example:
        >>> read_config('mask_rcnn_r50_gnws.py')['model']['type']
        'mmws.MaskRCNN'
    """
    variables: dict[str, Any] = Config.fromfile(Path(__file__).parent / '.mim' / 'configs' / name).to_dict()
    return variables
