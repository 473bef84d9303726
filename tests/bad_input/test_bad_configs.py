"""The tools refuse invalid configs."""

import re
from pathlib import Path

import pytest

from tests.helpers.commands import REPOSITORY, contents, refusal, run_tool, tool, tool_error
from tests.helpers.versions import is_older, needs_package

DETECTION = REPOSITORY / 'configs' / 'demo' / 'mask_rcnn_r18_gnws_digits.py'
BASE = f"_base_ = '{DETECTION}'\n"
# Arguments after the config. The files need not exist: the tools check the config first.
MORE = {'train.py': [], 'report.py': [], 'lr_range.py': [], 'landscape.py': [], 'test.py': ['x.pth'],
        'fold_checkpoint.py': ['x.pth', 'out'], 'export_onnx.py': ['x.pth', 'out.onnx'],
        'publish_model.py': ['x.pth', 'out.pth']}


@pytest.fixture(autouse=True)
def folder(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('data').mkdir()
    Path('data/digits').symlink_to(digits)


READ = 'cannot read this config or one of its bases: '
UNREADABLE = {
    'a syntax error': ('train.py', 'c.py', 'model = dict(\n', rf"^c\.py: {READ}SyntaxError: "),
    'a syntax error in the base': ('report.py', 'c.py', "_base_ = 'base.py'\n", f'{READ}SyntaxError'),
    'a missing base': ('lr_range.py', 'c.py', "_base_ = 'nope.py'\n", rf'{READ}FileNotFoundError.*nope\.py'),
    'a missing stock config': ('test.py', 'c.py', "_base_ = __import__('mmws').stock_config('mmdet::nope.py')\n",
                               r'c\.py: .*/configs has no nope\.py: '),
    'an unknown name': ('fold_checkpoint.py', 'c.py', f'{BASE}x = y\n', f"{READ}NameError: name 'y' is not defined"),
    'a division by zero': ('train.py', 'c.py', 'x = 1 / 0\n', f'{READ}ZeroDivisionError'),
    'a missing module': ('landscape.py', 'c.py', f"{BASE}custom_imports = dict(imports=['nowhere'])\n",
                         READ + ('ImportError: Failed to custom import' if is_older('mmengine', '0.8') else
                                 'ImportError: Failed to import custom modules from .*nowhere')),
    'two bases with the same key': ('train.py', 'c.py', f"_base_ = ['{DETECTION}', '{DETECTION}']\n",
                                    f'{READ}KeyError: Dupl'),
    'broken YAML': ('export_onnx.py', 'c.yaml', 'model: {a: [1\n', f'{READ}ParserError: while parsing a flow seq'),
    'YAML that is a list': ('train.py', 'c.yaml', '- 1\n', f'{READ}AttributeError'),
    'broken JSON': ('publish_model.py', 'c.json', '{"model": ', f'{READ}JSONDecodeError: Expecting value: line 1'),
    'text': ('train.py', 'c.txt', 'model', f'{READ}OSError: Only py/yml/yaml/json type are supported now'),
    'bytes': ('report.py', 'c.py', '\0\1', f'{READ}(SyntaxError|ValueError): source code string cannot contain null'),
    'an empty file': ('test.py', 'c.py', '', r'c\.py has no model'),
    'no model': ('train.py', 'c.py', "default_scope = 'mmdet'\n", r'c\.py has no model'),
    'a model that is a string': ('train.py', 'c.py', "default_scope = 'mmdet'\nmodel = 'MaskRCNN'\n",
                                 r"model: expected a type and its arguments, as in .*, got 'MaskRCNN'"),
    'a model without a type': ('fold_checkpoint.py', 'c.py', "default_scope = 'mmdet'\nmodel = dict(backbone=1)\n",
                               r"model: expected a type and its arguments, .*, got \{'backbone': 1\}"),
    'no scope': ('lr_range.py', 'c.py', f'{BASE}default_scope = None\n', 'c.py has no default_scope; set default'),
    'an unknown scope': ('fold_checkpoint.py', 'c.py', f"{BASE}default_scope = 'mmdett'\n",
                         "default_scope 'mmdett' is not an installed toolkit; did you mean 'mmdet'"),
    'no optimizer': ('train.py', 'c.py', f'{BASE}optim_wrapper = None\n', r'c\.py has no optim_wrapper'),
    'no test data': ('test.py', 'c.py', f'{BASE}test_dataloader = None\n', r'c\.py has no test_dataloader'),
}


@pytest.mark.parametrize(('name', 'file', 'text', 'message'), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_unreadable_config_is_refused(name, file, text, message):
    Path('base.py').write_text('x = (\n')
    Path(file).write_text(text)
    assert re.search(message, refusal(name, file, *MORE[name]))


@pytest.mark.parametrize('name', MORE)
def test_a_folder_is_refused_as_config(name):
    Path('configs').mkdir()
    assert refusal(name, 'configs', *MORE[name]) == 'configs is a folder, expected a config file'


WRONG = {
    'a misspelt type': ("model = dict(type='mmws.MaskRCN')", r"unknown type 'mmws\.MaskRCN'.*'MaskRCNN'"),
    'the prefix only': ("model = dict(type='mmws.')", "expected a type after the prefix, as in 'mmws.MaskRCNN'"),
    'the package as type': ("model = dict(type='mmws')", "expected a type and its arguments.*'type': 'mmws'"),
    'the prefix twice': ("model = dict(type='mmws.mmws.MaskRCNN')", "expected a type and its arguments"),
    'the prefix twice inside': ("model = dict(backbone=dict(type='mmws.mmws.ResNet'))",
                                r"MaskRCNN\.backbone\.type: the prefix is repeated in 'mmws\.mmws\.ResNet'"),
    'the prefix on a dataset': ("model = dict(type='mmws.CocoDataset')", "mmdet has no 'CocoDataset'"),
    'an unknown backbone': ("model = dict(backbone=dict(type='Resnet'))",
                            'cannot build the model: KeyError: Resnet is'),
    'an unknown argument': ('model = dict(backbone=dict(detph=18))',
                            "cannot build the model: TypeError.* argument 'detph'"),
    'an unknown depth': ('model = dict(backbone=dict(depth=19))', 'cannot build the model: KeyError: invalid depth 19'),
    'a backbone that is a string': ("model = dict(backbone='ResNet')",
                                    'cannot build the model: TypeError: cfg should be a dict'),
    'an unknown norm': ("model = dict(backbone=dict(norm_cfg=dict(type='BNN')))", "unknown layer 'BNN'; .*'BN'"),
    'an unknown layer of mmws': ("model = dict(neck=dict(conv_cfg=dict(type='mmws.ConvW')))", "'mmws.ConvW'.*'ConvWS'"),
    'an eps that is a string': ("model = dict(backbone=dict(conv_cfg=dict(type='mmws.ConvWS', eps='1e-5')))",
                                "cannot build the model: ValueError: eps: expected a finite number >= 0, got '1e-5'"),
    'ws without the prefix': ("model = dict(type='MaskRCNN', ws=dict(norm='GN'))", "unexpected keyword argument 'ws'"),
    'other options inside': ("model = dict(backbone=dict(type='mmws.ResNet', ws=dict(norm='IN')))",
                             r'backbone\.ws differs from the ws options of the outer mmws\. prefix'),
    'wrong num_classes': ('model = dict(roi_head=dict(bbox_head=dict(num_classes=80)))',
                          r'bbox_head\.num_classes is 80, but CocoDataset in train_dataloader has 10 classes: .*; '
                          'make num_classes match the dataset'),
    'a number of classes that is a string': ("model = dict(roi_head=dict(mask_head=dict(num_classes='10')))",
                                             r"mask_head\.num_classes is '10', but CocoDataset"),
    'classes that are one string': ("train_dataloader = dict(dataset=dict(metainfo=dict(classes=('digit'))))",
                                    r"metainfo\.classes is the string 'digit'; expected a tuple .* as in \('digit',\)"),
    'an unknown dataset': ("train_dataloader = dict(dataset=dict(type='CoccoDataset'))",
                           r'train_dataloader: cannot load the CoccoDataset of .*train\.json: KeyError: CoccoDataset'),
    'an unknown transform': ("train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImages')]))",
                             'train_dataloader: cannot load the CocoDataset of .*: KeyError: LoadImages is not'),
    'an unknown optimizer': ("optim_wrapper = dict(optimizer=dict(type='SDG'))",
                             "optimizer: unknown type 'SDG'; .*'SGD'"),
    'an unknown hook': ("custom_hooks = [dict(type='EMAHok')]", "custom_hooks: unknown type 'EMAHok'; .*'EMAHook'"),
    'an unknown loop': ("train_cfg = dict(type='IterBasedLoop')",
                        "train_cfg: unknown type 'IterBasedLoop'; did you mean"),
    'an unknown schedule': ("param_scheduler = [dict(type='CosineLR')]",
                            "param_scheduler: unknown type 'CosineLR'; did"),
    'an unknown metric': ("val_evaluator = dict(type='CocoMetrics')", "val_evaluator: unknown type 'CocoMetrics'; "),
    'missing annotations of the evaluator': ("val_evaluator = dict(ann_file='nope.json')",
                                             r'needs nope\.json, which does not exist; '),
    'missing weights': ("load_from = 'nope.pth'", r'checkpoint nope\.pth not found'),
    'a root that is a number': ('train_dataloader = dict(dataset=dict(data_root=3))', r'needs 3/annotations/train'),
}


@pytest.mark.parametrize(('text', 'message'), WRONG.values(), ids=WRONG.keys())
def test_an_invalid_config_is_refused_before_anything_is_written(text, message):
    Path('c.py').write_text(f'{BASE}{text}\n')
    assert re.search(message, refusal('train.py', 'c.py'))


@pytest.mark.parametrize(('name', 'options', 'message'), [
    ('train.py', ['--cfg-options', 'train_cfg.max_iters'], 'expected NAME=VALUE, got train_cfg.max_iters'),
    ('report.py', ['--ws', 'norm'], 'expected NAME=VALUE, got norm'),
    ('report.py', ['--ws', 'exclude=[neck.*,(1]'], r'expected NAME=VALUE, got exclude=\[neck'),
    ('lr_range.py', ['--against', 'model.ws'], 'expected NAME=VALUE, got model.ws'),
    ('lr_range.py', ['--steps', 'many'], "invalid int value: 'many'"),
    ('landscape.py', ['--nope'], 'unrecognized arguments: --nope'),
])
def test_argparse_reports_a_wrong_command_line(name, options, message, capsys):
    with pytest.raises(SystemExit) as error:
        run_tool(name, str(DETECTION), *options)
    assert error.value.code == 2
    assert re.search(f'error: .*{message}', capsys.readouterr().err.splitlines()[-1])


def test_a_mistake_that_only_the_runner_finds_is_one_line():
    """The toolkit itself reports this one, after it started its log."""
    Path('c.py').write_text(f"{BASE}optim_wrapper = dict(optimizer=dict(lr='a'))\n")
    assert re.fullmatch('error: TypeError: .*', tool_error('train.py', 'c.py'))


@needs_package('mmengine', '0.8', 'a config that cannot be read, without a message about a temporary file,')
def test_a_new_process_prints_one_line_and_exits_with_1(tmp_path):
    Path('c.py').write_text('model = dict(\n')
    before = contents(tmp_path)
    result = tool('train.py', 'c.py', folder=tmp_path)
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f'error: c.py: {READ}SyntaxError')
    assert contents(tmp_path) == before
