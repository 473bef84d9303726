import hashlib
import re

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader

from mmws import WSError
from mmws.checkpoint import write_checkpoint
from mmws.checkpoint.authors_imagenet import resnet_shapes
from mmws.openmmlab import weight_hub
from tests.helpers.checkpoints import ONLY_NAMES


@pytest.fixture(scope='module')
def weights():
    """What a ResNet-50 holds, under the toolkit's names."""
    return {key: torch.randn(shape) for key, shape in resnet_shapes(ONLY_NAMES)[1].items()}


def raw(weights, path):
    torch.save({f'module.{key.replace("gn", "bn")}': value for key, value in weights.items()}, path)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder for MMWS_CHECKPOINTS, and as mirror and host local ones, empty to begin with."""
    for name in ('folder', 'mirror', 'host', 'hub'):
        (tmp_path / name).mkdir()
    monkeypatch.setenv(weight_hub.FOLDER, str(tmp_path / 'folder'))
    mirror = f'file://{tmp_path}/mirror/resnet50_gn_ws-15beedd8.pth'
    monkeypatch.setattr(weight_hub, 'get_external_models', lambda: {'jhu/resnet50_gn_ws': mirror})
    monkeypatch.setattr(weight_hub, 'HOST', f'file://{tmp_path}/host/')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path


def load():
    return CheckpointLoader.load_checkpoint('jhu://resnet50_gn_ws', 'cpu')['state_dict']


def assert_loads(weights):
    loaded = load()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(value, loaded[key]) for key, value in weights.items())


@pytest.mark.parametrize('name', ['R-50-GN-WS.pth.tar', 'resnet50_gn_ws.pth', 'resnet50_gn_ws.safetensors'])
def test_the_folder_comes_first_and_the_authors_files_are_converted(name, places, weights, mmdet_scope, monkeypatch):
    if name.endswith('tar'):
        raw(weights, places / 'folder' / name)
    else:
        write_checkpoint(places / 'folder' / name, weights, {})
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda *_: pytest.fail('a download'))
    assert_loads(weights)
    backbone = MODELS.build({'type': 'mmws.ResNet', 'depth': 50, 'init_cfg': {
        'type': 'Pretrained', 'checkpoint': 'jhu://resnet50_gn_ws'}})
    backbone.init_weights()
    assert torch.equal(backbone.layer1[0].gn1.weight, weights['layer1.0.gn1.weight'])


def test_then_the_mirror_then_the_authors_host(places, weights, monkeypatch):
    raw(weights, places / 'host' / 'R-50-GN-WS.pth.tar')
    (places / 'mirror' / 'resnet50_gn_ws-15beedd8.pth').write_text('<html>moved</html>')  # of another hash
    assert_loads(weights)
    assert [path.name for path in (places / 'hub' / 'checkpoints').iterdir()] == ['R-50-GN-WS.pth.tar']
    other = {key: value + 1 for key, value in weights.items()}
    write_checkpoint(places / 'mirror' / 'x.pth', other, {})
    digest = hashlib.sha256((places / 'mirror' / 'x.pth').read_bytes()).hexdigest()
    (places / 'mirror' / 'x.pth').rename(places / 'mirror' / f'resnet50_gn_ws-{digest[:8]}.pth')
    monkeypatch.setattr(weight_hub, 'get_external_models', lambda: {
        'jhu/resnet50_gn_ws': f'file://{places}/mirror/resnet50_gn_ws-{digest[:8]}.pth'})
    assert_loads(other)
    (places / 'mirror' / f'resnet50_gn_ws-{digest[:8]}.pth').unlink()
    assert_loads(other)  # kept


def test_where_no_place_has_it_each_is_named_and_how_to_help_oneself(places):
    with pytest.raises(WSError) as error:
        load()
    for part in (f'the folder {places}/folder', 'mirror/resnet50_gn_ws-15beedd8.pth (', 'host/R-50-GN-WS.pth.tar (',
                 'Get R-50-GN-WS.pth.tar', 'set MMWS_CHECKPOINTS to that folder'):
        assert part in str(error.value)


@pytest.mark.parametrize('beside', [False, True])
def test_a_file_of_another_hash_is_refused(beside, places, weights):
    name = 'R-50-GN-WS.pth.tar' if beside else 'resnet50_gn_ws-15beedd8.pth'
    raw(weights, places / 'folder' / name)
    if beside:
        (places / 'folder' / f'{name}.sha256').write_text(f'{"0" * 64}  {name}\n')
    with pytest.raises(WSError, match=r'has the sha256 [0-9a-f]{64}, where (15beedd8|0{64}) is expected'):
        load()


def test_another_network_or_name_is_refused(places, weights):
    write_checkpoint(places / 'folder' / 'resnet101_gn_ws.pth', weights, {})
    with pytest.raises(WSError, match=r'resnet101_gn_ws\.pth holds resnet50, where jhu://resnet101_gn_ws is asked for'):
        CheckpointLoader.load_checkpoint('jhu://resnet101_gn_ws')
    with pytest.raises(WSError, match="no weights jhu://resnet34_gn_ws: did you mean 'resnet50_gn_ws'"):
        CheckpointLoader.load_checkpoint('jhu://resnet34_gn_ws')


def test_the_toolkit_knows_a_mirror_with_a_hash_of_each():
    known = weight_hub.get_external_models()
    assert all(re.search(r'-[0-9a-f]{8}\.pth$', known[f'jhu/{name}']) for name in weight_hub.AUTHORS)
