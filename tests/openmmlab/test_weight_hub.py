import hashlib
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

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
    """Return the weights of a ResNet-50 with the toolkit's names."""
    return {key: torch.randn(shape) for key, shape in resnet_shapes(ONLY_NAMES)[1].items()}


def save_in_authors_format(weights, path):
    torch.save({f'module.{key.replace("gn", "bn")}': value for key, value in weights.items()}, path)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Set up empty local folders for MMWS_CHECKPOINTS, the mirror, the host and the download cache."""
    for name in ('folder', 'mirror', 'host', 'hub'):
        (tmp_path / name).mkdir()
    monkeypatch.setenv(weight_hub.FOLDER_VARIABLE, str(tmp_path / 'folder'))
    monkeypatch.delenv('MMWS_SHA256', raising=False)
    mirror = f'file://{tmp_path}/mirror/resnet50_gn_ws-15beedd8.pth'
    monkeypatch.setattr(weight_hub, 'get_external_models', lambda: {'jhu/resnet50_gn_ws': mirror})
    monkeypatch.setattr(weight_hub, 'HOST', f'file://{tmp_path}/host/')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path


def load():
    return CheckpointLoader.load_checkpoint('open-mmlab://jhu/resnet50_gn_ws', 'cpu')['state_dict']


def assert_loads(weights):
    loaded = load()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(value, loaded[key]) for key, value in weights.items())


@pytest.mark.parametrize('name', ['R-50-GN-WS.pth.tar', 'resnet50_gn_ws.pth', 'resnet50_gn_ws.safetensors'])
def test_the_folder_is_first_and_the_authors_files_are_converted(name, sources, weights, mmdet_scope, monkeypatch):
    if name.endswith('tar'):
        save_in_authors_format(weights, sources / 'folder' / name)
    else:
        write_checkpoint(sources / 'folder' / name, weights, {})
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda *_: pytest.fail('unexpected download'))
    assert_loads(weights)
    backbone = MODELS.build({'type': 'mmws.ResNet', 'depth': 50, 'init_cfg': {
        'type': 'Pretrained', 'checkpoint': 'open-mmlab://jhu/resnet50_gn_ws'}})
    backbone.init_weights()
    assert torch.equal(backbone.layer1[0].gn1.weight, weights['layer1.0.gn1.weight'])


def test_the_mirror_is_second_and_the_authors_host_third(sources, weights, monkeypatch):
    save_in_authors_format(weights, sources / 'host' / 'R-50-GN-WS.pth.tar')
    (sources / 'mirror' / 'resnet50_gn_ws-15beedd8.pth').write_text('<html>moved</html>')  # wrong hash
    assert_loads(weights)
    assert [path.name for path in (sources / 'hub' / 'checkpoints').iterdir()] == ['R-50-GN-WS.pth.tar']
    other = {key: value + 1 for key, value in weights.items()}
    write_checkpoint(sources / 'mirror' / 'x.pth', other, {})
    digest = hashlib.sha256((sources / 'mirror' / 'x.pth').read_bytes()).hexdigest()
    (sources / 'mirror' / 'x.pth').rename(sources / 'mirror' / f'resnet50_gn_ws-{digest[:8]}.pth')
    monkeypatch.setattr(weight_hub, 'get_external_models', lambda: {
        'jhu/resnet50_gn_ws': f'file://{sources}/mirror/resnet50_gn_ws-{digest[:8]}.pth'})
    assert_loads(other)
    (sources / 'mirror' / f'resnet50_gn_ws-{digest[:8]}.pth').unlink()
    assert_loads(other)  # cached


def test_the_message_names_all_sources_that_were_tried(sources):
    with pytest.raises(WSError) as error:
        load()
    for part in (f'the folder {sources}/folder', 'mirror/resnet50_gn_ws-15beedd8.pth (', 'host/R-50-GN-WS.pth.tar (',
                 'Get R-50-GN-WS.pth.tar', 'set MMWS_CHECKPOINTS to it', 'tools/transplant.py'):
        assert part in str(error.value)


@pytest.mark.parametrize('hash_file', [False, True])
def test_a_file_with_a_wrong_hash_is_refused(hash_file, sources, weights):
    name = 'R-50-GN-WS.pth.tar' if hash_file else 'resnet50_gn_ws-15beedd8.pth'
    save_in_authors_format(weights, sources / 'folder' / name)
    if hash_file:
        (sources / 'folder' / f'{name}.sha256').write_text(f'{"0" * 64}  {name}\n')
    with pytest.raises(WSError, match=r'expected sha256 (15beedd8|0{64}), got [0-9a-f]{64}; delete'):
        load()


@pytest.mark.parametrize('text', ['', '\n', 'resnet50', '15beedd8'])
def test_an_empty_or_malformed_hash_does_not_pass(text, sources, weights, monkeypatch):
    path = sources / 'folder' / 'R-50-GN-WS.pth.tar'
    save_in_authors_format(weights, path)
    monkeypatch.setenv('MMWS_SHA256', text)
    with pytest.raises(WSError, match=r'MMWS_SHA256: expected a sha256 of 64 hexadecimal digits, got '):
        load()
    path.with_name(f'{path.name}.sha256').write_text(text)
    with pytest.raises(WSError, match=r'R-50-GN-WS\.pth\.tar\.sha256: expected a sha256 of 64 hex'):
        load()


@pytest.fixture
def plain_http(sources, monkeypatch):
    """Serve the folder of the host by plain HTTP."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(sources / 'host'))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        monkeypatch.setattr(weight_hub, 'HOST', f'http://127.0.0.1:{server.server_port}/')
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def test_a_download_by_plain_http_warns_unless_its_hash_is_known(plain_http, sources, weights, monkeypatch, log):
    save_in_authors_format(weights, sources / 'host' / 'R-50-GN-WS.pth.tar')
    digest = hashlib.sha256((sources / 'host' / 'R-50-GN-WS.pth.tar').read_bytes()).hexdigest()
    for _ in range(2):  # downloaded, cached
        log.clear()
        assert_loads(weights)
        (line,) = [line for line in log if line.startswith('WARNING')]
        assert 'by plain HTTP, and its hash is not known' in line
        assert f'sha256, {digest}, is right, set MMWS_SHA256' in line
    log.clear()
    monkeypatch.setenv('MMWS_SHA256', digest)
    assert_loads(weights)
    monkeypatch.delenv('MMWS_SHA256')
    (sources / 'hub' / 'checkpoints' / 'R-50-GN-WS.pth.tar.sha256').write_text(f'{digest}  R-50-GN-WS.pth.tar\n')
    assert_loads(weights)
    assert not any(line.startswith('WARNING') for line in log)
    monkeypatch.setenv('MMWS_SHA256', '0' * 64)
    (sources / 'hub' / 'checkpoints' / 'R-50-GN-WS.pth.tar.sha256').unlink()
    with pytest.raises(WSError, match=f'expected sha256 0{{64}}, got {digest}'):
        load()


def test_another_network_and_an_unknown_name_are_refused(sources, weights):
    write_checkpoint(sources / 'folder' / 'resnet101_gn_ws.pth', weights, {})
    message = r'resnet101_gn_ws\.pth: expected weights for open-mmlab://jhu/resnet101_gn_ws, got weights of resnet50'
    with pytest.raises(WSError, match=message):
        CheckpointLoader.load_checkpoint('open-mmlab://jhu/resnet101_gn_ws')
    with pytest.raises(WSError, match=r'unknown weights .*resnet34_gn_ws: did you mean .*resnet50_gn_ws'):
        CheckpointLoader.load_checkpoint('open-mmlab://jhu/resnet34_gn_ws')


def test_the_toolkit_has_a_mirror_with_a_hash_for_each_file():
    known = weight_hub.get_external_models()
    assert all(re.search(r'-[0-9a-f]{8}\.pth$', known[f'jhu/{network}_gn_ws']) for network in weight_hub.AUTHORS_FILES)
