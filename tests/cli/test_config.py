import logging

import pytest
from mmengine.logging import print_log

from mmws import WSError
from mmws.cli.config import load_config, silence


def test_messages_after_silence_are_logged(log):
    with silence():
        print_log('inside', 'current', logging.WARNING)
    print_log('after', 'current', logging.WARNING)
    assert log == ['WARNING after']


@pytest.mark.parametrize(('base', 'message'), [
    ('mmws::mask_rcnn_r50_gnws.py', r"cannot inherit 'mmws::mask_rcnn_r50_gnws\.py'; write __import__\('mmws'\)\."
     r"stock_config\('mmws::mask_rcnn_r50_gnws\.py'\) in its place in _base_"),
    ('mmws::demo/mask_rcnn_r18_gnws_digits.py', r"write __import__\('mmws'\)\.stock_config\('mmws::demo/mask_rcnn_r18"),
    ('mmws::mask_rcnn_r50_gnw.py', r"_base_ 'mmws::mask_rcnn_r50_gnw\.py': .*did you mean 'mask_rcnn_r50_gnws\.py'"),
    ('mmdet::gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py', r"cannot inherit 'mmdet::gn\+ws/mask-rcnn_r50_fpn_gn-ws"),
    ('mmdet::retinanet/retinanet_r50_fpn_1x_coc.py', r"did you mean 'retinanet/retinanet_r50_fpn_1x_coco\.py'"),
])
def test_a_base_that_mmengine_cannot_inherit_is_one_line_with_the_remedy(base, message, tmp_path):
    (tmp_path / 'base.py').write_text(f'_base_ = [{base!r}]\n')
    (tmp_path / 'config.py').write_text("_base_ = 'base.py'\n")
    with pytest.raises(WSError, match=message):
        load_config(str(tmp_path / 'config.py'))
