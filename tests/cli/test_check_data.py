import pytest
from mmengine.config import Config

from mmws import WSError
from mmws.cli.check_data import check_files, missing_files


def test_missing_files_of_wrapped_datasets_are_found_but_not_of_remote_ones(tmp_path):
    (tmp_path / 'there.json').touch()
    inner = {'pipeline': [], 'data_root': str(tmp_path), 'ann_file': 'there.json', 'data_prefix': {'img': 'images/'}}
    remote = inner | {'ann_file': 'remote.json', 'backend_args': {'backend': 'petrel'}}
    config = Config({'loader': {'dataset': {'type': 'RepeatDataset', 'dataset': {'datasets': [inner, remote]}}}})
    assert missing_files(config, ('loader', 'no_such_loader')) == [tmp_path / 'images']


def test_the_error_says_how_to_get_the_data():
    dataset = {'pipeline': [], 'data_root': 'data/VOCdevkit/VOC2012', 'ann_file': 'ImageSets/Segmentation/train.txt'}
    config = Config({'loader': {'dataset': dataset}})
    with pytest.raises(WSError, match=r'Segmentation/train\.txt, which does not exist; get VOC 2012 from'):
        check_files(config, ['loader'])
