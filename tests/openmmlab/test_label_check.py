import numpy as np
import pytest
from mmengine.registry import TRANSFORMS

from mmws import WSError


def test_labels_out_of_range_are_an_error_with_the_file_name():
    check = TRANSFORMS.build({'type': 'mmws.CheckLabels', 'num_classes': 3})
    valid = {'gt_seg_map': np.array([[0, 2], [255, 1]], np.uint8), 'seg_map_path': 'masks/a.png'}
    assert check(valid) is valid
    wrong = {**valid, 'gt_seg_map': np.array([[3, 7], [255, 1]], np.uint8)}
    with pytest.raises(WSError, match=r'masks/a\.png has the labels \[3, 7\]; expected 0 to 2, or 255 for ignored'):
        check(wrong)
