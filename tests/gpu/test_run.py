"""The run for a GPU, on a CPU: its code, its messages, and that its checks can fail."""

import json
import os
import subprocess
import sys

import pytest
import torch

import mmws.layers.weight_cache
from tests.gpu import checks, report, run
from tests.gpu.benchmark import MODES
from tests.helpers.commands import REPOSITORY
from tests.helpers.versions import needs_torch

pytestmark = needs_torch('2.11', 'tests/gpu/run.py')
BLOCKED = '''
import runpy, sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'rich', 'matplotlib', 'safetensors', 'pytest',
             'torchvision'):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''
TEXTS = {name: check.__doc__.partition('\n')[0] for name, check in checks.all_checks().items()}


@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    """The folder with the results of a quick run on the CPU, without the packages of OpenMMLab."""
    out = tmp_path_factory.mktemp('gpu')
    command = [sys.executable, '-c', BLOCKED, str(REPOSITORY / 'tests' / 'gpu' / 'run.py'),
               '--device', 'cpu', '--quick', '--out', str(out)]
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_a_quick_run_on_the_cpu_passes_and_writes_json_and_page(quick):
    results = json.loads((quick / 'gpu.json').read_text())
    outcomes = {check['name']: check['outcome'] for check in results['checks']}
    only_cuda = {name for name in outcomes if 'stream' in name or 'cuda_graph' in name or 'reduce_overhead' in name}
    assert outcomes == {name: 'not here' if name in only_cuda else 'passed' for name in checks.all_checks()}
    assert len(only_cuda) == 5
    assert not results['not_measured']
    assert [(row['mode'], row['form']) for row in results['benchmark'] if not row['compiled']] == 2 * [
        (mode, form) for mode in MODES for form in ('plain', 'mmws', "mmcv's formula", "timm's trick")]
    assert [(row['mode'], row['form']) for row in results['benchmark'] if row['compiled']] == [
        (mode, form) for mode in MODES for form in ('plain', 'mmws')]
    assert all(row['launches'] > 100 and row['seconds'] > 0 for row in results['benchmark'])
    page = (quick / 'gpu.md').read_text()
    assert page == report.page(results, TEXTS)
    assert page.count('not on cpu') == 5
    assert page.count('only a GPU counts') == 4


def stale(monkeypatch):
    monkeypatch.setattr(mmws.layers.weight_cache._Entry, 'is_valid', lambda *_: True)


def biased(monkeypatch):
    monkeypatch.setattr(mmws.ops.kernels, '_unbias', lambda *_: 1.0)


@pytest.mark.parametrize(('fault', 'name'), [
    (stale, 'check_data_write'), (stale, 'check_load_state_dict'), (stale, 'check_set'), (biased, 'check_transposed'),
    (biased, 'check_formula_and_gradient')])
def test_a_fault_fails_the_check_and_the_run(fault, name, tmp_path, monkeypatch, capsys):
    fault(monkeypatch)
    others = ('check_copies_and_pickles', 'check_another_stream')
    monkeypatch.setattr(run, 'all_checks', lambda: {each: checks.all_checks()[each] for each in (name, *others)})
    monkeypatch.setattr(run, 'plan', lambda quick: [])
    assert run.main(['--device', 'cpu', '--quick', '--out', str(tmp_path)]) == 1
    outcome, *_, last = json.loads((tmp_path / 'gpu.json').read_text())['checks']
    assert (outcome['name'], outcome['outcome']) == (name, 'failed')
    assert 'is wrong by' in outcome['why']
    assert last['outcome'] == 'not here'  # a failure does not stop the others
    assert f'**failed**: {outcome["why"]}' in (tmp_path / 'gpu.md').read_text()
    assert 'checks failed' in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason='asks for a GPU where there is none')
def test_without_a_gpu_the_run_says_so(tmp_path):
    with pytest.raises(SystemExit, match=r'error: torch .* finds no GPU; .* or use --device cpu --quick'):
        run.main(['--out', str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_failed_scenario_and_the_end_of_the_time_are_reported(monkeypatch):
    scenario = run.plan(True)[0]
    monkeypatch.setattr(run, 'plan', lambda quick: [scenario])

    def fail(*_):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(run, 'measure', fail)
    options = run.parse(['--device', 'cpu'])
    now = run.time.monotonic()
    assert run.run_benchmark(options, now) == ([], {scenario.title: 'OutOfMemoryError: CUDA out of memory'})
    assert run.run_benchmark(options, now - 3600) == ([], {scenario.title: 'the first 5 minutes were over'})


def test_targets_are_compared_with_the_worst_scenario():
    rows = [{'scenario': scenario, 'compiled': False, 'mode': mode, 'form': form, 'ratio': ratio, 'launches': launches}
            for scenario, more in (('a', 0), ('b', 0.02)) for mode, limit in (('training', 1.005), ('inference', 0.98))
            for form, ratio, launches in (('plain', 1, 100), ('mmws', limit + more, 130 + 1000 * more))]
    eager, compiled, inference, launches = report.compare_with_targets(rows)
    assert (eager['met'], eager['worst'], eager['where']) == (False, 1.025, 'b')
    assert compiled['met'] is None
    assert inference['met'] is True
    assert (launches['met'], launches['worst']) == (False, 50)
    results = {'device': 'cuda', 'about': {}, 'checks': [], 'benchmark': [], 'not_measured': {'c': 'why'},
               'targets': report.compare_with_targets(rows)}
    page = report.page(results, {})
    assert '| **not met**: 1.025 at worst (b) |' in page
    assert '| met: 1.0 at worst (b) |' in page
    assert '| not measured |' in page
    assert '- c: not measured, why' in page
    for row in rows:
        row['launches'] = None  # the profiler saw nothing
    assert report.compare_with_targets(rows)[-1]['met'] is None


def test_the_page_in_docs_is_that_of_its_results_or_says_not_run():
    docs = REPOSITORY / 'docs'
    assert (docs / 'gpu.md').read_text() == report.page(run.read(docs / 'gpu.json'), TEXTS)
