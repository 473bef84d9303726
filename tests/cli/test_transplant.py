"""tools/transplant.py as a user runs it, on small networks of the demos."""

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from sklearn.datasets import load_sample_images
from torch import nn

from mmws.checkpoint import read_checkpoint
from mmws.cli.load_model import build_model
from mmws.cli.transplant_data import image_paths
from mmws.cli.transplant_input import warn_of_wrong_input
from tests.helpers.commands import REPOSITORY, contents, run_tool, tool_error
from tests.helpers.models import DEMO, HEADS, SEGMENTATION, small

DETECTION = DEMO / 'mask_rcnn_r18_gnws_digits.py'
NARROW = ['model.neck.in_channels=[8,16,32,64]']


def options_for(path, digits):
    return small(NARROW if path == DETECTION else HEADS, digits)


def as_config(path, options) -> Config:
    config = Config.fromfile(path)
    pairs = dict(option.split('=', 1) for option in options)
    config.merge_from_dict({key: eval(value) if value[0] in '[0123456789' else value for key, value in pairs.items()})
    return config


def batch_norm_model(path, options):
    """Return the network with BatchNorm and the statistics of noise images."""
    config = as_config(path, options)
    config.model.ws = {'norm': 'keep', 'weight': 'plain'}
    torch.manual_seed(0)
    model = build_model(config)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            features = model.extract_feat(torch.randn(2, 3, 128, 128))
            if path == SEGMENTATION:
                model.decode_head(features)
                model.auxiliary_head(features)
            else:
                regions = torch.randn(4, 64, 7, 7)
                model.roi_head.bbox_head(regions)
                model.roi_head.mask_head(torch.randn(4, 64, 14, 14))
    return model


@pytest.fixture
def setup(request, digits, tmp_path):
    path = request.param
    options = options_for(path, digits)
    model = batch_norm_model(path, options)
    torch.save({'meta': {'CLASSES': ('a', )}, 'state_dict': model.state_dict()}, tmp_path / 'bn.pth')
    return path, options, tmp_path


def loaded(path, options, file):
    model = build_model(as_config(path, options))
    model.load_state_dict(read_checkpoint(file).tensors, strict=True)
    return model


@pytest.mark.parametrize('setup', [DETECTION, SEGMENTATION], indirect=True, ids=['mmdet', 'mmseg'])
def test_a_whole_model_is_transplanted(setup, capsys, log):
    path, options, folder = setup
    before = contents(folder)
    with pytest.warns(UserWarning, match='6 images, expected 8 or more'):
        run_tool('transplant.py', str(path), str(folder / 'bn.pth'), str(folder / 'out.pth'), '--cfg-options', *options)
    printed = capsys.readouterr().out
    assert re.search(r'^Transplant with 6 images: \d+ convolutions and \d+ norms fitted, 0 modules not fitted, '
                     r'fit 0\.\d+ on average, relative distance of the outputs \d\.\d\d, both on these images$',
                     printed, re.M), printed
    assert [line for line in log if f"bn.pth gives the whole network. Use {folder}/out.pth with load_from='" in line]
    assert {name: digest for name, digest in contents(folder).items() if name != 'out.pth'} == before
    model = loaded(path, options, folder / 'out.pth')
    assert not any('running_mean' in name for name in model.state_dict())
    about = read_checkpoint(folder / 'out.pth').meta
    assert about['CLASSES'] == ('a', )
    notes = about['transplant']
    assert (notes['source'], notes['part'], notes['left_over'], notes['distilled_steps']) == (
        'bn.pth', 'the whole network', [], 0)
    assert notes['sha256'] == before['bn.pth']
    assert len(notes['images']) == 6
    assert notes['data_preprocessor']['bgr_to_rgb'] is True
    assert notes['data_preprocessor']['mean'] == [123.675, 116.28, 103.53]
    assert all(Path(name).is_file() for name in notes['images'])
    assert notes['report']['fit'].keys() == {name for name, module in model.named_modules()
                                             if isinstance(module, torch.nn.GroupNorm)}


