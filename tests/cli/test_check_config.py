import pytest
from mmengine.config import Config

from mmws import WSError
from mmws.cli.check_config import check_classes


@pytest.mark.parametrize(('scope', 'dataset', 'model', 'message'), [
    ('mmdet', {'type': 'CocoDataset'}, {'bbox_head': {'num_classes': 3}},
     'bbox_head.num_classes is 3, but CocoDataset in loader has 80 classes: person, bicycle, .*; make num_classes'),
    ('mmdet', {'type': 'CocoDataset', 'metainfo': {'classes': ['a', 'b']}},
     {'roi_head': {'bbox_head': [{'num_classes': 2}, {'num_classes': 80}]}}, 'roi_head.bbox_head.num_classes is 80'),
    ('mmseg', {'type': 'PascalVOCDataset'}, {'decode_head': {'num_classes': 21}, 'auxiliary_head': {'num_classes': 19}},
     'auxiliary_head.num_classes is 19, but PascalVOCDataset in loader has 21 classes: background, aeroplane'),
])
def test_wrong_num_classes_is_refused(scope, dataset, model, message):
    loader = {'dataset': {**dataset, 'pipeline': [], 'ann_file': ''}}
    config = Config({'default_scope': scope, 'model': model, 'loader': loader})
    with pytest.raises(WSError, match=message):
        check_classes(config, 'loader')


def test_correct_num_classes_and_unknown_classes_pass():
    for dataset in ({'type': 'CocoDataset', 'metainfo': {'classes': ['a']}}, {'type': 'BaseDetDataset'}):
        config = Config({'default_scope': 'mmdet', 'model': {'bbox_head': {'num_classes': 1}},
                         'loader': {'dataset': {**dataset, 'pipeline': [], 'ann_file': ''}}})
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
