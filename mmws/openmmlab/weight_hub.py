"""The authors' ImageNet weights by name: ``init_cfg=dict(type='Pretrained', checkpoint='jhu://resnet50_gn_ws')``."""

from __future__ import annotations

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

__all__ = ['AUTHORS', 'SCHEME', 'load_from_jhu']

SCHEME = 'jhu://'
FOLDER = 'MMWS_CHECKPOINTS'
HOST = 'http://cs.jhu.edu/~syqiao/WeightStandardization/'
AUTHORS = {'resnet50_gn_ws': 'R-50-GN-WS.pth.tar', 'resnet101_gn_ws': 'R-101-GN-WS.pth.tar',
           'resnext50_32x4d_gn_ws': 'X-50-GN-WS.pth.tar', 'resnext101_32x4d_gn_ws': 'X-101-GN-WS.pth.tar'}
"""The names, and the files of the authors (README of joe-siyuan-qiao/pytorch-classification)."""


@CheckpointLoader.register_scheme(prefixes=SCHEME)  # type: ignore[untyped-decorator]
def load_from_jhu(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load the authors' weights, from the first place that has them, under the toolkit's names.

    Places: the folder ``MMWS_CHECKPOINTS``, then the mirror that the installed mmengine knows as
    ``open-mmlab://jhu/...``, then the authors' host. A file whose name ends in ``-<hash>`` has to have that SHA-256,
    and one with a ``<file>.sha256`` beside it that one; the authors publish none. What is downloaded is kept in torch's
    cache. Files are read safely, and the authors' own are converted on the way in.

    Args:
        filename: ``jhu://<name>``, of :data:`AUTHORS`.
        map_location: where to put the tensors, as for ``torch.load``; a device or None.

    Raises:
        WSError: if the name is unknown, a file is not what it should be, or no place has one; then with each place that
            was tried and how to put the file there by hand.
    """
    name = filename.removeprefix(SCHEME)
    if name not in AUTHORS:
        raise WSError(f'there are no weights {filename}: {near_matches(name, AUTHORS)}')
    try:
        path = _find(name) if is_main_process() else None
    finally:
        barrier()  # the others wait for the download
    path = path or _find(name)
    from mmws.checkpoint import convert_checkpoint  # here, for it needs safetensors, which the rest does not
    converted = convert_checkpoint(path)
    about = converted.meta['mmws']
    if about['network'] != name.removesuffix('_gn_ws'):
        raise WSError(f'{path} holds {about["network"]}, where {filename} is asked for')
    print_log(f'mmws: {filename} from {path} ({about["format"]}, sha256 {about["sha256"]})', 'current')
    weights = {key: tensor.to(map_location) for key, tensor in converted.state_dict.items()}
    return {'meta': converted.meta, 'state_dict': weights}


def _find(name: str) -> Path:
    """The file of that name in the first place that has it, downloaded if need be."""
    tried = []
    for place in _places(name):
        try:
            return _fetch(place) if '://' in place else _check_hash(Path(place))
        except (OSError, RuntimeError) as error:  # no such host, no such file, another hash
            tried.append(f'{place} ({error})')
    folder = os.environ.get(FOLDER)
    tried.insert(0, f'the folder {folder}' if folder else f'no folder, for {FOLDER} is not set')
    raise WSError(f'no place has the weights {SCHEME}{name}; tried {"; ".join(tried)}. Get {AUTHORS[name]} or '
                  f'{name}-<hash>.pth by other means, put it into a folder and set {FOLDER} to that folder')


def _places(name: str) -> Iterator[str]:
    folder = os.environ.get(FOLDER)
    if folder:
        files = sorted(path for pattern in (f'{name}.*', f'{name}-*', f'{AUTHORS[name]}') for path in
                       Path(folder).expanduser().glob(pattern) if path.suffix in ('.pth', '.safetensors', '.tar'))
        yield from map(str, files)
    mirror = get_external_models().get(f'jhu/{name}')
    if mirror:
        yield mirror
    yield f'{HOST}{AUTHORS[name]}'


def _fetch(url: str) -> Path:
    """Download into torch's cache, where mmengine keeps its own, unless it is there."""
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        print_log(f'mmws: downloading {url} to {path}', 'current')
        torch.hub.download_url_to_file(url, str(path), _hash_in(path))
    return _check_hash(path)


def _check_hash(path: Path) -> Path:
    """A file that is not what its name or the file beside it says is refused, also one half copied."""
    from mmws.checkpoint.reader import sha256_of
    beside = path.with_name(f'{path.name}.sha256')
    expected = beside.read_text().strip()[:64] if beside.is_file() else _hash_in(path)
    found = sha256_of(path)
    if not found.startswith(expected):
        raise WSError(f'{path} has the sha256 {found}, where {expected} is expected; delete it and get it anew')
    return path


def _hash_in(path: Path) -> str:
    found = re.search(r'-([0-9a-f]{8,64})\.', path.name)
    return found[1] if found else ''
