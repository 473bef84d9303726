"""Kill trainings with SIGKILL; they resume from their last checkpoint."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from mmws.openmmlab.guard_hook import _is_intact, _newest_intact
from mmws.openmmlab.safe_globals import allow_log_history
from tests.helpers.commands import REPOSITORY, free_port
from tests.trust.demo import final_loss, records, start, train, write_config
from tests.trust.record_hook import digest

STEPS, INTERVAL, KILLS, SEEDS, LAST = 200, 5, 20, 4, 40


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp('interruption'), STEPS, INTERVAL)


@pytest.fixture(scope='module')
def seeds(config) -> list[list[dict]]:
    """Return the records of uninterrupted runs, one per seed. Their spread bounds the result of the killed run."""
    for seed in range(SEEDS):
        assert train(config, f'seed_{seed}', '--cfg-options', f'randomness.seed={seed}').wait() == 0
    return [records(config.parent / f'seed_{seed}') for seed in range(SEEDS)]


def kill(process) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def saved(work_dir: Path) -> dict | None:
    """Return the checkpoint's content in the form of a ``RecordHook`` line, or None without a checkpoint."""
    if not (work_dir / 'last_checkpoint').exists():
        return None
    named = (work_dir / 'last_checkpoint').read_text()
    allow_log_history()
    checkpoint = torch.load(named if _is_intact(Path(named)) else _newest_intact(work_dir), weights_only=True)
    return {'start': checkpoint['meta']['iter'], 'weights': digest(dict(checkpoint['state_dict'])),
            'optimizer': digest(checkpoint['optimizer']),
            'schedule': [each['last_step'] for each in checkpoint['param_schedulers']]}


def wait_for_a_step(process, work_dir: Path, done: int) -> None:
    while process.poll() is None and len(records(work_dir)) < done + 2:
        time.sleep(0.02)


def wait_for_a_write(process, work_dir: Path) -> None:
    """Wait for a new checkpoint file; its write may still go on."""
    known = set(work_dir.glob('iter_*.pth'))
    while process.poll() is None and not set(work_dir.glob('iter_*.pth')) - known:
        time.sleep(0.0002)


def test_demo_killed_at_random_points_ends_like_an_uninterrupted_run(config, seeds, record_property):
    chance, work_dir, truncated, compared = random.Random(0), config.parent / 'killed', set(), 0
    for number in range(KILLS):
        before, expected = len(records(work_dir)), saved(work_dir)
        process = train(config, 'killed', '--resume')
        wait_for_a_step(process, work_dir, before)
        if number % 2:
            wait_for_a_write(process, work_dir)
        else:
            time.sleep(chance.uniform(0, 3))
        kill(process)
        truncated |= {(path, path.stat().st_mtime_ns) for path in work_dir.glob('iter_*.pth') if not _is_intact(path)}
        resumed = records(work_dir)[before]
        assert resumed['start'] == (expected or resumed)['start']
        if expected:
            assert {key: resumed[key] for key in expected} == expected
            compared += 1
    assert train(config, 'killed', '--resume').wait() == 0
    lines = records(work_dir)
    steps = [line for line in lines if 'step' in line]
    uninterrupted = {line['step']: line for line in seeds[0] if 'step' in line}
    for line in steps:
        assert line['images'] == uninterrupted[line['step']]['images']
        assert line['rate'] == pytest.approx(uninterrupted[line['step']]['rate'], rel=1e-9)
    assert max(line['step'] for line in steps) == STEPS
    ends = [final_loss(each, LAST) for each in seeds]
    end, spread = final_loss(lines, LAST), max(ends) - min(ends)
    record_property(f'kill -9 of the demo ({STEPS} steps, a checkpoint every {INTERVAL}) at random points', f'{KILLS}')
    record_property('kills that left a truncated checkpoint', f'{len(truncated)}')
    record_property('weights, optimizer, schedule and step after each resume, compared bit for bit with the checkpoint',
                    f'equal in {compared} of {compared}')
    record_property('images and learning rate of each step, compared with an uninterrupted run',
                    f'equal in {len(steps)} of {len(steps)}, {len(steps) - STEPS} of them repeated after a kill')
    record_property(f'mean loss over the last {LAST} steps, compared with {SEEDS} uninterrupted seeds',
                    f'{end:.3f}; uninterrupted {min(ends):.3f} to {max(ends):.3f}')
    assert min(ends) - spread / 2 < end < max(ends) + spread / 2


def test_truncated_newest_checkpoint_is_skipped(config, seeds, record_property):
    work_dir = config.parent / 'seed_1'
    newest, previous = work_dir / f'iter_{STEPS}.pth', work_dir / f'iter_{STEPS - INTERVAL}.pth'
    newest.write_bytes(newest.read_bytes()[:-1000])
    before = len(records(work_dir))
    assert train(config, 'seed_1', '--resume').wait() == 0
    assert records(work_dir)[before]['start'] == STEPS - INTERVAL
    message = f'iter_{STEPS}.pth is truncated or damaged; resuming from {previous}, the newest intact one'
    assert message in (config.parent / 'log').read_text()
    record_property('newest checkpoint truncated by 1,000 bytes', 'the run resumes from the previous one and warns')


def test_run_resumes_after_a_rank_is_killed(config, record_property):
    work_dir = config.parent / 'ranks'

    def launch(port: int, *arguments: str):
        return start(str(REPOSITORY / 'tools' / 'dist_train.sh'), str(config), '2', '--work-dir', 'ranks', *arguments,
                     folder=config.parent, PORT=f'{port}')

    port = free_port()
    process = launch(port)
    while len(records(work_dir)) < 2 + INTERVAL + 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(ranks_of(port)[1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    before, expected = len(records(work_dir)), saved(work_dir)
    assert launch(free_port(), '--resume', '--cfg-options', 'train_cfg.max_iters=30').wait() == 0
    resumed = records(work_dir)[before]
    assert {key: resumed[key] for key in expected} == expected
    assert records(work_dir)[-1]['step'] == 30
    record_property('tools/dist_train.sh with the demo config on 2 processes, rank 1 killed during a step',
                    f'the launcher exits; the run resumes from step {resumed["start"]} with the same weights, and ends')


def ranks_of(port: int) -> dict[int, int]:
    """Return the process id of each rank whose launcher uses ``port``."""
    found = {}
    for path in Path('/proc').glob('[0-9]*/environ'):
        try:
            environment = dict(line.split('=', 1) for line in path.read_text().split('\0') if '=' in line)
        except OSError:
            continue
        if environment.get('MASTER_PORT') == f'{port}' and 'LOCAL_RANK' in environment:
            rank, process = int(environment['LOCAL_RANK']), int(path.parent.name)
            found[rank] = min(process, found.get(rank, process))  # its data workers start later
    return found
