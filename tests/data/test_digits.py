import filecmp
import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

from mmws import WSError
from mmws.data import digits as module
from mmws.data.digits import make_digits, make_single_digits


def test_boxes_polygons_and_semantic_masks_agree(digits):
    for split, count in {'train': 6, 'val': 3}.items():
        coco = COCO(digits / 'annotations' / f'{split}.json')
        assert len(coco.imgs) == count
        assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list('0123456789')
        for image in coco.imgs.values():
            assert cv2.imread(str(digits / 'images' / split / image['file_name'])).shape == (128, 128, 3)
            semantic = np.zeros((128, 128), np.uint8)
            annotations = coco.loadAnns(coco.getAnnIds(image['id']))
            assert 1 <= len(annotations) <= 5
            for annotation in annotations:
                region = coco.annToMask(annotation)
                x, y, width, height = annotation['bbox']
                assert region.sum() == annotation['area'] > 0
                assert (np.argwhere(region).min(0) == [y, x]).all()
                assert (np.argwhere(region).max(0) + 1 == [y + height, x + width]).all()
                semantic[region > 0] = annotation['category_id']
            mask = (digits / 'masks' / split / image['file_name']).with_suffix('.png')
            assert np.array_equal(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED), semantic)


def test_validation_digits_do_not_occur_in_training(tmp_path, monkeypatch):
    pasted = []
    paste = module._paste
    monkeypatch.setattr(module, '_paste', lambda image, instances, box, digit, *rest: (
        pasted.append(digit.tobytes()), paste(image, instances, box, digit, *rest)))
    make_digits(tmp_path / 'train', train=40, val=0, size=64)
    training = set(pasted)
    pasted.clear()
    make_digits(tmp_path / 'val', train=0, val=40, size=64)
    known = {image.tobytes() for image in load_digits().images}
    assert training
    assert pasted
    assert not training & set(pasted)
    assert training | set(pasted) <= known


def test_the_seed_determines_the_files(digits, tmp_path):
    again = make_digits(tmp_path / 'again', train=6, val=3, size=128)
    other = make_digits(tmp_path / 'other', train=6, val=3, size=128, seed=1)
    names = [str(path.relative_to(digits)) for path in digits.rglob('*') if path.is_file()]
    assert len(names) == 2 * 9 + 2
    assert filecmp.cmpfiles(digits, again, names, shallow=False)[0] == names
    assert filecmp.cmpfiles(digits, other, names, shallow=False)[0] == []


def test_an_incomplete_split_is_written_again_and_a_complete_one_is_kept(tmp_path):
    root = make_digits(tmp_path, train=2, val=1, size=64)
    (root / 'annotations' / 'train.json').unlink()
    image = root / 'images' / 'train' / '000001.jpg'
    image.write_bytes(b'cut')
    val = (root / 'annotations' / 'val.json').stat().st_mtime_ns
    make_digits(tmp_path, train=2, val=1, size=64)
    assert cv2.imread(str(image)) is not None
    assert (root / 'annotations' / 'val.json').stat().st_mtime_ns == val


def test_another_dataset_is_never_overwritten(digits, tmp_path):
    with pytest.raises(WSError, match=r"train\.json contains another dataset: got .*'seed': 0.*, expected .*'seed': 7"):
        make_digits(digits, train=6, val=3, size=128, seed=7)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'train.json').write_text(json.dumps({'images': []}))
    with pytest.raises(WSError, match='contains another dataset: got None'):
        make_digits(tmp_path)


def test_each_single_digit_is_written_once_and_split_as_in_make_digits(tmp_path):
    root, digits = make_single_digits(tmp_path / 'single', size=16), load_digits()
    found = {int(path.stem): path for path in root.glob('*/*/*.png')}
    assert sorted(found) == list(range(len(digits.images)))
    for index in (0, 1499, 1500, 1796):
        assert found[index].parts[-3:-1] == ('val' if index >= 1500 else 'train', str(digits.target[index]))
        image = cv2.imread(str(found[index]), cv2.IMREAD_UNCHANGED)
        assert image.shape == (16, 16)
        small = cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(small.ravel(), digits.images[index].ravel())[0, 1] > 0.97
    assert sum('val' in path.parts for path in found.values()) == 297


def test_complete_single_digits_are_kept_and_another_dataset_is_refused(tmp_path):
    root = make_single_digits(tmp_path, size=8)
    path = next(root.glob('train/*/*.png'))
    path.write_bytes(b'mine')
    make_single_digits(tmp_path, size=8)
    assert path.read_bytes() == b'mine'
    with pytest.raises(WSError, match=r"info\.json contains another dataset: got .*'size': 8.*, expected .*'size': 16"):
        make_single_digits(tmp_path)
