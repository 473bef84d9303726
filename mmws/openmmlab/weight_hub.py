"""Published GN+WS weights: ``init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://jhu/resnet50_gn_ws')``.

mmengine knows the names and one mirror. This module adds a local folder, the authors' host, a check of the hash and a
reader that executes no code from the file.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader, get_external_models

from mmws.errors import WSError, near_matches

__all__ = ['AUTHORS_FILES', 'GN_WS_WEIGHTS', 'check_name', 'load_from_jhu']

PREFIX = 'open-mmlab://jhu/'
FOLDER_VARIABLE = 'MMWS_CHECKPOINTS'
HASH_VARIABLE = 'MMWS_SHA256'
HOST = 'http://cs.jhu.edu/~syqiao/WeightStandardization/'
AUTHORS_FILES = {'resnet50': 'R-50-GN-WS.pth.tar', 'resnet101': 'R-101-GN-WS.pth.tar',
                 'resnext50_32x4d': 'X-50-GN-WS.pth.tar', 'resnext101_32x4d': 'X-101-GN-WS.pth.tar'}
"""The authors' files, by architecture (README of joe-siyuan-qiao/pytorch-classification)."""

GN_WS_WEIGHTS = {network: f'{PREFIX}{network}_gn_ws' for network in AUTHORS_FILES}
"""Names of the authors' ImageNet weights with GroupNorm and Weight Standardization, by architecture: v1, the stride in
the 3x3 convolution (style='pytorch'), RGB input with torchvision's mean and std."""


def check_name(checkpoint: str) -> str:
    """Return ``checkpoint``.

    Raises:
        WSError: if it has the form of the names in :data:`GN_WS_WEIGHTS`, but is none of them.
    """
    if re.fullmatch(r'(open-mmlab://jhu/|jhu://)\w+_gn_ws', checkpoint) and checkpoint not in GN_WS_WEIGHTS.values():
        raise WSError(f'unknown weights {checkpoint}: {near_matches(checkpoint, GN_WS_WEIGHTS.values())}')
    return checkpoint


@CheckpointLoader.register_scheme(prefixes=rf'{PREFIX}\w+_gn_ws$')  # type: ignore[untyped-decorator]
def load_from_jhu(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load the authors' weights from the first source that has them, under the toolkit's names.

    Sources: the folder ``MMWS_CHECKPOINTS``, the mirror that mmengine knows, the authors' host (downloads go to torch's
    cache). The SHA-256 of a file must match ``<file>.sha256``, ``-<hash>`` in its name or ``MMWS_SHA256``, the first
    that there is; a download by plain HTTP without any of them warns. The reader executes no code from the file, and
    converts the authors' own files.

    Args:
        filename: one of :data:`GN_WS_WEIGHTS`.
        map_location: device of the tensors, or None for the CPU.

    Raises:
        WSError: if the name is unknown, a file has another hash or network, or no source has the file.
    """
    network = check_name(filename)[len(PREFIX):-len('_gn_ws')]
    try:
        path = _find(network) if is_main_process() else None
    finally:
        barrier()  # the other processes wait for the download
    path = path or _find(network)
    from mmws.checkpoint import convert_checkpoint  # here, because it needs safetensors, an optional dependency
    converted = convert_checkpoint(path)
    about = converted.meta['mmws']
    if about['network'] != network:
        raise WSError(f'{path}: expected weights for {filename}, got weights of {about["network"]}')
    print_log(f'mmws: {filename} from {path} ({about["format"]}, sha256 {about["sha256"]})', 'current')
    return {'meta': converted.meta,
            'state_dict': {key: tensor.to(map_location) for key, tensor in converted.state_dict.items()}}


def _find(network: str) -> Path:
    """Return the file from the first source that has it; download it if necessary."""
    folder = os.environ.get(FOLDER_VARIABLE, '')
    tried = [f'the folder {folder}' if folder else f'no folder, because {FOLDER_VARIABLE} is not set']
    for source in _sources(network, folder):
        try:
            return _download(source) if '://' in source else _check_hash(Path(source))
        except (OSError, RuntimeError) as error:  # unknown host, missing file, wrong hash
            tried.append(f'{source} ({error})')
    raise WSError(f'weights {GN_WS_WEIGHTS[network]} not found; tried {"; ".join(tried)}. Get '
                  f'{AUTHORS_FILES[network]} or {network}_gn_ws-<hash>.pth by other means, put it into a folder and '
                  f'set {FOLDER_VARIABLE} to it; or make a start from BatchNorm weights, with tools/transplant.py')


def _sources(network: str, folder: str) -> Iterator[str]:
    name = f'{network}_gn_ws'
    patterns = (f'{name}.*', f'{name}-*', AUTHORS_FILES[network]) if folder else ()
    files = sorted(path for pattern in patterns for path in Path(folder).expanduser().glob(pattern))
    yield from (str(path) for path in files if path.suffix in ('.pth', '.safetensors', '.tar'))
    mirrors = get_external_models()
    yield from [mirrors[f'jhu/{name}']] if f'jhu/{name}' in mirrors else []
    yield f'{HOST}{AUTHORS_FILES[network]}'


def _download(url: str) -> Path:
    """Download into torch's cache, as mmengine does, unless the file is there."""
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        print_log(f'mmws: downloading {url} to {path}', 'current')
        torch.hub.download_url_to_file(url, str(path), _hash_in(path))
    return _check_hash(path, url)


def _check_hash(path: Path, url: str = '') -> Path:
    """Refuse a file whose hash differs from the known one; warn if it came by plain HTTP and none is known."""
    from mmws.checkpoint.reader import sha256_of
    expected, found = _known_hash(path), sha256_of(path)
    if not found.startswith(expected):
        raise WSError(f'{path}: expected sha256 {expected}, got {found}; delete the file and download it again')
    if not expected and url.startswith('http:'):
        print_log(f'mmws: {path} came from {url} by plain HTTP, and its hash is not known: others on the network '
                  f'could have changed it. If you know that its sha256, {found}, is right, set {HASH_VARIABLE} to it '
                  f'or write it into {path.name}.sha256 beside the file', 'current', logging.WARNING)
    return path


def _known_hash(path: Path) -> str:
    """Return the hash in ``<file>.sha256``, else in the file's name, else in the environment; '' without any."""
    beside = path.with_name(f'{path.name}.sha256')
    if not beside.is_file() and (_hash_in(path) or HASH_VARIABLE not in os.environ):
        return _hash_in(path)
    where, text = (beside, beside.read_text()) if beside.is_file() else (HASH_VARIABLE, os.environ[HASH_VARIABLE])
    digits = text.strip()[:64].lower()
    if not re.fullmatch('[0-9a-f]{64}', digits):
        raise WSError(f'{where}: expected a sha256 of 64 hexadecimal digits, got {text.strip()[:80]!r}')
    return digits


def _hash_in(path: Path) -> str:
    return next(iter(re.findall(r'-([0-9a-f]{8,64})\.', path.name)), '')
