"""Runs that start from a BatchNorm network; each test trains."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmws.checkpoint import read_checkpoint
from mmws.data.digits import make_digits
from mmws.errors import WSError
from mmws.experiments.study.plan import choose_rate, plan
from mmws.experiments.study.pool import prepare_starts, run_all
from mmws.experiments.study.read import read_study
from mmws.experiments.study.report import write_report
from mmws.experiments.study.results import Results
from mmws.experiments.study.run import config_of, prepare
from mmws.experiments.study.start import StartHook, start_folder
from tests.helpers.commands import REPOSITORY
from tests.helpers.studies import STUDIES, write_study

METHODS = {'transplanted': {}, 'by name': {}, 'scratch': {}, 'frozen': {'norm': 'keep', 'weight': 'plain'}}
STARTS = {'transplanted': 'transplant', 'by name': 'names', 'frozen': 'frozen'}


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_digits(tmp_path / 'data' / 'study' / 'digits', train=16, val=2, size=96)
    task = {'config': str(REPOSITORY / 'configs' / 'study' / 'detection.py'), 'images': 6, 'validations': 1,
            'points': [0, 0.5], 'subset': 'odd', 'pretraining': {'images': 8, 'batch_size': 4, 'rate': 0.01}}
    return read_study(write_study(tmp_path, methods=METHODS, starts=STARTS, references=['scratch'], task=task,
                                  part={'methods': list(METHODS), 'rates': [0.01]}))


def test_runs_start_from_their_weights(study, tmp_path):
    shown = []
    results = Results(tmp_path / 'results')
    prepare_starts(study, results, 1, lambda run: shown.append(run.seed))
    prepare_starts(study, results, 1, lambda run: shown.append('again'))
    assert shown == [1]
    runs = {run.method: run for run in plan(study, {})}
    folder = start_folder(runs['frozen'])
    assert start_folder(runs['transplanted']) == folder  # one pretraining for all
    assert sorted(path.name for path in folder.iterdir()) == ['checkpoint.pth', 'names.pth', 'transplant.pth']
    weights = {path.stem: read_checkpoint(path) for path in folder.iterdir()}
    assert torch.equal(weights['names'].tensors['backbone.gn1.weight'],
                       weights['checkpoint'].tensors['backbone.bn1.weight'])
    images = weights['transplant'].meta['transplant']['images']
    assert sorted(int(path[-10:-4]) for path in images) == list(range(0, 16, 2))

    run_all(study, results, 2, lambda run, record: None)
    assert {record['status'] for record in results.done.values()} == {'finished'}, results.done
    for record in results.done.values():
        assert [step for step, _ in record['validation']] == [0, 3, 6]
    losses = {record['settings']['method']: record['loss'][0][1] for record in results.done.values()}
    assert len(set(losses.values())) == 4  # the same first image: four different weights
    document = write_report(study, results)[0].read_text()
    assert '| transplanted | 1 | 0.0 | 0.0 | 0.0 |' in document
    prepare(runs['frozen'])  # nothing to do
    shutil.rmtree(folder)
    prepare_starts(study, results, 1, lambda run: shown.append('again'))  # all runs are done
    assert shown == [1]


@pytest.mark.parametrize('method', ['frozen', 'by name'])
def test_frozen_statistics_stay_in_training(study, method):
    run = next(run for run in plan(study, {}) if run.method == method)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).train()
    StartHook(run).before_train_iter(SimpleNamespace(model=model), 0)
    model(torch.randn(2, 3, 5, 5))
    assert bool(model[1].running_mean.any()) == (method != 'frozen')
    assert model.training


def test_the_images_are_those_of_the_subset(study):
    run = next(run for run in plan(study, {}) if run.start)
    assert config_of(run, 'out').train_dataloader.dataset.indices == list(range(1, 16, 2))
    assert 'indices' not in Config.fromfile(run.config).train_dataloader.dataset


def test_only_new_settings_are_saved(study, monkeypatch):
    settings = next(run for run in plan(study, {}) if run.method == 'scratch').settings()
    assert settings['points'] == (0, 0.5)
    assert settings.keys().isdisjoint({'start', 'pretraining'})
    monkeypatch.chdir(REPOSITORY)
    old = plan(read_study(STUDIES[0]), {})[0].settings()
    assert old.keys().isdisjoint({'points', 'subset', 'start', 'pretraining'})


def test_rates_come_from_another_task(tmp_path):
    part = {'methods': ['GN'], 'rates': [0.1, 0.2]}
    task = {'metric': 'm', 'label': 'm', 'out_of': 1, 'images': 4, 'warm_up': 1, 'seconds': 1,
            'config': str(REPOSITORY / 'configs' / 'study' / 'detection.py')}
    tasks = {'one': {**task, 'parts': [part]}, 'other': {**task, 'parts': [{'methods': ['GN']}], 'rates_of': 'one'}}
    study = read_study(write_study(tmp_path, tasks=tasks))
    searches = [run for run in plan(study, {}) if run.search]
    assert [run.task for run in searches] == ['one', 'one']
    done = {run.name: {'status': 'finished', 'metric': run.rate, 'settings': run.settings()} for run in searches}
    run = plan(study, done)[-1]
    assert (run.task, run.rate, choose_rate(study, study.tasks[1], run, done)) == ('other', 0.2, 0.2)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'starts': {'GN': 'name'}}, r"starts: unknown start 'name'.*names"),
    ({'starts': {'GM': 'names'}}, r"starts: unknown method 'GM'.*GN"),
    ({'starts': {'GN': 'names'}}, r"methods.GN: expected {}, because the start 'names'.*got {'weight': 'plain'}"),
    ({'starts': {'GN': 'frozen'}}, 'a method has a start, but the task has no pretraining; add'),
    ({'task': {'subset': 'first'}}, "unknown subset 'first'"),
    ({'task': {'rates_of': 'itself'}}, "tasks.detection: rates_of: expected another task .* got 'itself'"),
    ({'task': {'pretraining': {'images': 4}}}, 'pretraining: missing'),
], ids=['start', 'method', 'options', 'no pretraining', 'subset', 'rates', 'keys'])
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(WSError, match=message):
        read_study(write_study(tmp_path, **changes))
