"""Compare placement with a real run for the smallest model of each family; ``make sweep`` checks all models."""

from __future__ import annotations

import csv
import pickle
import platform
import resource
import runpy
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmengine.registry import MODELS
from rich.progress import Progress
from torch import nn

from mmws import WSError
from mmws.conversion import convert
from mmws.conversion.convert import convert_
from mmws.conversion.module_tree import decide_from_tree
from mmws.conversion.placement import Placement
from mmws.experiments import sweep, sweep_library, sweep_models, sweep_run
from mmws.experiments.sweep import Row
from mmws.experiments.sweep_table import COLUMNS, append_rows, read_rows, render, write_table
from mmws.experiments.worker import WorkerPool, keep_memory, release_memory
from mmws.openmmlab.stock_configs import stock_config
from tests.experiments.test_sweep_autograd import scripted_relu
from tests.helpers.commands import REPOSITORY, tool
from tests.helpers.versions import is_older

TOOLKITS = 'mmdet::', 'mmseg::', 'mmpretrain::'
SWEEP = list(csv.DictReader((REPOSITORY / 'docs' / 'sweep.csv').read_text().splitlines()))


def sample() -> list[str]:
    """Return the model with the fewest parameters of each family, that is, of each folder of a toolkit."""
    built = [row for row in SWEEP if row['verdict'] != 'cannot build' and row['config'].startswith(TOOLKITS)]
    smallest = {row['config'].split('/')[0]: row['config']
                for row in sorted(built, key=lambda row: -int(row['parameters']))}
    return sorted(smallest.values())


@pytest.fixture(scope='module')
def rows() -> dict[str, sweep.Row]:
    """Return the row of each config in the sample that the installed toolkits have."""
    with WorkerPool(2, sweep.prepare_sweep_worker) as pool:
        return {row.config: row for row in pool.map(_check, filter(_exists, sample()))}


def _exists(name: str) -> bool:
    try:
        return bool(stock_config(name))
    except WSError:
        return False


def _is_small(name: str) -> bool:
    return next((int(row['parameters']) for row in SWEEP if row['config'] == name), 0) < 30e6


def _check(name: str) -> sweep.Row:
    release_memory(above=1.25)  # two processes and pytest have 4 GiB
    try:
        return sweep.check_placement(name, *sweep_models.read_model(name), whole=_is_small(name))
    except ImportError as error:  # of the config
        return sweep.Row(name, verdict='cannot build', why=str(error.__cause__ or error))


@pytest.mark.parametrize('name', sample())
def test_exactly_the_convs_that_feed_only_norms_are_standardized(rows, name):
    row = rows.get(name)
    if is_older('mmdet', '3.3') and (row is None or row.verdict == 'cannot build'):
        pytest.skip('the config needs mmdet >= 3.3 or mmseg >= 1.2')
    assert row.verdict == 'pass', row.why
    recorded = next(other for other in SWEEP if other['config'] == name)
    assert row.confirmed <= row.converted
    assert (row.confirmed > 0) == (_is_small(name) and int(recorded['confirmed']) > 0)  # branches depend on the values
    assert (row.convs, row.converted, row.norms) == tuple(int(recorded[key]) for key in ('convs', 'converted', 'norms'))
    assert row.backward == (int(recorded['backward']) if _is_small(name) else 0)


def test_the_sample_has_every_family_and_the_hard_ones():
    assert len(sample()) > 140
    hard = ('tridentnet', 'res2net', 'rtmdet', 'ddrnet', 'pidnet', 'soft_teacher', 'bisenetv2', 'segnext', 'dcnv2',
            'lad')
    assert {family for family in hard if not any(f'::{family}/' in name for name in sample())} == set()


def test_the_check_finds_convs_that_the_module_tree_misses(monkeypatch):
    monkeypatch.setattr(convert, 'find_placement', lambda model, inputs: Placement(decide_from_tree(model), set(), {}))
    row = _check('mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py')
    assert row.verdict == 'fail'
    assert 'decode_head.i_head.conv.conv is plain, but only norms consume its output' in row.why


