"""Datasets that cannot be trained on, through tools/train.py: refused before anything is written."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.commands import REPOSITORY, refusal, tool_error

DEMO = REPOSITORY / 'configs' / 'demo'
DIGITS = Path('data/digits')
ANNOTATIONS = DIGITS / 'annotations' / 'train.json'
CLASSES = 'the classes 0, 1, 2, 3, 4'


@pytest.fixture(autouse=True)
def folder(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits, DIGITS)


def with_content(change):
    """Change what the annotation file holds."""
    def rewrite():
        ANNOTATIONS.write_text(json.dumps(change(json.loads(ANNOTATIONS.read_text()))))
    return rewrite


def without(part, key):
    return with_content(lambda content: content | {
        part: [{name: value for name, value in one.items() if name != key} for one in content[part]]})


def with_each(part, **values):
    return with_content(lambda content: content | {part: [one | values for one in content[part]]})


def remove(pattern):
    def delete():
        for path in DIGITS.glob(pattern):
            path.unlink()
    return delete


def a_folder():
    ANNOTATIONS.unlink()
    ANNOTATIONS.mkdir()


READ = r'train_dataloader: CocoDataset of data/digits/annotations/train\.json cannot be used: '
HOLDS = r'annotations/train\.json holds no object of '
DETECTION = {
    'cut off': (lambda: ANNOTATIONS.write_bytes(ANNOTATIONS.read_bytes()[:999]), f'{READ}JSONDecodeError'),
    'empty': (lambda: ANNOTATIONS.write_text(''), f'{READ}JSONDecodeError: Expecting value: line 1 column 1'),
    'a web page': (lambda: ANNOTATIONS.write_text('<html>'), f'{READ}JSONDecodeError'),
    'bytes': (lambda: ANNOTATIONS.write_bytes(b'\x89PNG'), f'{READ}UnicodeDecodeError'),
    'a folder': (a_folder, f'{READ}IsADirectoryError'),
    'a list': (with_content(lambda content: [content]), f'{READ}AssertionError: annotation file format'),
    'without images': (with_content(lambda content: content | {'images': []}), f'{READ}it holds no image'),
    'without the key images': (with_content(lambda content: {'categories': content['categories']}), READ),
    'without categories': (with_content(lambda content: {'images': content['images']}), READ),
    'without annotations': (with_content(lambda content: content | {'annotations': []}), HOLDS + CLASSES),
    'of other images': (with_each('annotations', image_id=99), HOLDS),
    'of other categories': (with_each('annotations', category_id=99), HOLDS),
    'with other names': (with_each('categories', name='digit'), r'train\.json has 0 of the 10 classes 0, 1, 2, 3, 4, '),
    'with one name spelt otherwise': (with_content(lambda content: content | {'categories': [
        one | {'name': one['name'].replace('3', 'three')} for one in content['categories']]}), 'has 9 of the 10 cla'),
    'without boxes': (without('annotations', 'bbox'), f'{READ}KeyError: bbox'),
    'with boxes of three numbers': (with_each('annotations', bbox=[1, 2, 3]), f'{READ}ValueError: not enough values'),
    'without the names of the images': (without('images', 'file_name'), f'{READ}KeyError: file_name'),
    'with an image that is not there': (remove('images/train/000003.jpg'),
                                        r'names 1 of 6 files that are not there, such as .*images/train/000003\.jpg'),
    'with no image there': (remove('images/train/*'), r'names 6 of 6 files that are not there'),
    'with an image to validate on that is not there': (remove('images/val/000001.jpg'),
                                                       r'val_dataloader: .*/val\.json names 1 of 3 files'),
}


@pytest.mark.parametrize(('spoil', 'message'), DETECTION.values(), ids=DETECTION.keys())
def test_annotations_that_cannot_be_trained_on_are_named(spoil, message):
    spoil()
    assert re.search(message, refusal('train.py', str(DEMO / 'mask_rcnn_r18_gnws_digits.py')))


def rename_images():
    for path in DIGITS.glob('images/train/*'):
        path.rename(path.with_suffix('.jpeg'))


SEGMENTATION = {
    'a mask that is not there': (remove('masks/train/000003.png'),
                                 r'names 1 of 12 files that are not there, such as .*masks/train/000003\.png'),
    'no mask': (remove('masks/train/*'), r'names 6 of 12 files that are not there'),
    'no image': (remove('images/train/*'), r'BaseSegDataset of .*images/train cannot be used: it holds no image'),
    'images of another ending': (rename_images, 'cannot be used: it holds no image'),
    'no folder of masks': (lambda: shutil.rmtree(DIGITS / 'masks'), 'needs data/digits/masks/train, which is not'),
}


@pytest.mark.parametrize(('spoil', 'message'), SEGMENTATION.values(), ids=SEGMENTATION.keys())
def test_maps_that_cannot_be_trained_on_are_named(spoil, message):
    spoil()
    assert re.search(message, refusal('train.py', str(DEMO / 'deeplabv3_r18_gnws_digits.py')))


@pytest.mark.parametrize(('files', 'content', 'workers', 'message'), [
    ('images/train/*', b'no picture', 0, r'AssertionError: failed to load image: .*images/train/00000\d\.jpg'),
    ('masks/train/*', b'no picture', 1, r'(PIL\.)?UnidentifiedImageError: cannot identify image file'),
])
def test_a_picture_that_cannot_be_read_ends_the_run_in_one_line(files, content, workers, message):
    """What is found when a worker of the data loader gets there."""
    for path in DIGITS.glob(files):
        path.write_bytes(content)
    options = ['train_cfg.max_iters=1', f'train_dataloader.num_workers={workers}',
               f'train_dataloader.persistent_workers={workers > 0}']
    error = tool_error('train.py', str(DEMO / 'deeplabv3_r18_gnws_digits.py'), '--cfg-options', *options)
    assert re.search(f'^error: {message}', error)


@pytest.mark.parametrize('content', ['{"info": ', '[1]', '"digits"'])
def test_digits_are_not_written_over_what_cannot_be_read(content):
    ANNOTATIONS.write_text(content)
    assert re.search(r'train\.json (is no JSON|holds another dataset: got None)', refusal('make_digits.py'))
