"""tools/train.py refuses invalid datasets before it writes anything."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.commands import REPOSITORY, refusal, tool_error
from tests.helpers.versions import is_older

DEMO = REPOSITORY / 'configs' / 'demo'
DIGITS = Path('data/digits')
ANNOTATIONS = DIGITS / 'annotations' / 'train.json'
CLASSES = 'classes 0, 1, 2, 3, 4, '


@pytest.fixture(autouse=True)
def folder(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits, DIGITS)


def with_content(change):
    """Return a function that changes the content of the annotation file."""
    def rewrite():
        ANNOTATIONS.write_text(json.dumps(change(json.loads(ANNOTATIONS.read_text()))))
    return rewrite


def without(part, key):
    return with_content(lambda content: {
        **content, part: [{name: value for name, value in one.items() if name != key} for one in content[part]]})


def with_each(part, **values):
    return with_content(lambda content: {**content, part: [{**one, **values} for one in content[part]]})


def remove(pattern):
    def delete():
        for path in DIGITS.glob(pattern):
            path.unlink()
    return delete


def replace_by_folder():
    ANNOTATIONS.unlink()
    ANNOTATIONS.mkdir()


READ = r'train_dataloader: cannot load the CocoDataset of data/digits/annotations/train\.json: '
NO_OBJECT = r'annotations/train\.json has no object to train on of the '
DETECTION = {
    'truncated': (lambda: ANNOTATIONS.write_bytes(ANNOTATIONS.read_bytes()[:999]), f'{READ}JSONDecodeError'),
    'empty': (lambda: ANNOTATIONS.write_text(''), f'{READ}JSONDecodeError: Expecting value: line 1 column 1'),
    'a web page': (lambda: ANNOTATIONS.write_text('<html>'), f'{READ}JSONDecodeError'),
    'bytes': (lambda: ANNOTATIONS.write_bytes(b'\x89PNG'), f'{READ}UnicodeDecodeError'),
    'a folder': (replace_by_folder, f'{READ}IsADirectoryError'),
    'a list': (with_content(lambda content: [content]), f'{READ}AssertionError: annotation file format'),
    'without images': (with_content(lambda content: {**content, 'images': []}), f'{READ}it has no images'),
    'without the key images': (with_content(lambda content: {'categories': content['categories']}), READ),
    'without categories': (with_content(lambda content: {'images': content['images']}), READ),
    'without annotations': (with_content(lambda content: {**content, 'annotations': []}), NO_OBJECT + CLASSES),
    'of other images': (with_each('annotations', image_id=99), NO_OBJECT),
    'of other categories': (with_each('annotations', category_id=99), NO_OBJECT),
    'with other names': (with_each('categories', name='digit'), rf'train\.json has only 0 of the 10 {CLASSES}'),
    'with another spelling of a name': (with_content(lambda content: {**content, 'categories': [
        {**one, 'name': one['name'].replace('3', 'three')} for one in content['categories']]}), 'only 9 of the 10 cla'),
    'without boxes': (without('annotations', 'bbox'), f'{READ}KeyError: bbox'),
    'with boxes of three numbers': (with_each('annotations', bbox=[1, 2, 3]), f'{READ}ValueError: not enough values'),
    'without the names of the images': (without('images', 'file_name'), f'{READ}KeyError: file_name'),
    'with a missing image': (remove('images/train/000003.jpg'),
                             r'train\.json: 1 of 6 files do not exist, such as .*images/train/000003\.jpg'),
    'with all images missing': (remove('images/train/*'), r'train\.json: 6 of 6 files do not exist'),
    'with a missing validation image': (remove('images/val/000001.jpg'),
                                        r'val_dataloader: .*/val\.json: 1 of 3 files do not exist'),
}


@pytest.mark.parametrize(('damage', 'message'), DETECTION.values(), ids=DETECTION.keys())
def test_invalid_annotations_are_refused(damage, message):
    damage()
    assert re.search(message, refusal('train.py', str(DEMO / 'mask_rcnn_r18_gnws_digits.py')))


def rename_images():
    for path in DIGITS.glob('images/train/*'):
        path.rename(path.with_suffix('.jpeg'))


SEGMENTATION = {
    'a missing mask': (remove('masks/train/000003.png'),
                       r': 1 of 12 files do not exist, such as .*masks/train/000003\.png'),
    'no mask': (remove('masks/train/*'), r': 6 of 12 files do not exist'),
    'no image': (remove('images/train/*'), r'cannot load the BaseSegDataset of .*images/train: it has no images'),
    'images with another suffix': (rename_images, 'cannot load the BaseSegDataset of .*: it has no images'),
    'no folder of masks': (lambda: shutil.rmtree(DIGITS / 'masks'),
                           'needs data/digits/masks/train, which does not exist'),
}


@pytest.mark.parametrize(('damage', 'message'), SEGMENTATION.values(), ids=SEGMENTATION.keys())
def test_invalid_maps_are_refused(damage, message):
    damage()
    assert re.search(message, refusal('train.py', str(DEMO / 'deeplabv3_r18_gnws_digits.py')))


@pytest.mark.parametrize(('files', 'content', 'workers', 'message'), [
    ('images/train/*', b'no picture', 0,
     "AttributeError: 'NoneType'" if is_older('mmcv', '2.1') else
     r'AssertionError: failed to load image: .*images/train/00000\d\.jpg'),
    ('masks/train/*', b'no picture', 1, r'(PIL\.)?UnidentifiedImageError: cannot identify image file'),
])
def test_an_unreadable_image_ends_the_run_in_one_line(files, content, workers, message):
    """The data loader finds it during the run."""
    for path in DIGITS.glob(files):
        path.write_bytes(content)
    options = ['train_cfg.max_iters=1', f'train_dataloader.num_workers={workers}',
               f'train_dataloader.persistent_workers={workers > 0}']
    error = tool_error('train.py', str(DEMO / 'deeplabv3_r18_gnws_digits.py'), '--cfg-options', *options)
    assert re.search(f'^error: {message}', error)


@pytest.mark.parametrize('content', ['{"info": ', '[1]', '"digits"'])
def test_digits_do_not_overwrite_an_unreadable_dataset(content):
    ANNOTATIONS.write_text(content)
    assert re.search(r'train\.json (is not valid JSON|contains another dataset: got None)', refusal('make_digits.py'))