@pytest.mark.parametrize('setup', [DETECTION, SEGMENTATION], indirect=True, ids=['mmdet', 'mmseg'])
def test_a_distillation_improves_the_fit_and_is_not_repeated(setup, capsys):
    path, options, folder = setup
    arguments = [str(path), str(folder / 'bn.pth'), str(folder / 'out.safetensors'), '--distill', '12', '--cfg-options',
                 *options, 'train_dataloader.batch_size=2']
    with pytest.warns(UserWarning, match='6 images'):
        run_tool('transplant.py', *arguments)
    printed = capsys.readouterr().out
    assert re.search(r'distance of the outputs \d\.\d\d \(\d\.\d\d after the distillation\), both on these', printed)
    losses = [float(loss) for loss in re.findall(r'Iter\(train\).* loss: ([\d.]+)', printed)]
    assert len(losses) == 12
    assert sum(losses[-4:]) < sum(losses[:4])
    first = read_checkpoint(folder / 'out.safetensors').tensors
    about = read_checkpoint(folder / 'out.safetensors').meta['transplant']
    assert about['report']['distilled_distance'] < about['report']['distance']
    assert about['distilled_images']['number'] == 6
    assert re.fullmatch('[0-9a-f]{64}', about['distilled_images']['sha256_of_sorted_paths'])
    assert all(Path(name).exists() for name in about['distilled_images']['from'])
    assert len(about['distilled_images']['from']) > 0
    loaded(path, options, folder / 'out.safetensors')
    with pytest.warns(UserWarning, match='6 images'):
        run_tool('transplant.py', *arguments)  # resumes at the last step
    assert 'Iter(train)' not in capsys.readouterr().out
    assert all(torch.equal(tensor, first[name])
               for name, tensor in read_checkpoint(folder / 'out.safetensors').tensors.items())


def caffe_form(weights):
    """Return weights of mmdet's tools/model_converters/detectron2pytorch.py: the statistics are in the affine maps."""
    found = {name: tensor for name, tensor in weights.items() if 'num_batches_tracked' not in name}
    for name in [name[:-len('running_var')] for name in found if name.endswith('running_var')]:
        scale = found[f'{name}weight'] / found[f'{name}running_var'].sqrt()
        found[f'{name}bias'] = found[f'{name}bias'] - scale * found[f'{name}running_mean']
        found[f'{name}weight'] = scale
        found[f'{name}running_mean'] = torch.zeros_like(scale)
        found[f'{name}running_var'] = torch.ones_like(scale)
    return found


@pytest.mark.parametrize('form', [dict, caffe_form], ids=['torchvision', 'caffe'])
@pytest.mark.parametrize('setup', [DETECTION], indirect=True, ids=['mmdet'])
def test_a_backbone_is_transplanted_and_a_config_starts_from_it(setup, form, log):
    path, options, folder = setup
    weights = read_checkpoint(folder / 'bn.pth').tensors
    names = {name[9:]: tensor for name, tensor in weights.items() if name.startswith('backbone.')}
    torch.save({**form(names), 'fc.weight': torch.zeros(2, 2)}, folder / 'torchvision.pth')
    (folder / 'images').mkdir()
    for index in range(9):
        image = np.random.default_rng(index).integers(0, 255, (96, 128, 3), np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{index}.png'), image)
    run_tool('transplant.py', str(path), str(folder / 'torchvision.pth'), str(folder / 'r18.pth'), '--images',
             str(folder / 'images'), '--number', '8', '--cfg-options', *options)
    meta = read_checkpoint(folder / 'r18.pth').meta['transplant']
    assert (meta['part'], meta['left_over'], len(meta['images'])) == ('backbone', ['fc.weight'], 8)
    assert meta['report']['kept'] == {}
    assert [line for line in log if f'torchvision.pth gives the backbone; not used: 1 weights (fc.weight). Use {folder}'
            f"/r18.pth with ws=dict(pretrained='{folder}/r18.pth')" in line]
    model = build_model(as_config(path, [*options, f'model.ws.pretrained={folder / "r18.pth"}']))
    model.init_weights()
    expected = read_checkpoint(folder / 'r18.pth').tensors
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.backbone.state_dict().items())


def test_each_image_counts_once(digits, tmp_path):
    config = as_config(DETECTION, options_for(DETECTION, digits))
    once = image_paths(config, None)
    config.train_dataloader.dataset = {'type': 'RepeatDataset', 'times': 3, 'dataset': config.train_dataloader.dataset}
    assert image_paths(config, None) == once
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'folder.png' / 'a.png').write_bytes(b'')
    assert image_paths(config, tmp_path) == [str(tmp_path / 'folder.png' / 'a.png')]


