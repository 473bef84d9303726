import pytest
import torch

from mmws.ops.torch_compat import DETECTS_WRITES, DYNAMIC, NORMALIZE


@pytest.mark.parametrize(('version', 'found'), [
    ('2.1', 'wn' in NORMALIZE), ('2.4', DETECTS_WRITES), ('2.6', DYNAMIC is not None)],
    ids=['weight_norm', 'copy-on-write', 'Dim.DYNAMIC'])
def test_a_name_is_found_from_its_version_on(version, found):
    """Otherwise its tests would be skipped, or the fallback used, without notice."""
    assert found == (torch.__version__ >= version)
