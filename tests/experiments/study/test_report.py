"""The document contains all numbers of the raw results."""

import json
import re
import runpy
from dataclasses import replace
from statistics import median

import cv2
import pytest

from mmws import WSError
from mmws.experiments.study.figures import plot_batches
from mmws.experiments.study.notes import fill
from mmws.experiments.study.plan import plan
from mmws.experiments.study.read import read_study
from mmws.experiments.study.report import render, write_report
from mmws.experiments.study.results import Results
from tests.helpers.commands import REPOSITORY
from tests.helpers.studies import STUDIES, write_study

DOCS = REPOSITORY / 'docs'
COMMITTED = {'results': STUDIES[0], 'results_digits': STUDIES[1],
             'results_transplant': REPOSITORY / 'configs' / 'study' / 'transplant.yaml'}
METRICS = {'seed 1': 0.3, 'seed 2': 0.4, 'rate 0.1': 0.1, 'rate 0.2': 0.2}


def record(run, metric):
    status, message = ('finished', '') if metric is not None else ('diverged', 'the loss is nan at step 7')
    curve = [[step, metric or 0] for step in (run.steps // 2, run.steps)]
    return {'name': run.name, 'status': status, 'message': message, 'metric': metric, 'seconds': 60,
            'settings': run.settings(), 'validation': curve, 'loss': curve}


@pytest.fixture
def study(tmp_path):
    """Return a study with GN at batch sizes 1 and 4, and BN+WS at 1, where one of two seeds diverges."""
    (tmp_path / 'detection.py').write_text('model = 1\n')
    parts = [{'methods': ['GN', 'BN+WS'], 'rates': [0.1, 0.2]}, {'methods': ['GN'], 'batch_sizes': [4]}]
    return read_study(write_study(tmp_path, task={'config': str(tmp_path / 'detection.py'), 'parts': parts},
                                  seeds=[1, 2], methods={'GN': {'weight': 'plain'}, 'BN+WS': {'norm': 'keep'}}))


@pytest.fixture
def results(study, tmp_path):
    results = Results(tmp_path / 'results')
    for _ in range(2):  # the first pass determines the rates
        for run in plan(study, results.done):
            if run.rate is not None and run.name not in results.done:
                diverged = run.method == 'BN+WS' and run.seed in (0, 2)
                results.add(record(run, None if diverged else METRICS[run.name.rpartition(', ')[2]]))
    results.start({'command': 'python tools/study.py', 'date': '2026-01-02', 'machine': 'M', 'versions': 'torch 1'})
    return Results(results.folder)


def test_means_spreads_rates_and_failures(study, results):
    text = render(study, results)
    for line in (
            '10 runs (3 diverged, 7 finished), 0.2 hours',
            '- `python tools/study.py`  \n  2026-01-02, M; torch 1',
            '| GN | step | 35.0 ± 7.1 | 35.0 ± 7.1 |',
            '| BN+WS | step | 30.0, 1 diverged |  |',
            '| GN | step | 1 | 0.2, the highest | 0.1: 10.0, 0.2: 20.0 | 30.0, 40.0 | +0.0 | 60 |',
            '| GN | step | 4 | 0.8 | 4 times the rate at batch size 1 | 30.0, 40.0 | +0.0 | 60 |',
            '| BN+WS | step | 1 | 0.1 | 0.1: diverged, 0.2: diverged | 30.0 | +0.0 | 60 |',
            '- BN+WS, batch size 1, step schedule: 1 diverged of 2: `the loss is nan at step 7`'):
        assert line in text


def test_the_document_includes_the_figures_and_the_notes(study, results, tmp_path):
    (tmp_path / 'results_notes.md').write_text('## Conclusions\n\n<!-- tables -->\n\n## Published\n')
    document, *figures = write_report(study, results)
    text = document.read_text()
    assert text.index('## Conclusions') < text.index('| GN | step | 35.0') < text.index('## Published')
    assert [figure.name for figure in figures] == ['detection_curves.png', 'detection_rates.png']
    for figure in figures:
        assert f']({figure.parent.name}/{figure.name})' in text
        assert cv2.imread(str(figure)).std() > 5  # not empty


def test_batch_sizes_with_a_search_of_their_own_have_a_figure(study, results):
    task = study.tasks[0]
    task = replace(task, parts=(*task.parts[:-1], replace(task.parts[-1], rates=(0.4, 0.8))))
    study = replace(study, tasks=(task,))
    for run in plan(study, results.done):
        results.done.setdefault(run.name, record(run, run.rate))
    for run in plan(study, results.done):  # with the rates that the search has chosen
        results.done.setdefault(run.name, record(run, 0.5))
    figure = plot_batches(study, task, results, results.folder)
    assert figure.name == 'detection_batch.png'
    assert cv2.imread(str(figure)).std() > 5
    assert '(results/detection_batch.png)' in render(study, results)


def test_a_study_without_results_has_a_document(study, tmp_path):
    assert [path.name for path in write_report(study, Results(tmp_path / 'none'))] == ['none.md']


@pytest.mark.parametrize(('name', 'path'), COMMITTED.items(), ids=[*COMMITTED])
def test_the_committed_document_matches_the_committed_raw_results(name, path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    study, results = read_study(path), Results(DOCS / name)
    results.check(study)
    assert render(study, results) == (DOCS / f'{name}.md').read_text(), 'run `python tools/study.py ... --report`'
    assert results.done.keys() <= {run.name for run in plan(study, results.done)}  # the document contains all of them
    assert sum(path.stat().st_size for path in (DOCS / name).iterdir()) < 1.5e6
    assert json.loads((DOCS / name / 'about.json').read_text())


def test_names_of_results_in_the_notes_become_values(study, results):
    study = replace(study, references=('GN',))
    text = ('{detection: GN}, {detection: GN at 4}, {detection: BN+WS}, {detection: BN+WS - GN}, '
            '{detection: GN, rate 0.2}, {detection: BN+WS, rate 0.1}')
    assert fill(text, study, results) == '35.0 ± 7.1, 35.0 ± 7.1, 30.0, 1 diverged, not run, 20.0, diverged'
    for run in plan(study, results.done):
        if run.method == 'BN+WS' and not run.search:
            results.done[run.name] = record(run, 0.5 if run.seed == 1 else 0.7)
    assert fill('{detection: BN+WS - GN}', study, results) == '+25.0 (-38.5 to +88.5)'
    part = study.tasks[0].parts[0]
    both = replace(study, tasks=(replace(study.tasks[0], parts=(replace(part, schedules=('step', 'one-cycle')), )), ))
    assert fill('{detection: GN}, {detection: GN, one-cycle}', both, results) == '35.0 ± 7.1, not run'
    pointed = replace(study, tasks=(replace(study.tasks[0], points=(0.5, )), ))
    assert fill('{detection: GN, 50%}, {detection: BN+WS, 50%}', pointed, results) == '35.0 ± 7.1, 60.0 ± 14.1'
    with pytest.raises(WSError, match=r"{detection: GN at 2}, which is no result; did you mean 'detection: GN"):
        fill('{detection: GN at 2}', study, results)


def test_no_result_in_the_notes_is_typed_by_hand():
    for name in ('results', 'results_transplant'):
        assert ' ± ' not in (DOCS / f'{name}_notes.md').read_text()


@pytest.mark.parametrize('row', [
    '| GroupNorm + WS: the key above | **{nuclei_long: GN+WS}** | **{camvid: GN+WS}** |',
    '| GroupNorm: the key and `ws=dict(weight=\'plain\')` | {nuclei_long: GN} | {camvid: GN} |',
    '| BatchNorm: the stock network | {nuclei_long: BN} | fails at its first step |',
    '- nuclei: {nuclei_long: GN+WS - GN} points of box AP', '- CamVid: {camvid: GN+WS - GN} points of mean IoU',
    'BatchNorm works on nuclei too: {nuclei_long: BN at 8}, GN {nuclei_long: GN at 8}, '
    'GN+WS {nuclei_long: GN+WS at 8}.'])
def test_the_readme_has_the_results(row, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    study, readme = read_study(STUDIES[0]), (REPOSITORY / 'README.md').read_text()
    assert fill(row, study, Results(DOCS / 'results')) in readme
    images = {task.name: f'{task.images:,}' for task in study.tasks}
    assert f'({images["nuclei_long"]} steps) and street scenes ({images["camvid"]} steps)' in readme


@pytest.mark.parametrize(('study', 'text'), [
    (0, 'box AP {nuclei_long: GN+WS}, GN {nuclei_long: GN}, BN {nuclei_long: BN} (after 6,400 images); in segmentation '
        '(CamVid) mean IoU {camvid: GN+WS}, GN {camvid: GN};'),
    (0, 'at 8 images BN {nuclei_long: BN at 8}, GN {nuclei_long: GN at 8}, GN+WS {nuclei_long: GN+WS at 8} (after 6,4'),
    (0, 'far below GroupNorm: {nuclei: BN+WS} |'),
    (1, '(digits), 1 image per step | GN+WS {detection: GN+WS}, GN {detection: GN}, BN+WS {detection: BN+WS}, '
        'BN {detection: BN} |'),
    (1, 'at 64, {classification: BN+WS at 64} and {classification: BN at 64}, GN+WS {classification: GN+WS at 64} ('),
    (0, '| {nuclei: EstBN+WS} at one image'), (1, 'digits: {detection: EstBN+WS} |'),
    (0, 'mean IoU {camvid: GN+WS}, with a plain head {camvid: GN+WS, plain head} ('),
    (1, '(digits: {segmentation: GN+WS} and {segmentation: GN+WS, plain head})'),
    (0, '({nuclei: GN+WS, rate 0.04} and {nuclei: GN+WS, rate 0.08} against {nuclei: GN, rate 0.04} and '
        '{nuclei: GN, rate 0.08}, one seed)'),
    (0, 'GN+WS has {nuclei_decay: GN+WS} and GN {nuclei_decay: GN} (one seed), without it {nuclei: GN+WS} and '
        '{nuclei: GN}.')])
def test_the_recommendations_have_the_results(study, text, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    folder = [*COMMITTED][study]
    assert fill(text, read_study(STUDIES[study]), Results(DOCS / folder)) in (DOCS / 'evidence.md').read_text()


def test_results_on_other_pages_are_in_the_tables():
    tables = ''.join((DOCS / f'{name}.md').read_text() for name in COMMITTED)
    for part in (DOCS / 'results_digits_notes.md').read_text().split('<!-- tables -->'):
        tables = tables.replace(part.strip(), '')
    pages = [path for path in (REPOSITORY / 'README.md', *DOCS.glob('*.md')) if path.stem not in COMMITTED]
    quoted = re.findall(r'\d+\.\d ± \d+\.\d', ''.join(path.read_text() for path in pages))
    assert len(quoted) > 20
    assert not [value for value in quoted if f'| {value} |' not in tables]


def label(name: str) -> str:
    """Return the name in the notes for a training in lr_range.json or landscape.json."""
    norm = 'BN' if 'model.ws.norm=keep' in name else 'GN'
    return norm if 'model.ws.weight=plain' in name else f'{norm}+WS'


def test_numbers_of_the_range_test_and_the_landscape_in_the_notes_are_as_measured():
    notes, folder = (DOCS / 'results_digits_notes.md').read_text(), DOCS / 'results_digits'
    for name, result in json.loads((folder / 'lr_range' / 'lr_range.json').read_text()).items():
        low, high = result['usable']
        assert f'| {label(name)} | {low:.3g} to {high:.3g} | {result["diverged"]:.3g} |' in notes
    for name, points in json.loads((folder / 'landscape' / 'landscape.json').read_text())['measured'].items():
        medians = ' | '.join(f'{median(point[key] for point in points):.3g}' for key in ('loss', 'beta', 'lipschitz'))
        assert f'| {label(name)} | {medians} |' in notes


def test_numbers_of_batch_norms_statistics_in_the_notes_are_as_measured():
    notes = (DOCS / 'results_notes.md').read_text()
    measured = json.loads((DOCS / 'results' / 'bn_statistics' / 'bn_statistics.json').read_text())
    for name, tested in measured['tested'].items():
        assert f'| {name} | {tested["running"]:.3f} | {tested["batch"]:.3f} |' in notes
    text = ' '.join(notes.split())
    shifts = {name: {kind: [layer['shift'] for layer in layers] for kind, layers in tests.items()}
              for name, tests in measured['layers'].items()}
    (nuclei, digits) = (shifts[name]['running'][0] for name in ('nuclei', 'digits'))
    assert (f'a nuclei image is {nuclei:.2f} running standard deviations from the running mean, that of a digits image '
            f'{digits:.2f}.') in text
    for name, (_, *later) in ((name, tests['running']) for name, tests in shifts.items()):
        assert f'{min(later):.2f} to {max(later):.2f}' in text, name
    largest = max(shift for tests in shifts.values() for shift in tests['batch'][1:])
    assert f'within {largest:.2f} on both' in text


def test_the_tool_counts_the_runs_of_its_tasks_and_estimates_their_time(study, tmp_path, capsys):
    def run_all(study, results, processes, show):
        def ready():
            return [run for run in plan(study, results.done) if run.rate is not None and run.name not in results.done]

        while runs := ready():
            results.add(record(runs[0], METRICS[runs[0].name.rpartition(', ')[2]]))
            show(runs[0], results.done[runs[0].name])

    tool = runpy.run_path(str(REPOSITORY / 'tools' / 'study.py'))
    tool['run'].__globals__.update(run_all=run_all, check_task=lambda study, task: None)
    results = Results(tmp_path / 'new')
    results.add({**record(plan(study, {})[0], 0.3), 'name': 'a run of another task'})
    tool['run'](study, results, 1)
    lines = re.findall(r'^(\d+)/(\d+) detection, .*, about \d+ min left', capsys.readouterr().out, re.M)
    runs = len(plan(study, results.done))
    assert len(results.done) == runs + 1
    assert [int(number) for number, _ in lines] == list(range(1, runs + 1))
    assert lines[-1] == (str(runs), str(runs))
