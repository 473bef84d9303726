"""What goes out with a model: the toolkit's publishing script, and a model card."""

from __future__ import annotations

import runpy
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from mmws.cli.run_toolkit import toolkit_tool
from mmws.conversion.norm_types import is_norm
from mmws.errors import WSError
from mmws.files import read_json
from mmws.layers.conv import WeightStandardized
from mmws.openmmlab.safe_globals import allow_log_history
from mmws.version import __version__

__all__ = ['model_card', 'publish_model']

PATIENCE = 60.0  # seconds: the toolkit's script renames the file in a process that it does not wait for


def publish_model(checkpoint: str | Path, out: Path) -> Path:
    """Run mmdet's ``publish_model.py``: the optimizer's state goes, and the hash comes into the name.

    mmseg's and mmpretrain's take other hashes and keep more. Under torch >= 2.6 the script alone cannot read what
    mmengine writes, see :mod:`mmws.openmmlab.safe_globals`.

    Returns:
        The file, ``<out without .pth>-<8 digits of its SHA-256>.pth``.

    Raises:
        WSError: if mmdet is not installed, its script wrote nothing, or the checkpoint has no ``state_dict``.
    """
    script = toolkit_tool(Config({'default_scope': 'mmdet'}), 'model_converters/publish_model.py')
    allow_log_history()
    with TemporaryDirectory(dir=out.parent, prefix='.') as folder:
        inner = Path(folder) / out.name
        try:
            runpy.run_path(str(script))['process_checkpoint'](str(checkpoint), str(inner))
        except RuntimeError as error:  # what torch makes of a full disk
            raise WSError(f'{out} could not be written; is the disk full? {error}') from None
        deadline = time.monotonic() + PATIENCE
        while inner.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        written = next(inner.parent.glob(f'{out.stem}-????????.pth'), None)
        if written is None or inner.exists():
            raise WSError(f'{script} wrote no {out.stem}-<hash>.pth')
        if 'state_dict' not in torch.load(written, weights_only=True):
            raise WSError(f'{checkpoint} has no state_dict, which is what {script.name} publishes; '
                          'tools/convert_checkpoint.py writes its weights under one')
        return written.replace(out.parent / written.name)


def model_card(config: Config, model: nn.Module, meta: dict[str, Any], work_dir: Path) -> str:
    """Return what there is to say of a trained model, in Markdown.

    Args:
        config: what it was trained with.
        model: the network.
        meta: of its checkpoint.
        work_dir: where ``tools/summarize.py`` left ``summary.json`` with the results, if it did.
    """
    convs = [module for module in model.modules() if isinstance(module, WeightStandardized)]
    norms = sorted({type(module).__name__ for module in model.modules() if is_norm(module)})
    versions = {key.removesuffix('_version'): meta[key] for key in meta if key.endswith('_version')}
    versions |= {'torch': torch.__version__, 'mmws': __version__}
    dataset = config.get('train_dataloader', {}).get('dataset', {})
    facts = {
        'config': Path(config.filename).name,
        'data': f'{dataset.get("type", "?")} {dataset.get("data_root", "")}'.strip(),
        'results': _results(work_dir),
        'norm': ', '.join(norms),
        'Weight Standardization': f'{len(convs)} convolutions; (w - mean) / (std + eps), the unbiased std, eps '
                                  f'{", ".join(sorted({f"{conv.eps:g}" for conv in convs})) or "none"}',
        'trained to': ', '.join(f'{key} {meta[key]}' for key in ('epoch', 'iter') if key in meta),
        'versions': ', '.join(f'{key} {value}' for key, value in versions.items()),
    }
    lines = [f'| {name} | {value} |' for name, value in facts.items()]
    return '\n'.join([f'# {Path(config.filename).stem}', '', '| | |', '|---|---|', *lines, ''])


def _results(work_dir: Path) -> str:
    path = work_dir / 'summary.json'
    if not path.is_file():
        return f'not measured: there is no summary.json in {work_dir.name}; run tools/test.py and tools/summarize.py'
    return ', '.join(f'{name} {value}' for name, value in read_json(path).items())
