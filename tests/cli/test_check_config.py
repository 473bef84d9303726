import pytest
from mmengine.config import Config

from mmws import WSError
from mmws.cli.check_config import check_classes, check_data, missing_data


def test_missing_data_is_found_in_wrapped_datasets_and_not_on_servers(tmp_path):
    (tmp_path / 'there.json').touch()
    inner = {'pipeline': [], 'data_root': str(tmp_path), 'ann_file': 'there.json', 'data_prefix': {'img': 'images/'}}
    remote = inner | {'ann_file': 'remote.json', 'backend_args': {'backend': 'petrel'}}
    config = Config({'loader': {'dataset': {'type': 'RepeatDataset', 'dataset': {'datasets': [inner, remote]}}}})
    assert missing_data(config, ('loader', 'no_such_loader')) == [tmp_path / 'images']


def test_what_to_do_about_missing_data_is_said():
    dataset = {'pipeline': [], 'data_root': 'data/VOCdevkit/VOC2012', 'ann_file': 'ImageSets/Segmentation/train.txt'}
    config = Config({'loader': {'dataset': dataset}})
    with pytest.raises(WSError, match=r'Segmentation/train\.txt, which is not there; get VOC 2012 from'):
        check_data(config, ['loader'])


@pytest.mark.parametrize(('scope', 'dataset', 'model', 'message'), [
    ('mmdet', {'type': 'CocoDataset'}, {'bbox_head': {'num_classes': 3}},
     'bbox_head.num_classes is 3, but CocoDataset in loader has 80 classes: person, bicycle'),
    ('mmdet', {'type': 'CocoDataset', 'metainfo': {'classes': ['a', 'b']}},
     {'roi_head': {'bbox_head': [{'num_classes': 2}, {'num_classes': 80}]}}, 'roi_head.bbox_head.num_classes is 80'),
    ('mmseg', {'type': 'PascalVOCDataset'}, {'decode_head': {'num_classes': 21}, 'auxiliary_head': {'num_classes': 19}},
     'auxiliary_head.num_classes is 19, but PascalVOCDataset in loader has 21 classes: background, aeroplane'),
])
def test_a_wrong_number_of_classes_is_named(scope, dataset, model, message):
    loader = {'dataset': dataset | {'pipeline': [], 'ann_file': ''}}
    config = Config({'default_scope': scope, 'model': model, 'loader': loader})
    with pytest.raises(WSError, match=message):
        check_classes(config, 'loader')


def test_a_right_number_and_an_unknown_one_pass():
    for dataset in ({'type': 'CocoDataset', 'metainfo': {'classes': ['a']}}, {'type': 'BaseDetDataset'}):
        config = Config({'default_scope': 'mmdet', 'model': {'bbox_head': {'num_classes': 1}},
                         'loader': {'dataset': dataset | {'pipeline': [], 'ann_file': ''}}})
        check_classes(config, 'loader')
    check_classes(Config({'default_scope': 'mmdet', 'model': {}}), 'loader')
    panoptic = {'roi_head': {'bbox_head': {'num_classes': 80}}, 'panoptic_head': {'num_classes': 133}}
    check_classes(Config({'default_scope': 'mmdet', 'model': panoptic, 'loader':
                          {'dataset': {'type': 'CocoPanopticDataset', 'pipeline': [], 'ann_file': ''}}}), 'loader')
    boundaries = {'auxiliary_head': [{'num_classes': 19}, {'num_classes': 2, 'boundary_threshold': 0.1}]}
    check_classes(Config({'default_scope': 'mmseg', 'model': boundaries, 'loader':
                          {'dataset': {'type': 'CityscapesDataset', 'pipeline': [], 'data_prefix': {}}}}), 'loader')
    open_vocabulary = {'language_model': {'type': 'BertModel'}, 'bbox_head': {'num_classes': 256}}
    check_classes(Config({'default_scope': 'mmdet', 'model': open_vocabulary, 'loader':
                          {'dataset': {'type': 'CocoDataset', 'pipeline': [], 'ann_file': ''}}}), 'loader')
