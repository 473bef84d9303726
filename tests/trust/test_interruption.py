"""Kill -9, many times; the training goes on where its last checkpoint stood."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from demo import loss_at_the_end, start, statements, train, write_config
from witness import digest

from mmws.openmmlab.guard_hook import _newest_whole, _whole
from mmws.openmmlab.safe_globals import allow_log_history
from tests.helpers.commands import REPOSITORY, free_port

STEPS, INTERVAL, KILLS, SEEDS, LAST = 200, 5, 20, 4, 40


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp('interruption'), STEPS, INTERVAL)


@pytest.fixture(scope='module')
def seeds(config) -> list[list[dict]]:
    """What uninterrupted runs say, of one seed and of others, which show the spread."""
    for seed in range(SEEDS):
        assert train(config, f'seed_{seed}', '--cfg-options', f'randomness.seed={seed}').wait() == 0
    return [statements(config.parent / f'seed_{seed}') for seed in range(SEEDS)]


def kill(process) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def saved(work_dir: Path) -> dict | None:
    """What the checkpoint holds that a resumed run is to start from."""
    if not (work_dir / 'last_checkpoint').exists():
        return None
    named = (work_dir / 'last_checkpoint').read_text()
    allow_log_history()
    checkpoint = torch.load(named if _whole(Path(named)) else _newest_whole(work_dir), weights_only=True)
    return {'start': checkpoint['meta']['iter'], 'weights': digest(dict(checkpoint['state_dict'])),
            'optimizer': digest(checkpoint['optimizer']),
            'schedule': [each['last_step'] for each in checkpoint['param_schedulers']]}


def wait_for_a_step(process, work_dir: Path, done: int) -> None:
    while process.poll() is None and len(statements(work_dir)) < done + 2:
        time.sleep(0.02)


def wait_for_a_write(process, work_dir: Path) -> None:
    """Until a new checkpoint is there, which at this moment is being written or has just been."""
    known = set(work_dir.glob('iter_*.pth'))
    while process.poll() is None and not set(work_dir.glob('iter_*.pth')) - known:
        time.sleep(0.0002)


def test_killed_at_random_points_the_demo_ends_as_if_it_had_not_been(config, seeds, record_property):
    chance, work_dir, cut_off, from_saved = random.Random(0), config.parent / 'killed', set(), 0
    for number in range(KILLS):
        before, expected = len(statements(work_dir)), saved(work_dir)
        process = train(config, 'killed', '--resume')
        wait_for_a_step(process, work_dir, before)
        if number % 2:
            wait_for_a_write(process, work_dir)
        else:
            time.sleep(chance.uniform(0, 3))
        kill(process)
        cut_off |= {(path, path.stat().st_mtime_ns) for path in work_dir.glob('iter_*.pth') if not _whole(path)}
        began = statements(work_dir)[before]
        assert began['start'] == (expected or began)['start']
        if expected:
            assert {key: began[key] for key in expected} == expected
            from_saved += 1
    assert train(config, 'killed', '--resume').wait() == 0
    lines = statements(work_dir)
    steps = [line for line in lines if 'step' in line]
    undisturbed = {line['step']: line for line in seeds[0] if 'step' in line}
    for line in steps:
        assert line['images'] == undisturbed[line['step']]['images']
        assert line['rate'] == pytest.approx(undisturbed[line['step']]['rate'], rel=1e-9)
    assert max(line['step'] for line in steps) == STEPS
    ends = [loss_at_the_end(each, LAST) for each in seeds]
    end, spread = loss_at_the_end(lines, LAST), max(ends) - min(ends)
    record_property(f'kill -9 of the demo ({STEPS} steps, a checkpoint every {INTERVAL}) at random points', f'{KILLS}')
    record_property('of which left a checkpoint cut off', f'{len(cut_off)}')
    record_property('weights, optimizer, schedule and step right after the resume, against the checkpoint, bit for bit',
                    f'equal in {from_saved} of {from_saved}')
    record_property('images and learning rate of each step, against an uninterrupted run', f'equal in {len(steps)} of '
                    f'{len(steps)}, {len(steps) - STEPS} of them made again after a kill')
    record_property(f'loss over the last {LAST} steps, against {SEEDS} seeds that nobody disturbed',
                    f'{end:.3f} against {min(ends):.3f} to {max(ends):.3f}')
    assert min(ends) - spread / 2 < end < max(ends) + spread / 2


def test_a_truncated_newest_checkpoint_is_passed_over(config, seeds, record_property):
    work_dir = config.parent / 'seed_1'
    newest, previous = work_dir / f'iter_{STEPS}.pth', work_dir / f'iter_{STEPS - INTERVAL}.pth'
    newest.write_bytes(newest.read_bytes()[:-1000])
    before = len(statements(work_dir))
    assert train(config, 'seed_1', '--resume').wait() == 0
    assert statements(work_dir)[before]['start'] == STEPS - INTERVAL
    said = f'iter_{STEPS}.pth is cut off or damaged: resuming from {previous}, the newest that is whole'
    assert said in (config.parent / 'log').read_text()
    record_property('the newest checkpoint cut off by 1,000 bytes', 'the one before it is taken, and a line says so')


def test_a_rank_killed_in_mid_step_leaves_a_run_that_resumes(config, record_property):
    work_dir = config.parent / 'ranks'

    def launch(port: int, *arguments: str):
        return start(str(REPOSITORY / 'tools' / 'dist_train.sh'), str(config), '2', '--work-dir', 'ranks', *arguments,
                     folder=config.parent, PORT=f'{port}')

    port = free_port()
    process = launch(port)
    while len(statements(work_dir)) < 2 + INTERVAL + 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(ranks_of(port)[1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    before, expected = len(statements(work_dir)), saved(work_dir)
    assert launch(free_port(), '--resume', '--cfg-options', 'train_cfg.max_iters=30').wait() == 0
    began = statements(work_dir)[before]
    assert {key: began[key] for key in expected} == expected
    assert statements(work_dir)[-1]['step'] == 30
    record_property('tools/dist_train.sh with the demo config on 2 processes, rank 1 killed in mid-step',
                    f'the launcher ends; resumed from step {began["start"]}, weights bit for bit, to the end')


def ranks_of(port: int) -> dict[int, int]:
    """The processes of the ranks that meet at a port."""
    found = {}
    for path in Path('/proc').glob('[0-9]*/environ'):
        try:
            environment = dict(line.split('=', 1) for line in path.read_text().split('\0') if '=' in line)
        except OSError:
            continue
        if environment.get('MASTER_PORT') == f'{port}' and 'LOCAL_RANK' in environment:
            rank, process = int(environment['LOCAL_RANK']), int(path.parent.name)
            found[rank] = min(process, found.get(rank, process))  # its data workers come after it
    return found
