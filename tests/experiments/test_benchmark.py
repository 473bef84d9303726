import copy
import importlib.util
import json
import os
import sys
from dataclasses import replace

import pytest
import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d as MmcvConvWS2d
from torch import nn

from mmws import ConvWS2d
from mmws.experiments.benchmark.convs import MmcvConv
from mmws.experiments.benchmark.forms import ALLOCATOR, COST_FORMS, NETWORKS, STEP_FORMS, Form
from mmws.experiments.benchmark.report import markdown
from mmws.experiments.benchmark.shares import time_shares
from mmws.experiments.benchmark.timing import Scenario, Subject, measure
from tests.helpers.commands import REPOSITORY
from tests.helpers.versions import needs_cache

EAGER = [name for name, form in COST_FORMS.items() if not form.compiled]
TINY = Scenario('ResNet-50', (32, 32), 2, {name: COST_FORMS[name] for name in ('plain', 'mmws')})


def test_the_forms_compute_the_named_operation():
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        outs = {name: COST_FORMS[name].build('ResNet-50')(x)[-1] for name in EAGER}
    for name in ('mmcv', "authors' code", 'parametrize'):
        torch.testing.assert_close(outs[name], outs['mmws'], rtol=1e-3, atol=1e-3)
    assert 1e-4 < (outs["timm's trick"] - outs['mmws']).abs().mean() < 0.05  # biased
    assert (outs['plain'] - outs['mmws']).abs().mean() > 0.1
    assert torch.equal(outs['plain'], outs['plain again'])
    assert torch.equal(outs['plain'], outs['a copy each way'])


def test_the_class_with_mmcvs_formula_computes_as_mmcv():
    theirs = MmcvConvWS2d(4, 6, 3)
    ours = copy.deepcopy(theirs)
    ours.__class__ = MmcvConv
    x = torch.randn(2, 4, 8, 8)
    outs = [conv(x) for conv in (ours, theirs)]
    assert torch.equal(*outs)
    assert torch.equal(*(torch.autograd.grad(out.sum(), conv.weight)[0] for out, conv in zip(outs, (ours, theirs))))


@pytest.mark.parametrize('network', NETWORKS)
def test_networks_have_the_layers_and_the_memory_format_of_their_form(network):
    subject = Subject(Scenario(network, (64, 64), 1, {}), Form(nn.Conv2d, channels_last=True), 'cpu')
    assert not any(type(module) is ConvWS2d for module in subject.net.modules())
    assert subject.batch['inputs'].is_contiguous(memory_format=torch.channels_last)
    assert any(type(module) is nn.GroupNorm for module in subject.net.modules())
    assert set(subject.batch) == {'inputs', 'data_samples'}


@pytest.mark.parametrize('network', ['RetinaNet', 'stock Mask R-CNN'])
def test_a_detector_trains_and_infers(network):
    subject = Subject(Scenario(network, (64, 64), 1, {}), STEP_FORMS['BN'], 'cpu')
    before = subject.net.backbone.layer4[0].conv1.weight.detach().clone()
    assert subject.run('training') > 0
    assert not torch.equal(subject.net.backbone.layer4[0].conv1.weight, before)
    assert subject.run('inference') > 0


@needs_cache
def test_the_weight_cache_needs_the_memory_of_the_weights_once():
    weights = sum(module.weight.numel() * 4 for module in COST_FORMS['plain'].build('ResNet-50').modules()
                  if isinstance(module, nn.Conv2d))
    peaks = {(result['mode'], result['form']): result['peak'] for result in measure(TINY, 'cpu')}
    for mode in ('training', 'inference'):
        assert 0.9 < (peaks[mode, 'mmws'] - peaks[mode, 'plain']) / weights < 1.01