class UsesInTest(nn.Sequential):
    """In a test the output of its convolution has another consumer."""

    def forward(self, x):
        y = super().forward(x)
        return y if self.training else y + self[0](x).mean()


class UsesInScript(nn.Sequential):
    """A function in TorchScript, which the recorder of the conversion does not see, also consumes the output."""

    def forward(self, x):
        y = super().forward(x)
        return y + scripted_relu(self[0](x)).mean()


@pytest.mark.parametrize(('tamper', 'message'), [
    (lambda model: setattr(model.backbone.stem, '__class__', UsesInTest), 'stem.0 is standardized, but not only norms'),
    (lambda model: setattr(model.backbone.stem, '__class__', UsesInScript),
     'stem.0 is standardized, but no norm follows: ReluBackward0'),
    (lambda model: convert.standardize_conv_(model.decode_head.conv_seg), 'conv_seg is standardized, but no norm'),
    (lambda model: setattr(model.backbone.stem[0], '__class__', nn.Conv2d), 'stem.0 is plain, but only norms'),
    (lambda model: setattr(model.decode_head, 'dropout', nn.ReLU()),
     'decode_head.dropout changed from Dropout2d to ReLU'),
    (lambda model: model.backbone.stem.__setitem__(1, nn.BatchNorm2d(32)), 'stem.1 is still a BatchNorm'),
    (lambda model: setattr(model.decode_head.conv_seg, 'bias', nn.Parameter(model.decode_head.conv_seg.bias[:3])),
     'decode_head.conv_seg has parameters of other shapes'),
])
def test_the_check_finds_each_kind_of_mistake(monkeypatch, tamper, message):
    def build(config):
        model = real(config)
        if config['type'].startswith('mmws.'):
            tamper(model)
        return model

    real = MODELS.build
    monkeypatch.setattr(MODELS, 'build', build)
    row = _check('mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    assert row.verdict == 'fail'
    assert message in row.why


def test_a_model_that_cannot_be_built_without_the_prefix_does_not_pass():
    row = sweep.check_placement('broken', 'mmdet', pickle.dumps({'type': 'NoSuchNet'}))
    assert row.verdict == 'cannot build'
    assert 'NoSuchNet is not in the' in row.why


def test_the_tool_writes_the_table_and_prints_errors(tmp_path):
    swept = tool('sweep.py', 'table.csv', '--only', 'pascal_voc/retinanet', '--processes', '1', folder=tmp_path)
    assert swept.returncode == 0, swept.stderr
    table = list(csv.DictReader((tmp_path / 'table.csv').read_text().splitlines()))
    assert [row for row in SWEEP if 'pascal_voc/retinanet' in row['config']] == table
    (tmp_path / 'table.csv').rename(tmp_path / 'again.part.csv')  # as if a run had been interrupted after these rows
    again = tool('sweep.py', 'again.csv', '--only', 'pascal_voc/retinanet', folder=tmp_path)
    assert 'models are in again.part.csv, from a run that was interrupted' in again.stdout
    assert table == list(csv.DictReader((tmp_path / 'again.csv').read_text().splitlines()))
    assert not (tmp_path / 'again.part.csv').exists()
    failed = Row(table[0]['config'], verdict='fail', why='out of memory')
    append_rows(tmp_path / 'third.part.csv', [failed, Row('mmdet::of_another_run')])
    third = tool('sweep.py', 'third.csv', '--only', table[0]['config'], '--processes', '1', folder=tmp_path)
    assert third.returncode == 0, third.stderr  # what failed is checked again; rows of other models stay
    assert list(csv.DictReader((tmp_path / 'third.csv').read_text().splitlines())) == table[:1]
    assert read_rows(tmp_path / 'third.part.csv') == [Row('mmdet::of_another_run')]
    nothing = tool('sweep.py', 'none.csv', '--only', 'nosuchmodel', folder=tmp_path)
    assert nothing.stderr.splitlines()[-1] == "error: no model has 'nosuchmodel' in its name"
    assert not (tmp_path / 'none.csv').exists()


def test_the_networks_of_a_library_are_added_to_the_table(tmp_path):
    pytest.importorskip('timm')
    for names in (('--toolkit', 'mmdet', '--only', 'pascal_voc/retinanet'),
                  ('--library', 'timm', '--only', 'test_efficientnet')):
        swept = tool('sweep.py', 'table.csv', *names, '--processes', '1', folder=tmp_path)
        assert swept.returncode == 0, swept.stderr
    rows = read_rows(tmp_path / 'table.csv')
    assert [row.config.partition('::')[0] for row in rows[:1]] == ['mmdet']
    networks = [row for row in rows if row.config.startswith('timm::')]
    assert {row.verdict for row in networks} == {'pass'}
    assert all(0 < row.confirmed == row.converted < row.convs and not row.unrun for row in networks)
    page = (tmp_path / 'table.md').read_text()
    assert page == render('table.csv', rows)
    assert '## mmdet' in page
    assert f'| timm |{4 * f" {len(networks)} |"}' in page
    (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
    refused = tool('sweep.py', 'other.csv', *names, folder=tmp_path)
    assert 'error: other.csv is not a table of this tool: expected the columns config, ' in refused.stderr


def test_a_network_with_a_mistake_or_without_batch_norm(monkeypatch):
    pytest.importorskip('timm')
    assert sweep_library.check_network('timm::test_vit') is None
    assert sweep_library.check_network('timm::nosuchnet').verdict == 'cannot build'
    monkeypatch.setattr(sweep_library, 'convert_', lambda net, inputs=None: convert_(net, exclude=['*']))
    assert 'is plain, but only norms consume its output' in sweep_library.check_network('timm::test_resnet').why
    monkeypatch.setattr(sweep_library, 'convert_', lambda net, inputs=None: convert_(net, exclude=(
        [] if inputs else ['conv1.0'])))
    assert sweep_library.check_network('timm::test_resnet').why == "other convolutions without inputs: ['conv1.0']"


def test_a_backward_pass_that_fails_is_an_error(monkeypatch):
    def fail(*args):
        raise RuntimeError('no gradient')

    monkeypatch.setattr(torch.autograd, 'backward', fail)
    row = _check('mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    assert (row.verdict, row.why) == ('fail', 'the backward pass failed: RuntimeError: no gradient')


@pytest.mark.parametrize(('own', 'verdict', 'why'), [
    (False, 'pass', 'an output is not finite without mmws either'), (True, 'fail', 'an output is not finite')])
def test_what_is_not_finite_is_an_error_if_it_is_finite_without_mmws(monkeypatch, own, verdict, why):
    def build(config):
        model = real(config)
        if hasattr(model, 'backbone') and (not own or config['type'].startswith('mmws.')):
            model.backbone.stem[0].weight.data.fill_(float('inf'))
        return model

    real = MODELS.build
    monkeypatch.setattr(MODELS, 'build', build)
    monkeypatch.setattr(sweep_models, '_fill_uninitialized_', lambda model: None)
    row = _check('mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    assert (row.verdict, row.why.partition(';')[0]) == (verdict, why)


def test_a_model_without_losses_is_not_run_without_mmws(monkeypatch):
    monkeypatch.setattr(sweep, 'run_losses', lambda *_: pytest.fail('it has no losses'))
    name = 'mmpretrain::eva02/eva02-tiny-p14_headless.py'
    row = sweep.check_placement(name, *sweep_models.read_model(name))
    assert (row.verdict, row.backward) == ('pass', 0)


def test_a_loss_that_fails_after_conversion_alone_is_an_error(monkeypatch):
    monkeypatch.setattr(convert, 'rename_parameters_', lambda model: None)  # the momentum encoder keeps old names
    name = 'mmpretrain::mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py'
    row = sweep.check_placement(name, *sweep_models.read_model(name))
    assert (row.verdict, row.why) == ('fail', 'no loss ran backward, but one does without mmws')
    monkeypatch.undo()
    row = sweep.check_placement(name, *sweep_models.read_model(name))
    assert (row.verdict, row.backward) == ('pass', 1)


def test_a_large_network_is_in_the_table_and_not_checked(monkeypatch):
    pytest.importorskip('timm')
    monkeypatch.setattr(sweep_library, 'LARGEST', 100_000)
    row = sweep_library.check_network('timm::test_resnet')
    assert (row.verdict, row.why) == ('not checked', 'more than 100,000 parameters')
    assert '| 1 | 0 | 0 | 0 |' in render('table.csv', [row])


@pytest.mark.parametrize(('side', 'first'), [(128, 0), (224, 1), (256, 3), (5000, 0)])
def test_sizes_that_a_network_cannot_process_are_left_out(side, first):
    """Sizes below ``side`` pixels fail; if all do, the reason is another one, and all are tried."""
    class Features(nn.Conv2d):
        def extract_feat(self, x):
            return super().forward(x)

    structure = Features(3, 8, side, device='meta')
    assert sweep_run._sizes_from_first_fit(structure) == list(sweep_run.SIZES[first:])
    assert sweep_run._sizes_from_first_fit(nn.Identity()) == list(sweep_run.SIZES)


@pytest.mark.parametrize(('message', 'fits', 'count'), [
    ('roi_pool: implementation for device cpu not found', False, 1), ('no attribute mask', True, 2),
    ('{} is small', True, len(sweep_run.SIZES)), ('input is smaller than kernel', False, len(sweep_run.SIZES))])
def test_a_run_that_fails_for_another_reason_is_not_tried_at_other_sizes(message, fits, count):
    """Equal words mean another reason if the network fits: another mode of it runs."""
    runs = []

    class Failing(nn.Conv2d):
        data_preprocessor = None

        def forward(self, inputs, samples, *, mode):
            runs.append(mode)
            if mode == 'tensor' and fits:
                return super().forward(inputs)
            raise RuntimeError(message.format(inputs.shape))

    net = Failing(3, 8, 1)
    sweep_run.run_on_samples(net, net, 'unknown', 2, whole=True)
    assert runs.count('loss') == count
    runs.clear()
    net.with_head = False
    sweep_run.run_on_samples(net, net, 'unknown', 2, whole=True)
    assert set(runs) - {'predict'} == {'tensor'}


def _new_pages_of_tensors(_):
    faults = []
    for rows in 10, 9, 8, 7:  # an equal tensor may need some bytes more than the freed block has left
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(rows, 5_000_000)  # 20 MB, 4,800 pages a row
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return faults


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_keep_memory_uses_the_same_pages_for_the_next_tensor():
    with WorkerPool(1, keep_memory) as pool:
        faults = next(pool.map(_new_pages_of_tensors, [None]))
    assert sum(faults[1:]) < faults[0] / 10, faults


def test_a_model_of_which_no_convolution_ran_is_not_checked():
    stock, net = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)) for _ in range(2))
    convert_(net)
    sweep.fill_row_(row := Row('mmdet::net'), stock, net, sweep_run.Runs())
    assert (row.verdict, row.why, row.converted, row.unrun) == ('not checked', 'no convolution ran', 1, 1)
    sweep.fill_row_(row := Row('mmdet::net'), stock, net, sweep_run.Runs({net[0]: [net[1]]}))
    assert (row.verdict, row.why) == ('pass', '')


def test_a_network_of_a_fixed_image_size_and_detectors_without_operators(monkeypatch):
    for layer, side, expected in (nn.Linear(200, 2), 200, 200), (nn.Identity(), 200, 128), (nn.Identity(), 64, 64):
        layer.pretrained_cfg = {'input_size': (3, side, side)}
        assert sweep_library._inputs('timm::net', layer.to('meta'))[0].shape == (2, 3, expected, expected)
    monkeypatch.setattr(torch.ops, 'torchvision', None)
    row = sweep_library.check_network('torchvision::fasterrcnn_mobilenet_v3_large_fpn')
    assert (row.verdict, row.why) == (
        'not checked', 'the operators of torchvision do not load with this version of torch')


def test_a_killed_process_costs_no_checked_models(monkeypatch, tmp_path):
    pytest.importorskip('timm')
    script = runpy.run_path(str(REPOSITORY / 'tools' / 'sweep.py'), run_name='sweep')
    broken: Future = Future()
    broken.set_exception(BrokenProcessPool('killed'))
    pool = Mock(submit=lambda *task: broken)
    for sweep_all in script['sweep'], script['sweep_networks']:  # before a row: `cannot build` would be kept
        with pytest.raises(BrokenProcessPool), Progress(disable=True) as progress:
            next(sweep_all(['mmdet::a', 'mmdet::b'], pool, progress))

    def killed(names, pool, progress):
        yield Row('timm::first')
        raise BrokenProcessPool('killed')

    monkeypatch.setitem(script['main'].__globals__, 'sweep_networks', killed)
    monkeypatch.setattr('sys.argv', ['sweep.py', str(tmp_path / 'table.csv'), '--library', 'timm'])
    with pytest.raises(SystemExit, match='killed, probably for lack of memory, or did not start; run the same'):
        script['main']()
    assert read_rows(tmp_path / 'table.part.csv') == [Row('timm::first')]
    assert not (tmp_path / 'table.csv').exists()


def test_a_library_that_is_not_installed_and_a_damaged_table_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sweep_library, 'find_spec', lambda name: None)
    with pytest.raises(WSError, match='--library timm: it is not installed; pip install timm'):
        sweep_library.library_networks('timm')
    table = tmp_path / 'table.csv'
    for row in 'a,many,1,1,1,1,1,,pass,', 'a,1', 'a,1,1,1,1,1,1,9,pass,,more':
        table.write_text(f'{",".join(COLUMNS)}\n{row}\n')
        with pytest.raises(WSError, match=r'damaged at line 2: .*; delete it or choose another name'):
            read_rows(table)


