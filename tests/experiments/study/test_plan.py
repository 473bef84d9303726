from collections import Counter

import pytest

from mmws.experiments.study.plan import choose_rate, plan
from mmws.experiments.study.read import read_study
from mmws.experiments.study.schema import shorten
from tests.helpers.pairs import pairs
from tests.helpers.studies import STUDIES, write_study


def record(rate, metric, status='finished'):
    return {'status': status, 'metric': metric, 'settings': {'rate': rate}}


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_all_methods_have_a_search_and_the_same_seeds_steps_and_images(path):
    study = read_study(path)
    runs = plan(study, {})
    assert len({run.name for run in runs}) == len(runs)
    for task in study.tasks:
        for part in task.parts:
            cells = [run for run in runs if run.task == task.name and run.batch_size in part.batch_sizes
                     and run.method in part.methods and run.schedule in part.schedules]
            searched = Counter((run.method, run.schedule, run.batch_size) for run in cells if run.search)
            assert set(searched.values()) == ({len(part.rates)} if part.rates else set())
            reported = Counter((run.method, run.schedule, run.batch_size) for run in cells if not run.search)
            assert set(reported.values()) == {len(task.seeds or study.seeds)}
            assert {run.images for run in cells} == {task.images}
            assert all(abs(run.steps * run.batch_size - task.images) <= run.batch_size for run in cells)
    assert all(run.seed == study.rate_seed for run in runs if run.search)
    assert study.rate_seed not in study.seeds


def test_a_task_may_have_seeds_of_its_own_but_not_in_the_short_form(tmp_path):
    quick = {'methods': ['GN'], 'seeds': [1], 'images': 0.1}
    study = read_study(write_study(tmp_path, task={'seeds': [7]}, quick=quick))
    assert {run.seed for run in plan(study, {})} == {study.rate_seed, 7}
    assert {run.seed for run in plan(shorten(study), {})} == {1}


@pytest.mark.parametrize(('metrics', 'chosen'), [
    ((0.2, 0.3), 0.2), ((0.3, 0.3), 0.1), ((0.3, None), 0.1), ((None, 0.1), 0.2), ((None, None), 0.1)])
def test_choose_the_rate_of_the_best_finished_run(tmp_path, metrics, chosen):
    study = read_study(write_study(tmp_path))
    searches = [run for run in plan(study, {}) if run.search]
    assert [run.rate for run in plan(study, {}) if not run.search] == [None]
    done = {run.name: record(run.rate, metric, 'diverged' if metric is None else 'finished')
            for run, metric in pairs(searches, metrics)}
    assert [run.rate for run in plan(study, done) if not run.search] == [chosen]
    assert choose_rate(study, study.tasks[0], searches[0], dict(list(done.items())[:1])) is None


@pytest.mark.parametrize(('status', 'rates'), [
    ('finished', {1: 0.2, 2: 0.3, 4: 0.6, 8: 1.2}), ('crashed', {1: 0.2, 2: 0.4, 4: 0.8, 8: 1.6})])
def test_without_a_search_the_rate_is_in_proportion_to_the_next_smaller_batch_size(tmp_path, status, rates):
    parts = [{'methods': ['GN'], 'rates': [0.1, 0.2]}, {'methods': ['GN'], 'rates': [0.2, 0.3], 'batch_sizes': [2]},
             {'methods': ['GN'], 'batch_sizes': [4, 8]}]
    study = read_study(write_study(tmp_path, task={'parts': parts}))
    done = {run.name: record(run.rate, run.rate, 'finished' if run.batch_size == 1 else status)
            for run in plan(study, {}) if run.search}
    assert {run.batch_size: run.rate for run in plan(study, done) if not run.search} == pytest.approx(rates)


@pytest.mark.parametrize(('metric', 'rates', 'chosen'), [
    (lambda rate: -rate, [0.1, 0.2, 0.05, 0.025, 0.013], None),  # two of the further candidates are not enough
    (lambda rate: -abs(rate - 0.7), [0.1, 0.2, 0.4, 0.8, 1.6], 0.8),
    (lambda rate: -abs(rate - 0.3), [0.1, 0.2, 0.4], 0.2),
    (lambda rate: None if rate > 0.3 else rate, [0.1, 0.2, 0.4], 0.2),
    (lambda rate: None, [0.1, 0.2], 0.1)])
def test_a_search_widens_while_the_best_rate_is_at_an_end(tmp_path, metric, rates, chosen):
    study = read_study(write_study(tmp_path, part={'widen': 3}))
    done = {}
    for _ in range(10):
        for run in plan(study, done):
            if run.search and run.name not in done:
                value = metric(run.rate)
                done[run.name] = record(run.rate, value, 'diverged' if value is None else 'finished')
    assert [each['settings']['rate'] for each in done.values()] == rates
    assert [run.rate for run in plan(study, done) if not run.search] == [chosen or min(rates)]
