"""Runs of a study, several at a time; each test starts processes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmws.data.digits import make_digits, make_single_digits
from mmws.errors import WSError
from mmws.experiments.study.plan import plan
from mmws.experiments.study.pool import run_all
from mmws.experiments.study.read import read_study
from mmws.experiments.study.results import Results
from mmws.experiments.study.schema import check_task
from tests.helpers.commands import REPOSITORY
from tests.helpers.studies import write_study

CONFIGS = REPOSITORY / 'configs' / 'study'


def fake_train(run, task):
    """Crash, raise or finish, depending on the learning rate."""
    if run.rate == 0.1:
        os._exit(1)
    if run.rate == 0.2:
        raise RuntimeError('out of memory')
    return fake_result(run)


def fake_result(run):
    return {'name': run.name, 'status': 'finished', 'message': '', 'metric': 0.5, 'seconds': 1,
            'settings': run.settings(), 'validation': [], 'loss': []}


@pytest.fixture
def study(tmp_path):
    """Return a study with two rates that fail, one that works, and two seeds."""
    (tmp_path / 'detection.py').write_text('model = 1\n')
    return read_study(write_study(tmp_path, part={'rates': [0.1, 0.2, 0.3]}, seeds=[1, 2],
                            task={'config': str(tmp_path / 'detection.py')}))


def test_failures_are_saved_and_an_interrupted_study_resumes(study, tmp_path):
    def interrupt(run, record):
        if len(Results(folder).done) == 3:
            raise KeyboardInterrupt

    folder = tmp_path / 'results'
    with pytest.raises(KeyboardInterrupt):
        run_all(study, Results(folder), 2, interrupt, fake_train)
    before = (folder / 'detection.json').read_text()
    assert before.count('\n') == 5  # a line per run
    shown = []
    run_all(study, Results(folder), 2, lambda run, record: shown.append(run.name), fake_train)
    done = Results(folder).done
    assert sorted(shown) == sorted(run.name for run in plan(study, done) if run.name not in before)
    assert len(done) == 5
    assert {record['settings']['rate']: (record['status'], record['message']) for record in done.values()} == {
        0.1: ('crashed', 'its process died'), 0.2: ('crashed', 'RuntimeError: out of memory'), 0.3: ('finished', '')}


def test_saved_runs_with_other_settings_are_refused(study, tmp_path):
    folder = tmp_path / 'results'
    run = next(run for run in plan(study, {}) if run.rate == 0.3)
    results = Results(folder)
    results.add(fake_train(run, study.tasks[0]))
    Results(folder).check(study)
    with pytest.raises(WSError, match=r'detection.json: the run "detection, GN, .*" has other settings than the study: '
                                      r'images is 40, expected 80; steps is 40, expected 80; delete its line'):
        Results(folder).check(replace(study, tasks=(replace(study.tasks[0], images=80),)))
    part = study.tasks[0].parts[0]
    wider = replace(study.tasks[0], parts=(replace(part, rates=(*part.rates, 0.4)),))
    for each in plan(study, {}):  # all runs are done; then the search gets a candidate
        results.add(fake_result(each if each.rate else replace(each, rate=0.3)))
    Results(folder).check(replace(study, tasks=(wider,)))
    (tmp_path / 'other.py').write_text('model = 2\n')
    with pytest.raises(WSError, match=r'config is .*; digest is '):
        Results(folder).check(replace(study, tasks=(replace(study.tasks[0], config=str(tmp_path / 'other.py')),)))


@pytest.mark.parametrize(('content', 'message'), [
    ('[{', r'detection.json is not valid JSON: .*; correct it, or delete it'),
    ('{"name": 1}', r'detection.json is not a file of results: expected a list of mappings with the keys name, status'),
    ('[{"name": "a"}]', r'detection.json is not a file of results')])
def test_an_invalid_file_of_results_is_named(tmp_path, content, message):
    (tmp_path / 'detection.json').write_text(content)
    with pytest.raises(WSError, match=message):
        Results(tmp_path)
    with pytest.raises(WSError, match=r'detection.json is not a folder; choose another --out'):
        Results(tmp_path / 'detection.json')


@pytest.mark.parametrize(('end', 'returncode'), [
    ('os.kill(os.getpid(), signal.SIGKILL)', -signal.SIGKILL), ('raise KeyError("a fault")', 1)],
    ids=['killed', 'exception'])
def test_workers_end_with_their_main_process(end, returncode):
    code = f"""
import os, signal, time
from mmws.experiments.worker import WorkerPool
if __name__ == '__main__':
    with WorkerPool(2) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        for _ in range(3):  # two run, one waits
            pool.submit(time.sleep, 600)
        {end}
"""
    # The workers have the output open: the call returns when all processes have ended.
    run = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, timeout=60)
    assert (run.returncode, int(run.stdout) > 0) == (returncode, True)


def test_a_study_needs_a_process(study, tmp_path):
    with pytest.raises(WSError, match='expected at least one run at a time, got 0'):
        run_all(study, Results(tmp_path / 'results'), 0, lambda run, record: None)


def test_a_real_run_of_each_task_with_a_crash_and_a_divergence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_digits(Path('data/study/digits'), train=4, val=2, size=96)
    make_single_digits(Path('data/study/single'))
    whole = read_study(CONFIGS / 'digits.yaml')
    tasks = {}
    for task in whole.tasks:
        rate = 1e6 if task.name == 'classification' else 0.01
        part = {'methods': ['BN' if task.name == 'segmentation' else 'GN+WS'], 'rates': [rate], 'batch_sizes': [1]}
        kept = {key: getattr(task, key) for key in ('metric', 'label', 'out_of', 'warm_up', 'seconds')}
        tasks[task.name] = {**kept, 'config': str(REPOSITORY / task.config), 'images': 8, 'validations': 2,
                            'parts': [part]}
    study = read_study(write_study(tmp_path, methods=dict(whole.methods), tasks=tasks))
    for task in study.tasks:
        check_task(study, task)
    run_all(study, Results(tmp_path / 'results'), 2, lambda run, record: None)
    done = {record['settings']['task']: record for record in Results(tmp_path / 'results').done.values()}
    detection, segmentation, classification = (done[name] for name in ('detection', 'segmentation', 'classification'))
    assert detection['status'] == 'finished'
    assert [step for step, _ in detection['validation']] == [4, 8]
    assert [step for step, _ in detection['loss']] == list(range(1, 9))
    assert segmentation['status'] == 'crashed'
    assert 'Expected more than 1 value per channel when training' in segmentation['message']
    assert classification['status'] == 'diverged'
    assert classification['message'].startswith('the loss is ')
    json.dumps([detection, segmentation, classification], allow_nan=False)
