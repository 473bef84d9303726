import pytest
from mmengine.config import Config

from mmws import WSError
from mmws.cli import check_data
from mmws.cli.check_data import check_content, check_files, missing_files
from tests.helpers.versions import needs_package

needs_split = needs_package('mmpretrain', '1.0.0', "ImageNet's split")


def test_missing_files_of_wrapped_datasets_are_found_but_not_of_remote_ones(tmp_path):
    (tmp_path / 'there.json').touch()
    inner = {'pipeline': [], 'data_root': str(tmp_path), 'ann_file': 'there.json', 'data_prefix': {'img': 'images/'}}
    remote = {**inner, 'ann_file': 'remote.json', 'backend_args': {'backend': 'petrel'}}
    config = Config({'loader': {'dataset': {'type': 'RepeatDataset', 'dataset': {'datasets': [inner, remote]}}}})
    assert missing_files(config, ('loader', 'no_such_loader')) == [tmp_path / 'images']


def test_the_error_says_how_to_get_the_data():
    dataset = {'pipeline': [], 'data_root': 'data/VOCdevkit/VOC2012', 'ann_file': 'ImageSets/Segmentation/train.txt'}
    config = Config({'loader': {'dataset': dataset}})
    with pytest.raises(WSError, match=r'Segmentation/train\.txt, which does not exist; get VOC 2012 from'):
        check_files(config, ['loader'])


def imagenet(folder, split, kind='ImageNet', **arguments):
    """Return a config with a dataset of mmpretrain that names `data_root` alone."""
    dataset = {'type': kind, 'data_root': str(folder), 'split': split, 'pipeline': [], **arguments}
    return Config({'default_scope': 'mmpretrain', 'train_dataloader': {'dataset': dataset}})


def make_folders(folder, classes, images=2):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(images):
            (folder / name / f'{index}.jpg').touch()


@needs_split
def test_imagenet_is_checked_though_its_config_names_only_data_root_and_split(tmp_path):
    make_folders(tmp_path / 'imagenet' / 'train', 'ab')
    config, loaders = imagenet(tmp_path / 'imagenet', 'val'), ['train_dataloader']
    with pytest.raises(WSError, match=r'imagenet/val, which does not exist; get ImageNet 2012 from https'):
        check_files(config, loaders)
    config = imagenet(tmp_path / 'imagenet', 'train')
    check_files(config, loaders)
    with pytest.raises(WSError, match=r'cannot load the ImageNet of .*imagenet/train: .*subfolders \(2\).*\(1000\)'):
        check_content(config, loaders)
    config.train_dataloader.dataset.metainfo = {'classes': ('a', 'b')}
    check_content(config, loaders)


@needs_split
def test_imagenets_annotation_file_is_checked(tmp_path):
    make_folders(tmp_path / 'train', 'a')
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta' / 'train.txt').write_text('a/0.jpg 0\na/7.jpg 1\n')
    config, loaders = imagenet(tmp_path, 'train'), ['train_dataloader']
    check_files(config, loaders)
    with pytest.raises(WSError, match=r'meta/train\.txt: 1 of 2 files do not exist, such as .*train/a/7\.jpg'):
        check_content(config, loaders)


@needs_split
def test_a_large_folder_is_not_listed_and_a_dataset_that_downloads_may_be_missing(tmp_path, monkeypatch):
    make_folders(tmp_path / 'train', 'ab', images=3)
    monkeypatch.setattr(check_data, 'MANY', 5)
    check_content(imagenet(tmp_path, 'train'), ['train_dataloader'])
    config = imagenet(tmp_path / 'cifar', 'train', 'CIFAR10')
    check_files(config, ['train_dataloader'])
    check_content(config, ['train_dataloader'])
    config = imagenet(tmp_path / 'cifar', 'train', 'CIFAR10', download=False)
    with pytest.raises(WSError, match='cifar, which does not exist'):
        check_files(config, ['train_dataloader'])