def test_an_isolated_process_has_its_environment(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    name = next(iter(ALLOCATOR))
    forms = {'here': COST_FORMS['plain'], 'alone': Form(environment={name: str(2 ** 20)})}
    results = measure(Scenario('ResNet-50', (32, 32), 2, forms, ('inference',)), 'cpu')
    assert [result['peak'] is None for result in results] == [False, True]
    assert name not in os.environ


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Return tools/benchmark.py as a module, with a folder for its results as argument."""
    spec = importlib.util.spec_from_file_location('benchmark_tool', REPOSITORY / 'tools' / 'benchmark.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--out', str(tmp_path)])
    return tool


def test_the_tool_prints_and_writes_the_results(tool, tmp_path, monkeypatch, capsys):
    assert sum(map(len, tool.plan(False, 'cpu').values())) > len(tool.plan(True, 'cpu'))
    monkeypatch.setattr(tool, 'plan', lambda *_: {'part': [TINY]})
    tool.main()
    results = json.loads((tmp_path / 'benchmark.json').read_text())['part']
    assert [result['form'] for result in results] == ['plain', 'mmws'] * 2
    assert results[0]['ratio'] == 1
    assert markdown(results, TINY.title) in (tmp_path / 'benchmark.md').read_text()
    assert (tmp_path / 'benchmark.png').read_bytes().startswith(b'\x89PNG')
    assert '](benchmark.png)' in (tmp_path / 'benchmark.md').read_text()
    printed = capsys.readouterr().out
    assert 'versions: mmws' in printed
    assert 'ResNet-50 32' in printed


def test_an_interrupted_benchmark_resumes(tool, tmp_path, monkeypatch):
    scenarios = [replace(TINY, size=(size, size), modes=('inference', )) for size in (32, 48, 64)]
    monkeypatch.setattr(tool, 'plan', lambda *_: {'part': scenarios})
    measured, real = [], tool.measure

    def interrupted(scenario, *args):
        measured.append(scenario.title)
        if measured == ['ResNet-50 32', 'ResNet-50 48']:
            raise KeyboardInterrupt
        return real(scenario, *args)

    monkeypatch.setattr(tool, 'measure', interrupted)
    with pytest.raises(SystemExit, match='interrupted; run the same command again to resume'):
        tool.main()
    assert [path.name for path in tmp_path.iterdir()] == ['benchmark.part.json']
    tool.main()
    assert measured == ['ResNet-50 32', 'ResNet-50 48', 'ResNet-50 48', 'ResNet-50 64']
    assert sorted(path.name for path in tmp_path.iterdir()) == ['benchmark.json', 'benchmark.md', 'benchmark.png']
    results = json.loads((tmp_path / 'benchmark.json').read_text())['part']
    assert list(dict.fromkeys(result['scenario'] for result in results)) == [one.title for one in scenarios]
    tool.main()
    assert len(measured) == 7  # a finished benchmark does not count


def test_the_pages_contain_the_tables_of_the_last_run():
    results = json.loads((REPOSITORY / 'docs' / 'benchmark.json').read_text())
    for part, shown in (('cost of Weight Standardization', 'ResNet-50 224'), ('the step as a whole', None)):
        for scenario in dict.fromkeys(result['scenario'] for result in results[part]):
            assert markdown(results[part], scenario) in (REPOSITORY / 'docs' / 'benchmark.md').read_text()
            if shown in (scenario, None):
                assert markdown(results[part], scenario) in (REPOSITORY / 'docs' / 'speed.md').read_text()


def test_markdown_leaves_cells_without_measurement_empty():
    def result(mode, form, ratio, peak):
        return {'scenario': 'A', 'mode': mode, 'form': form, 'ratio': ratio, 'low': 0.9, 'high': 1.3, 'seconds': 0.5,
                'peak': peak}

    results = [result('training', 'plain', 1, 2 ** 20), result('training', 'mmws', 1.234, 3 * 2 ** 20),
               result('inference', 'plain', 1, None), result('training', 'mmcv', 2, None)]
    assert markdown([*results, {**results[0], 'scenario': 'B'}], 'A') == (
        '|  | training | memory | inference | memory |\n| --- | --- | --- | --- | --- |\n| plain | 1 |  | 1 |  |\n'
        '| mmws | 1.23 (0.90-1.30) | +2 MiB |  |  |\n| mmcv | 2.00 (0.90-1.30) |  |  |  |\n')


def test_figures_in_sentences_are_from_the_raw_results():
    page = (REPOSITORY / 'docs' / 'speed.md').read_text()
    results = json.loads((REPOSITORY / 'docs' / 'benchmark.json').read_text())['cost of Weight Standardization']
    ratio = {(result['scenario'], result['mode'], result['form']): result['ratio'] for result in results}
    small, large, steps = 'ResNet-50 224', 'ResNet-50 512', 'ResNet-50 224, 8 micro-steps'
    timm = "timm's trick"
    gains = sorted(ratio[network, 'training', 'mmws'] - ratio[network, 'training', timm]
                   for network in (small, large))
    assert f"timm's trick costs {gains[0]:.2f} to {gains[1]:.2f} less than mmws" in page
    assert (f"With 8 passes per update mmws has {ratio[steps, 'training', 'mmws']:.2f}, "
            f"timm's trick {ratio[steps, 'training', timm]:.2f}.") in page
    for mode, text in ('training', '{:.2f} times the compiled plain'), ('inference', 'costs {:.2f} times the compiled'):
        assert text.format(ratio[small, mode, 'mmws, compiled'] / ratio[small, mode, 'plain, compiled']) in page


def test_the_shares_of_the_time_have_a_table():
    scenario = replace(TINY, with_shares=True, modes=('training', ))
    results = measure(scenario, 'cpu')
    assert results[1]['shares']['norms'] > results[0]['shares']['norms']  # they include the standardization
    for result in results:
        assert min(result['shares']['convolutions'], result['shares']['the rest']) > 0.02
        assert sum(result['shares'].values()) == pytest.approx(1, abs=0.002)  # each is rounded
    text = markdown(results, scenario.title)
    assert '| share of the time | convolutions | norms | the rest |' in text
    assert f'| mmws | {results[1]["shares"]["convolutions"]:.0%} | ' in text


def test_each_kind_of_kernel_has_its_share():
    norm, x = torch.nn.GroupNorm(2, 4), torch.randn(4, 4, 64, 64)
    conv = torch.nn.Conv2d(4, 4, 3)

    def run():
        conv(x)
        for _ in range(10):
            norm(x).relu()

    run()  # the first run of a kernel takes longer
    assert min(time_shares(run).values()) > 0.02


def test_the_form_without_a_cache_has_layers_without_a_cache():
    net = COST_FORMS['mmws, cache=False'].build('ResNet-50')
    assert {conv.use_cache for conv in net.modules() if isinstance(conv, ConvWS2d)} == {False}
