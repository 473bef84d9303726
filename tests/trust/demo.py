"""Run a short form of the demo in a process of its own, with the ``RecordHook``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mmws.data.digits import make_digits
from tests.helpers.commands import REPOSITORY

HERE = Path(__file__).parent


def write_config(folder: Path, steps: int, interval: int) -> Path:
    """Write a config of the detection demo, with a checkpoint every ``interval`` steps and no validation."""
    make_digits(folder / 'digits', train=40, val=2, size=128)
    config = folder / 'config.py'
    config.write_text(
        f"_base_ = '{REPOSITORY}/configs/demo/mask_rcnn_r18_gnws_digits.py'\n"
        "custom_imports = dict(imports=['record_hook'])\n"
        f"train_dataloader = dict(dataset=dict(data_root='{folder}/digits/'))\n"
        f"val_dataloader = dict(dataset=dict(data_root='{folder}/digits/'))\n"
        f"val_evaluator = dict(ann_file='{folder}/digits/annotations/val.json')\n"
        f'train_cfg = dict(max_iters={steps}, val_interval=10 ** 6)\n'
        "default_hooks = dict(record=dict(type='RecordHook'), logger=dict(interval=10),\n"
        f'                     checkpoint=dict(interval={interval}))\n'
        "param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),\n"
        f"                   dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end={steps}, eta_min=2e-4)]\n")
    return config


def start(*command: str, folder: Path, **variables: str) -> subprocess.Popen:
    """Start a command in a new session, with its output in ``folder/log``."""
    environment = {
        **os.environ, **variables, 'OMP_NUM_THREADS': '1',
        'PYTHONPATH': f'{HERE}{os.pathsep}{os.environ.get("PYTHONPATH", "")}',  # for `import record_hook`
        'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    with (folder / 'log').open('a') as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)


def train(config: Path, work_dir: str, *arguments: str) -> subprocess.Popen:
    return start(sys.executable, str(REPOSITORY / 'tools' / 'train.py'), str(config), '--work-dir', work_dir,
                 *arguments, folder=config.parent)


def records(work_dir: Path) -> list[dict]:
    """Read the lines of ``RecordHook``; skip a line that a kill cut off."""
    path = work_dir / 'record.jsonl'
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('}')]


def final_loss(lines: list[dict], last: int) -> float:
    """Return the mean loss over the ``last`` steps; for a repeated step, the last repetition counts."""
    by_step = {line['step']: line['loss'] for line in lines if 'step' in line}
    return sum(by_step[step] for step in sorted(by_step)[-last:]) / last
