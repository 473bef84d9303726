"""Publish a trained model: mmdet's publishing script, and a model card."""

from __future__ import annotations

import re
import runpy
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from mmws.cli.config import silence
from mmws.cli.toolkit_script import toolkit_script_path
from mmws.conversion.layer_types import is_norm
from mmws.errors import WSError
from mmws.files import read_json
from mmws.layers.conv import WeightStandardized
from mmws.openmmlab.safe_globals import allow_log_history
from mmws.version import __version__

__all__ = ['model_card', 'publish_model']

TIMEOUT = 60.0  # seconds: the script renames the file in a process that it does not wait for
GIT_HASH = r'\+?([0-9a-f]{40}|unknown|None)$'  # mmengine adds the one of the current folder to its version


def publish_model(checkpoint: str | Path, out: Path) -> Path:
    """Run mmdet's ``publish_model.py``, which removes the optimizer state and adds the hash to the file name.

    The scripts of mmseg and mmpretrain use other hashes and keep more. With torch >= 2.6 the script cannot read
    mmengine's checkpoints without mmws, see :mod:`mmws.openmmlab.safe_globals`.

    Returns:
        The file, ``<out without .pth>-<8 digits of its SHA-256>.pth``.

    Raises:
        WSError: if mmdet is not installed, its script wrote no file, or the checkpoint has no ``state_dict``.
    """
    script = toolkit_script_path(Config({'default_scope': 'mmdet'}), 'model_converters/publish_model.py')
    allow_log_history()
    with TemporaryDirectory(dir=out.parent, prefix='.') as folder:
        inner = Path(folder) / out.name
        try:
            with silence():  # the script logs a path in the temporary folder
                runpy.run_path(str(script))['process_checkpoint'](str(checkpoint), str(inner))
        except RuntimeError as error:  # torch's error on a full disk
            raise WSError(f'{out} could not be written; is the disk full? {error}') from None
        deadline = time.monotonic() + TIMEOUT
        while inner.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        written = next(inner.parent.glob(f'{out.stem}-????????.pth'), None)
        if written is None or inner.exists():
            raise WSError(f'{script} wrote no {out.stem}-<hash>.pth')
        if 'state_dict' not in torch.load(written, weights_only=True):
            raise WSError(f'{checkpoint} has no state_dict, which {script.name} needs; '
                          'convert it with tools/convert_checkpoint.py first')
        return written.replace(out.parent / written.name)


def model_card(config: Config, model: nn.Module, meta: dict[str, Any], work_dir: Path) -> str:
    """Return a model card in Markdown: data, results, norms, Weight Standardization, training and versions.

    Args:
        config: of the training.
        model: the network.
        meta: of the checkpoint.
        work_dir: the folder of ``summary.json``, if ``tools/summarize.py`` wrote one.
    """
    convs = [module for module in model.modules() if isinstance(module, WeightStandardized)]
    norms = sorted({type(module).__name__ for module in model.modules() if is_norm(module)})
    versions = {key[:-len('_version')]: re.sub(GIT_HASH, '', str(value)) for key, value in meta.items()
                if key.endswith('_version')}
    versions.update({'torch': torch.__version__, 'mmws': __version__})
    dataset = config.get('train_dataloader', {}).get('dataset', {})
    summary = work_dir / 'summary.json'
    results = (', '.join(f'{name} {value}' for name, value in read_json(summary).items()) if summary.is_file() else
               f'not measured: {work_dir.name} has no summary.json; run tools/test.py and tools/summarize.py')
    facts = {
        'config': Path(config.filename).name,
        'data': f'{dataset.get("type", "?")} {dataset.get("data_root", "")}'.strip(),
        'results': results,
        'norm': ', '.join(norms),
        'Weight Standardization': f'{len(convs)} convolutions; (w - mean) / (std + eps), the unbiased std, eps '
                                  f'{", ".join(sorted({f"{conv.eps:g}" for conv in convs})) or "none"}',
        'trained to': ', '.join(f'{key} {meta[key]}' for key in ('epoch', 'iter') if key in meta),
        'versions': ', '.join(f'{key} {value}' for key, value in versions.items()),
    }
    lines = [f'| {name} | {value} |' for name, value in facts.items()]
    return '\n'.join([f'# {Path(config.filename).stem}', '', '| | |', '|---|---|', *lines, ''])
