"""Inheritance of configs in the cases that mmengine does not support.

A new-style config inherits one of mmws by ``with read_base(): from mmws.configs.<name> import *``. mmengine requires a
new-style file there, and the configs of mmws are old-style: setup.py writes files that call :func:`read_mmws_config`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmws.errors import WSError, near_matches
from mmws.openmmlab.toolkits import install_advice

__all__ = ['read_mmws_config', 'stock_config', 'stock_configs']


def stock_config(name: str) -> str:
    """Return the path of a config in a toolkit's package or in mmws, for ``_base_`` or for an inferencer.

    mmengine's own ``_base_ = 'mmseg::...'`` requires a distribution named mmsegmentation (OneDL's has another name),
    refuses ``+`` in a path, as in mmdet's ``gn+ws``, and knows the packages of OpenMMLab only. mmengine evaluates
    ``_base_`` without the imports of the file, so write ``_base_ = __import__('mmws').stock_config('mmseg::...')``.

    Args:
        name: ``<package>::<path below its configs>``, such as ``mmws::mask_rcnn_r50_gnws.py``.

    Raises:
        WSError: if the package is not installed or the config does not exist.

    Example:
        >>> Path(stock_config('mmdet::gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py')).is_file()
        True
    """
    package, _, path = name.partition('::')
    folder = _config_folder(package)
    if not (folder / path).is_file():
        known = [str(file.relative_to(folder)) for file in folder.rglob('*.py')]
        raise WSError(f'{folder} has no {path}: {near_matches(path, known)}')
    return str(folder / path)


def stock_configs(package: str) -> list[str]:
    """Return the names of all configs in a toolkit's package, in the form that :func:`stock_config` takes.

    Raises:
        WSError: if the package is not installed.

    Example:
        >>> 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py' in stock_configs('mmseg')
        True
    """
    folder = _config_folder(package)
    paths = (file.relative_to(folder) for file in sorted(folder.rglob('*.py')))
    return [f'{package}::{path}' for path in paths if '_base_' not in path.parts]


def _config_folder(package: str) -> Path:
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise WSError(f'{package} is not installed; {install_advice(package)}. Expected '
                      '<package>::<path below its configs>, as in mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    return Path(spec.origin).parent / '.mim' / 'configs'


def read_mmws_config(name: str) -> dict[str, Any]:
    """Return the variables of a config of mmws, merged with those of its bases; ``name`` is its path below ``configs``.

    Example:
        >>> read_mmws_config('mask_rcnn_r50_gnws.py')['model']['type']
        'mmws.MaskRCNN'
    """
    from mmengine.config import Config  # here, because `import mmws` needs torch alone
    variables: dict[str, Any] = Config.fromfile(Path(__file__).parents[1] / '.mim' / 'configs' / name).to_dict()
    return variables
