"""The document: its numbers are those of the raw files, and nothing is left out of it."""

import json
import re
from statistics import median

import cv2
import pytest

from mmws.experiments.study.plan import plan
from mmws.experiments.study.read import read_study
from mmws.experiments.study.report import render, write_report
from mmws.experiments.study.results import Results
from tests.helpers.commands import REPOSITORY
from tests.helpers.studies import STUDY, write

DOCS = REPOSITORY / 'docs'
METRICS = {'seed 1': 0.3, 'seed 2': 0.4, 'rate 0.1': 0.1, 'rate 0.2': 0.2}


def record(run, metric):
    status, message = ('finished', '') if metric is not None else ('diverged', 'the loss is nan at step 7')
    curve = [[step, metric or 0] for step in (run.steps // 2, run.steps)]
    return {'name': run.name, 'status': status, 'message': message, 'metric': metric, 'seconds': 60,
            'settings': run.settings(), 'validation': curve, 'loss': curve}


@pytest.fixture
def study(tmp_path):
    """GN at one and four images a step, BN+WS, which has one seed of two left, at one."""
    (tmp_path / 'detection.py').write_text('a = 1\n')
    parts = [{'methods': ['GN', 'BN+WS'], 'rates': [0.1, 0.2]}, {'methods': ['GN'], 'batch_sizes': [4]}]
    return read_study(write(tmp_path, task={'config': str(tmp_path / 'detection.py'), 'parts': parts}, seeds=[1, 2],
                            methods={'GN': {'weight': 'plain'}, 'BN+WS': {'norm': 'keep'}}))


@pytest.fixture
def results(study, tmp_path):
    results = Results(tmp_path / 'results')
    for _ in range(2):  # the rates are known after the first
        for run in plan(study, results.done):
            if run.rate is not None and run.name not in results.done:
                diverged = run.method == 'BN+WS' and run.seed in (0, 2)
                results.add(record(run, None if diverged else METRICS[run.name.rpartition(', ')[2]]))
    results.start({'command': 'python tools/study.py', 'date': '2026-01-02', 'machine': 'M', 'versions': 'torch 1'})
    return Results(results.folder)


def test_means_spreads_rates_and_failures(study, results):
    text = render(study, results)
    for line in (
            '10 runs, of which',
            '3 diverged, 7 finished; 0.2 hours',
            '- `python tools/study.py`  \n  2026-01-02, M; torch 1',
            '| GN | step | 35.0 ± 7.1 | 35.0 ± 7.1 |',
            '| BN+WS | step | 30.0, 1 diverged |  |',
            '| GN | step | 1 | 0.2, the highest | 0.1: 10.0, 0.2: 20.0 | 30.0, 40.0 | 60 |',
            '| GN | step | 4 | 0.8 | 4 times that of 1 a step | 30.0, 40.0 | 60 |',
            '| BN+WS | step | 1 | 0.1 | 0.1: diverged, 0.2: diverged | 30.0 | 60 |',
            '- BN+WS, 1 image a step, step schedule: 1 diverged, of 2: `the loss is nan at step 7`'):
        assert line in text


def test_the_document_its_figures_and_what_is_written_by_hand(study, results, tmp_path):
    (tmp_path / 'results_notes.md').write_text('## Conclusions\n\n<!-- tables -->\n\n## Published\n')
    document, *figures = write_report(study, results)
    text = document.read_text()
    assert text.index('## Conclusions') < text.index('| GN | step | 35.0') < text.index('## Published')
    assert [figure.name for figure in figures] == ['detection_curves.png', 'detection_batch.png']
    for figure in figures:
        assert f']({figure.parent.name}/{figure.name})' in text
        assert cv2.imread(str(figure)).std() > 5  # not empty


def test_a_study_that_has_hardly_begun_has_a_document(study, tmp_path):
    assert [path.name for path in write_report(study, Results(tmp_path / 'none'))] == ['none.md']


def test_the_committed_document_is_made_from_the_committed_raw_results(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    study, results = read_study(STUDY), Results(DOCS / 'results')
    results.check(study)
    assert render(study, results) == (DOCS / 'results.md').read_text(), 'run `python tools/study.py ... --report`'
    assert results.done.keys() <= {run.name for run in plan(study, results.done)}  # all of it is in the document
    assert sum(path.stat().st_size for path in (DOCS / 'results').iterdir()) < 1.5e6
    assert json.loads((DOCS / 'results' / 'about.json').read_text())


def test_what_the_notes_and_the_readme_say_is_in_the_tables():
    notes = (DOCS / 'results_notes.md').read_text()
    tables = (DOCS / 'results.md').read_text()
    for part in notes.split('<!-- tables -->'):
        tables = tables.replace(part.strip(), '')
    quoted = re.findall(r'\d+\.\d ± \d+\.\d', notes + (REPOSITORY / 'README.md').read_text())
    assert quoted
    assert not [value for value in quoted if f'| {value} |' not in tables]


def label(name: str) -> str:
    """What the notes call a network of lr_range.json or landscape.json."""
    norm = 'BN' if 'model.ws.norm=keep' in name else 'GN'
    return norm if 'model.ws.weight=plain' in name else f'{norm}+WS'


def test_the_notes_quote_the_range_test_and_the_landscape_as_measured():
    notes = (DOCS / 'results_notes.md').read_text()
    for name, result in json.loads((DOCS / 'results' / 'lr_range' / 'lr_range.json').read_text()).items():
        low, high = result['usable']
        assert f'| {label(name)} | {low:.3g} to {high:.3g} | {result["diverged"]:.3g} |' in notes
    for name, lines in json.loads((DOCS / 'results' / 'landscape' / 'landscape.json').read_text())['measured'].items():
        medians = ' | '.join(f'{median(line[key] for line in lines):.3g}' for key in ('loss', 'beta', 'lipschitz'))
        assert f'| {label(name)} | {medians} |' in notes