def test_what_is_not_finite_is_named():
    net = nn.Linear(2, 1)
    assert sweep_run.non_finite(net, {'loss': net(torch.ones(2))}) == []
    assert sweep_run.non_finite(net, [net(torch.tensor([1.0, float('inf')]))]) == [
        'an output is not finite', 'the gradient of weight is not finite']


def test_the_page_is_made_from_the_table():
    table = REPOSITORY / 'docs' / 'sweep.csv'
    assert table.with_suffix('.md').read_text() == render('sweep.csv', read_rows(table))


def test_paths_in_table_and_page_are_relative(tmp_path):
    why = f'{Path.cwd()}/b.py is missing'
    write_table(tmp_path / 'table.csv', [Row('mmdet::a.py', verdict='cannot build', why=why)])
    for path in (tmp_path / 'table.csv', tmp_path / 'table.md'):
        assert 'b.py is missing' in path.read_text()
        assert str(Path.cwd()) not in path.read_text()


def test_the_numbers_in_the_page_are_from_the_table():
    page = ' '.join(Path(REPOSITORY / 'docs' / 'placement.md').read_text().split())
    others = {row['config'].partition('::')[0] for row in SWEEP if not row['config'].startswith(TOOLKITS)}
    for scopes in (TOOLKITS, *others):
        rows = [row for row in SWEEP if row['config'].startswith(scopes)]
        passed = sum(row['verdict'] == 'pass' for row in rows)
        built = sum(row['verdict'] in ('pass', 'fail') for row in rows)
        confirmed, converted = (sum(int(row[key]) for row in rows) for key in ('confirmed', 'converted'))
        assert f'{confirmed:,} of {converted:,}' in page
        kind = 'networks' if scopes in sweep_library.LIBRARIES else 'configs'
        assert f'**{passed:,} of {built:,}** {kind}' in page
        unrun, convs, backward = (sum(int(row[key]) for row in rows) for key in ('unrun', 'convs', 'backward'))
        if scopes != TOOLKITS:
            assert f'**{passed:,} of {built:,}** {kind} of {len(rows):,}' in page
            assert f'| {unrun:,} of {convs:,} |' in page
            continue
        assert f'{len(rows):,} stock configs' in page
        assert f'In {backward:,} of them a loss ran backward' in page
        assert f'all but {unrun:,} of their {convs:,} convolutions' in page
        assert f'The other {len(rows) - built} configs do not build' in page