@pytest.mark.parametrize('setup', [DETECTION], indirect=True, ids=['mmdet'])
def test_a_detector_with_other_classes_gives_its_backbone(setup, log):
    path, options, folder = setup
    classes = {'model.roi_head.bbox_head.num_classes': 3, 'model.roi_head.mask_head.num_classes': 3}
    with pytest.warns(UserWarning, match='6 images'):
        run_tool('transplant.py', str(path), str(folder / 'bn.pth'), str(folder / 'out.pth'), '--cfg-options', *options,
                 *[f'{key}={value}' for key, value in classes.items()])
    assert [line for line in log if re.search(
        r'WARNING .*bn\.pth gives the backbone, because roi_head\.bbox_head\.fc_cls\.weight has shape .*; not used: '
        r'\d+ weights \(neck.*, \.\.\.\)\. Use .* with ws=dict\(pretrained=', line)]


@pytest.mark.parametrize('setup', [SEGMENTATION], indirect=True, ids=['mmseg'])
def test_images_of_several_sizes(setup, log):
    """mmseg's preprocessor does not pad: the most common size counts."""
    path, options, folder = setup
    (folder / 'images').mkdir()
    for index in range(12):
        image = np.random.default_rng(index).integers(0, 255, (96 if index % 4 else 128, 128, 3), np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{index:02d}.png'), image)
    steps = 'dict(type="LoadImageFromFile"), dict(type="Resize", scale=(128, 128), keep_ratio=True)'
    (folder / 'config.py').write_text(f'_base_ = {str(path)!r}\ntest_dataloader = dict(dataset=dict('
                                      f'pipeline=[{steps}, dict(type="PackSegInputs")]))')
    tool = ['transplant.py', str(folder / 'config.py'), str(folder / 'bn.pth'), str(folder / 'out.pth'), '--images',
            str(folder / 'images'), '--distill', '3', '--cfg-options', *options, 'train_dataloader.batch_size=3']
    run_tool(*tool)
    used = read_checkpoint(folder / 'out.pth').meta['transplant']['images']
    assert [int(Path(name).stem) for name in used] == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert [line for line in log if '9 images instead of 64: they are large, or of several sizes' in line]
    assert len(list((folder / 'out.pth.distill').iterdir())) == 1
    run_tool(*[*tool[:6], '--number', '8', *tool[6:]])  # another transplant is not resumed
    assert len(list((folder / 'out.pth.distill').iterdir())) == 2


@pytest.mark.parametrize('setup', [DETECTION], indirect=True, ids=['mmdet'])
def test_exchanged_channels_are_reported(setup, log):
    path, options, folder = setup
    (folder / 'red').mkdir()
    for index in range(8):
        image = np.random.default_rng(index).integers(0, 60, (128, 128, 3), np.uint8) + np.uint8([0, 60, 190])
        cv2.imwrite(str(folder / 'red' / f'{index}.png'), image)
    tool = ['transplant.py', str(path), str(folder / 'red.pth'), str(folder / 'out.pth'), '--images',
            str(folder / 'red'), '--cfg-options', *options]
    config = as_config(path, options)
    config.model.ws = {'norm': 'keep', 'weight': 'plain'}
    model = build_model(config)
    images = [torch.from_numpy(cv2.imread(str(file))).permute(2, 0, 1) for file in sorted((folder / 'red').iterdir())]
    with torch.no_grad():
        model.train()
        for _ in range(30):
            model.extract_feat(model.data_preprocessor({'inputs': images})['inputs'])
    torch.save(model.state_dict(), folder / 'red.pth')
    run_tool(*tool)
    assert not [line for line in log if 'red and blue' in line]
    run_tool(*tool, f'model.data_preprocessor.bgr_to_rgb={not config.model.data_preprocessor.bgr_to_rgb}')
    assert [line for line in log if line.startswith('WARNING') and 'fit images with red and blue exchanged better' in
            line and 'Set mean, std and bgr_to_rgb of data_preprocessor' in line]


def photos():
    """Return 64 crops of two photos in evening light, in RGB from 0 to 255."""
    corners = np.random.default_rng(0).integers(0, 290, (64, 2))
    crops = [load_sample_images().images[index % 2][y:y + 128, x:x + 128] for index, (y, x) in enumerate(corners)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) * torch.tensor([1, 0.7, 0.4]).view(3, 1, 1)


MEAN, STD = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]).view(2, 3, 1, 1)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda x: (x - MEAN) / STD, ''),
    (lambda x: (x[:8] - MEAN) / STD, ''),
    (lambda x: (x.flip(1) - MEAN) / STD, r'exchanged better \([\d.]+\) than as they are \([\d.]+\)'),
    (lambda x: x.flip(1) - MEAN.flip(1), 'fit other images than these'),
    (lambda x: x, 'fit other images than these'),
    (lambda x: x / 255, r'fit other images than these: their distance is \d\.?\d*, expected at most 0\.5'),
], ids=['right', 'few', 'exchanged', 'caffe', 'no mean and std', '0 to 1'])
def test_input_that_does_not_fit_is_reported(change, message, log):
    net, images = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64, momentum=None)), photos()
    with torch.no_grad():
        net((images - MEAN) / STD)
    warn_of_wrong_input(net.eval(), change(images), 'bn.pth')
    assert len(log) == bool(message)
    assert all(re.search(f'bn.pth: the statistics of its first BatchNorm .*{message}', line) for line in log)


