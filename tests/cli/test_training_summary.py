import json

import cv2
import numpy as np
import pytest
from mmengine.registry import MODELS

from mmws import WSError
from mmws.cli import training_summary
from mmws.cli.training_summary import compare_pictures, read_scalars, summarize


def write_run(work_dir, name, steps, validation=(), test=None, time=0.5):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    lines = [{'loss': 1 / step, 'time': time, 'step': step} for step in steps]
    lines += [{'coco/bbox_mAP': ap, 'coco/segm_mAP': ap / 2, 'step': step + 0.5} for step, ap in validation]
    lines = [{**line, 'step': int(line['step'])} for line in sorted(lines, key=lambda line: line['step'])]
    text = ''.join(json.dumps(line if 'loss' in line else {**line, 'step': 0}) + '\n' for line in lines)
    (folder / 'scalars.json').write_text(text + '{"cut off')
    if test:
        (work_dir / name / f'{name}.json').write_text(json.dumps(test))


@pytest.mark.parametrize(('model', 'norm', 'weight'), [
    ("dict(type='mmws.X', backbone=dict(norm_cfg=dict(type='BN')))", 'GN', 'ws'),
    ("dict(type='mmws.X', ws=dict(norm='BCN', weight='wn'))", 'BCN', 'wn'),
    ("dict(type='mmws.X', ws=dict(norm='keep'), backbone=dict(norm_cfg=dict(type='mmws.SN')))", 'SN', 'ws'),
    ("dict(type='X', necks=[dict(norm_cfg=dict(type='BN'))])", 'BN', 'plain'),
])
def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path, model, norm, weight):
    write_run(tmp_path, '2026_1', [50, 100, 150, 200], [(100, 0.1), (200, 0.9)], time=1.0)
    write_run(tmp_path, '2026_2', [150, 200, 250], [(200, 0.2)])
    write_run(tmp_path, '2026_3', [], test={'coco/bbox_mAP': 0.3, 'coco/segm_mAP': 0.25})
    (tmp_path / 'config.py').write_text(f'model = {model}\ntrain_dataloader = dict(batch_size=1)\n')
    assert summarize(tmp_path) == json.loads((tmp_path / 'summary.json').read_text()) == {
        'box_ap': 0.3, 'mask_ap': 0.25, 'steps': 250, 'images_per_step': 1, 'train_seconds': 100 * 1.0 + 150 * 0.5,
        'norm': norm, 'weight': weight, 'ws': weight == 'ws'}
    _, validation = read_scalars(tmp_path)
    assert [(line['step'], line['coco/bbox_mAP']) for line in validation] == [(100, 0.1), (200, 0.2)]
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_missing_inputs_are_named(tmp_path):
    with pytest.raises(WSError, match=r'no .*scalars\.json with training steps; train there first'):
        summarize(tmp_path)
    write_run(tmp_path, '2026_1', [50])
    with pytest.raises(WSError, match='has no config'):
        summarize(tmp_path)
    (tmp_path / 'config.py').write_text("model = dict(type='FCOS')\ntrain_dataloader = dict(batch_size=1)")
    with pytest.raises(WSError, match=r'no result of a test; run tools/test\.py first'):
        summarize(tmp_path)


def test_a_classifier_on_several_gpus(tmp_path):
    write_run(tmp_path, '2026_1', [50])
    write_run(tmp_path, '2026_2', [100], test={'accuracy/top1': 75.5, 'accuracy/top5': 92.25})
    write_run(tmp_path, '2026_3', [], test={'accuracy/top1': 75.5, 'accuracy/top5': 92.25})
    for name, gpus in (('2026_1', 2), ('2026_2', 8), ('2026_3', 1)):
        (tmp_path / name / f'{name}.log').write_text(f'INFO - \nRuntime environment:\n    GPU number: {gpus}\n')
    (tmp_path / 'config.py').write_text("model = dict(type='mmws.X')\ntrain_dataloader = dict(batch_size=4)\n"
                                        "optim_wrapper = dict(accumulative_counts=3)\n")
    summary = summarize(tmp_path)
    assert {'top1': 0.755, 'top5': 0.9225, 'images_per_step': 4 * 8 * 3}.items() <= summary.items()


def test_replaced_pretrained_weights_are_named(tmp_path, mmdet_scope, log):
    init_cfg = {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50'}
    MODELS.build({'type': 'mmws.ResNet', 'depth': 50, 'init_cfg': init_cfg})
    write_run(tmp_path, '2026_1', [50], test={'mIoU': 50})
    (tmp_path / '2026_1' / '2026_1.log').write_text('\n'.join(log))
    (tmp_path / 'config.py').write_text("model = dict(type='mmws.X')\ntrain_dataloader = dict(batch_size=4)\n")
    assert summarize(tmp_path)['replaced_weights'] == {'torchvision://resnet50': 'open-mmlab://jhu/resnet50_gn_ws'}


def write_pictures(work_dir, model, shade, names=('a', 'b')):
    """Write the toolkit's pictures: ground truth, here white, beside the prediction, here grey."""
    (work_dir / 'pictures' / 'run').mkdir(parents=True)
    (work_dir / 'config.py').write_text(f'model = {model}\ntrain_dataloader = dict(batch_size=1)\n')
    for name in names:
        picture = np.full((20, 40, 3), 255, np.uint8)
        picture[:, 20:] = shade
        cv2.imwrite(str(work_dir / 'pictures' / 'run' / f'{name}.png'), picture)


def test_pictures_of_two_trainings_side_by_side(tmp_path):
    write_pictures(tmp_path / 'x', "dict(type='mmws.X')", 100)
    write_pictures(tmp_path / 'y', "dict(type='X', neck=dict(norm_cfg=dict(type='BN')))", 50)
    picture = cv2.imread(str(compare_pictures([tmp_path / 'x', tmp_path / 'y'])))
    height, width, _ = picture.shape
    columns = [picture[height // 2 + height // 5, width * (2 * column + 1) // 6, 0] for column in range(3)]
    assert columns == [255, 100, 50]


def test_the_pictures_are_spread_over_all(tmp_path):
    """Neighbors may be frames of one video."""
    write_pictures(tmp_path, "dict(type='mmws.X')", 100, names='abcdefgh')
    assert [path.stem for path in training_summary._pictures(tmp_path, 4)] == ['a', 'c', 'e', 'g']
    assert len(training_summary._pictures(tmp_path, 9)) == 8


def test_pictures_of_other_images_are_refused(tmp_path):
    write_pictures(tmp_path / 'x', "dict(type='mmws.X')", 100)
    write_pictures(tmp_path / 'y', "dict(type='X')", 50, names=('a', 'c'))
    with pytest.raises(WSError, match=r'y/pictures/run/b\.png not found; test .*y on the same images as'):
        compare_pictures([tmp_path / 'x', tmp_path / 'y'])
    with pytest.raises(WSError, match=r'has no pictures; run tools/test\.py with --show-dir'):
        compare_pictures([tmp_path, tmp_path / 'x'])
