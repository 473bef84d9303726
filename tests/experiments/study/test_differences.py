import pytest

from mmws.experiments.study.differences import differences
from mmws.experiments.study.plan import Run
from mmws.experiments.study.results import Cell


def cell(method, by_seed, batch_size=1):
    run = Run('detection', method, {}, 'step', batch_size, 1, 0.1, False, 'x.py', 10, 1, 1)
    return Cell(run, [{'status': 'finished' if metric is not None else 'diverged', 'metric': metric,
                       'settings': {'seed': seed}} for seed, metric in by_seed.items()], 1)


GN = cell('GN', {1: 0.10, 2: 0.30, 3: 0.20})


@pytest.mark.parametrize(('metrics', 'text'), [
    ({1: 0.15, 2: 0.36, 3: 0.24}, 'better than GN'),
    ({3: 0.14, 2: 0.25, 1: 0.06}, 'worse than GN'),  # the pairs do not depend on the order
    ({1: 0.05, 2: 0.36, 3: 0.24}, 'no difference found')])
def test_differences_are_paired_by_seed(metrics, text):
    [found] = differences([cell('WS', metrics), GN], ['GN'])
    assert (found.method, found.setting, found.text()) == ('WS', 'batch size 1, step schedule', text)
    assert found.mean == pytest.approx(100 * (sum(metrics.values()) / 3 - 0.2))


def test_the_interval_is_the_one_of_students_t():
    """The textbook's: mean 5, standard deviation 1, three values; t(0.975, 2) is 4.303."""
    [found] = differences([cell('WS', {1: 0.15, 2: 0.36, 3: 0.24}), GN], ['GN'])
    half = 4.3027 / 3 ** 0.5
    assert [found.low, found.mean, found.high] == pytest.approx([5 - half, 5, 5 + half], abs=1e-3)


def test_without_two_pairs_there_is_no_difference():
    assert differences([cell('WS', {1: 0.2, 2: None, 3: None}), GN], ['GN']) == []
    assert differences([cell('WS', {1: 0.2, 2: 0.1}, batch_size=2), GN], ['GN']) == []
    assert differences([GN, cell('BN', {1: 0.2, 2: 0.1})], []) == []


def test_two_references_are_compared_once():
    cells = [cell(name, {1: value, 2: 2 * value}) for name, value in (('GN', 0.1), ('BN', 0.2), ('WS', 0.3))]
    assert [(each.method, each.reference) for each in differences(cells, ['GN', 'BN'])] == [
        ('BN', 'GN'), ('WS', 'GN'), ('WS', 'BN')]