@pytest.mark.parametrize('setup', [DETECTION], indirect=True, ids=['mmdet'])
def test_bad_input_gives_one_line_and_writes_nothing(setup):
    path, options, folder = setup
    (folder / 'empty').mkdir()
    (folder / 'broken').mkdir()
    (folder / 'broken' / 'a.jpg').write_text('no image')
    stock = folder / 'stock.py'
    stock.write_text(f'_base_ = {str(path)!r}\nmodel = dict(type="MaskRCNN", ws=dict(_delete_=True))')
    model_only = folder / 'model_only.py'
    loaders = [f'{name}_{part} = None' for name in ('train', 'val', 'test') for part in ('dataloader', 'cfg')]
    model_only.write_text('\n'.join([f'_base_ = {str(path)!r}', *loaders, 'val_evaluator = test_evaluator = None']))
    before = contents(folder)

    def error(*arguments, config=path, weights='bn.pth'):
        return tool_error('transplant.py', str(config), str(folder / weights), str(folder / 'out.pth'), *arguments,
                          '--cfg-options', *options)

    assert 'folder' in error('--images', str(folder / 'none'))
    assert 'expected images, got none' in error('--images', str(folder / 'empty'))
    assert 'cannot read the image' in error('--images', str(folder / 'broken'))
    assert "model.type is 'MaskRCNN', expected the prefix 'mmws.'" in error(config=stock)
    assert 'not found' in error(weights='nothing.pth')
    for name, value in (('roi_head.mask_head.convs.1.bn.running_var', -1), ('rpn_head.rpn_cls.weight', math.inf)):
        weights = read_checkpoint(folder / 'bn.pth').tensors
        weights[name].view(-1)[0] = value
        torch.save(weights, folder / 'bad.pth')
        assert f'{name} of the BatchNorm network ' in error(weights='bad.pth')
    (folder / 'bad.pth').unlink()
    assert 'train_dataloader.batch_size: expected' in tool_error(
        'transplant.py', str(path), str(folder / 'bn.pth'), str(folder / 'out.pth'), '--distill', '1', '--cfg-options',
        *options, 'train_dataloader.batch_size=0')
    assert 'model_only.py: expected a dataset with a pipeline' in tool_error(
        'transplant.py', str(model_only), str(folder / 'bn.pth'), str(folder / 'out.pth'), '--images',
        str(folder / 'broken'), '--cfg-options', *[option for option in options if option.startswith('model')])
    torch.save({'meta': {'CLASSES': {'a'}}, 'state_dict': read_checkpoint(folder / 'bn.pth').tensors},
               folder / 'set.pth')
    assert 'cannot write the meta data to .safetensors' in tool_error(
        'transplant.py', str(path), str(folder / 'set.pth'), str(folder / 'out.safetensors'), '--images',
        str(folder / 'broken'), '--cfg-options', *options)  # before the images are read
    (folder / 'set.pth').unlink()
    native = REPOSITORY / 'configs' / 'mask_rcnn_r50_gnws.py'
    assert 'has no BatchNorm to start from' in tool_error(
        'transplant.py', str(native), str(folder / 'bn.pth'), str(folder / 'out.pth'))
    assert 'expected a name that ends in .pth or .safetensors' in tool_error(
        'transplant.py', str(path), str(folder / 'bn.pth'), str(folder / 'out.onnx'))
    assert contents(folder) == before
