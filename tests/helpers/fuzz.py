"""Random input, valid and invalid. Each attempt gives a correct result or a WSError."""

from __future__ import annotations

import copy
import io
import math
import pickle
import random
import resource
import struct
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from mmengine.registry import MODELS, DefaultScope
from safetensors.torch import save_file
from torch import nn

from mmws import WSError, convert_, fold
from mmws.checkpoint import convert_checkpoint, read_checkpoint, write_checkpoint
from mmws.checkpoint.authors_imagenet import resnet_shapes
from mmws.errors import without_prefix
from tests.helpers.checkpoints import CAFFE2, ONLY_NAMES

MEMORY, SECONDS = 2**28, 60  # limits of one attempt
DTYPES = (torch.half, torch.bfloat16, torch.double, torch.int8, torch.bool, torch.complex64,
          torch.float8_e4m3fn if hasattr(torch, 'uint16') else torch.half)  # torch >= 2.3 can save it
NAMES = ('norm', 'weight', 'num_groups', 'eps', 'exclude', 'include', 'pretrained')

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=4) | st.binary(max_size=3)
    | st.sampled_from([1j, torch.ones(2), np.ones(2), np.float32(1e-5), np.int64(8), nn.ReLU(), print, ..., Counter]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    | st.tuples(inner, inner), max_leaves=6)
globs = st.lists(st.sampled_from(['*', '0', '1*', '[0-9]', 'layer1.*', 'conv1', '*.conv?', '[', '', 'nowhere']),
                 max_size=3) | st.tuples(st.just('*'))
valid = {'norm': st.sampled_from(['GN', 'LN', 'IN', 'SN', 'BCN', 'EstBN', 'keep']),
         'weight': st.sampled_from(['ws', 'wn', 'spectral', 'plain']), 'num_groups': st.integers(1, 2**40),
         'eps': st.floats(0, 1) | st.integers(0, 2), 'exclude': globs, 'include': globs, 'pretrained': st.none()}


@st.composite
def options(draw: st.DrawFn) -> object:
    """Return options of a conversion. Some have a wrong value, a wrong name or a wrong type."""
    if draw(st.integers(0, 19)) == 0:
        return draw(anything)
    chosen = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    made: dict = {name: draw(valid[name] if draw(st.integers(0, 5)) else anything) for name in chosen}
    if draw(st.integers(0, 9)) == 0:
        made[draw(st.text(max_size=8) | st.integers() | st.sampled_from(['nrom', 'ws', 'model', 'self']))] = 1
    return made


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8),
                         nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))


def try_options(made: object) -> str:
    """Convert a network with the options ``made``: it is converted correctly or stays unchanged."""
    net = network()
    before, weights = str(net), copy.deepcopy(net.state_dict())
    if not isinstance(made, dict) or not all(isinstance(name, str) and name != 'model' for name in made):
        return 'skipped'  # cannot be keyword arguments
    try:
        convert_(net, **made)
    except WSError:
        assert str(net) == before
        assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
        return 'refused'
    check_network(net, lambda: convert_(network(), **made), lambda net: net(torch.randn(2, 3, 16, 16)))
    return 'accepted'


def try_config(made: object) -> str:
    """Build a small backbone of mmdet with ``ws=made``."""
    config = {'type': 'mmws.ResNet', 'depth': 18, 'base_channels': 8, 'stem_channels': 8, 'num_stages': 2,
              'strides': (1, 2), 'dilations': (1, 1), 'out_indices': (1,), 'ws': made}
    given = copy.deepcopy(config['ws'])
    with DefaultScope.overwrite_default_scope('mmdet'):
        try:
            net = MODELS.build(config)
        except WSError:
            return 'refused'
        assert repr(made) == repr(given)
        check_network(net, lambda: None, lambda net: net(torch.randn(2, 3, 32, 32))[0])
    return 'accepted'


def check_network(net: nn.Module, again: Callable, run: Callable) -> None:
    """Assert that a converted network runs in training and folded, and loads its own weights."""
    net.train()
    assert run(net).isfinite().all()
    net.eval()
    state = net.state_dict()
    again()
    net.load_state_dict(state, strict=True)
    torch.manual_seed(0)
    expected = run(net)
    torch.manual_seed(0)
    torch.testing.assert_close(run(fold(net)), expected, rtol=1e-3, atol=1e-3)


def resnet50() -> dict[str, torch.Tensor]:
    """Return weights that share memory, so that their file is small."""
    shapes = resnet_shapes(ONLY_NAMES)[1]
    numbers = torch.randn(max(map(math.prod, shapes.values()))).half()
    return {key: numbers[:math.prod(shape)].view(shape) for key, shape in shapes.items()}


def small_model() -> dict[str, torch.Tensor]:
    """Return weights of a toolkit's model with an unknown backbone."""
    return {'backbone.conv1.weight': torch.randn(4, 3, 3, 3), 'backbone.gn1.weight': torch.ones(4),
            'neck.gn.bias': torch.zeros(4), 'head.fc.weight': torch.randn(2, 4), 'head.index': torch.arange(3)}


def checkpoints() -> dict[str, bytes]:
    """Return an intact file of each format."""
    backbone = resnet50()
    authors = {f'module.{key.replace("gn", "bn")}': value for key, value in backbone.items()}
    same: dict = {}  # one array for each shape: the pickle contains it once
    arrays = {caffe2(key): same.setdefault(value.shape, value.numpy()) for key, value in backbone.items()}
    intact = {'state_dict': small_model(), 'meta': {'CLASSES': ('a',), 'epoch': 3},
              'optimizer': {'state': {0: torch.ones(2)}}}
    return {'authors.pth.tar': torch_bytes(authors, legacy=True), 'toolkit.pth': torch_bytes(intact),
            'legacy.pth': torch_bytes({'state_dict': small_model()}, legacy=True),
            'backbone.pth': torch_bytes(backbone), 'caffe2.pkl': pickle.dumps({'blobs': {**arrays, 'lr': 0.1}}, 4),
            'small.safetensors': safetensors_bytes(small_model())}


def caffe2(key: str) -> str:
    owner, part = key.rsplit('.', 1)
    end = ('_gn_s' if part == 'weight' else '_gn_b') if 'gn' in owner or owner.endswith('downsample.1') else '_w'
    if 'layer' not in owner:
        return f'conv1{end}'
    layer, block, inner = owner.split('.', 2)
    name = CAFFE2[inner.split('.')[0].replace('gn', 'conv')]
    return f'res{int(layer[5:]) + 1}_{block}_{name}{end}'


def torch_bytes(content: object, legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def safetensors_bytes(tensors: dict) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder, 'x'), {'format': 'pt', 'meta': '{"epoch": 1}'})
        return Path(folder, 'x').read_bytes()


EVIL = (b'cos\nsystem\n(S"touch executed"\ntR.', b'\x80\x02cposix\nsystem\nX\x0e\0\0\0touch executed\x85R.',
        b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch executed\x85R.')


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, repeat, overwrite and insert."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 50])):
        at = rng.randrange(min(len(damaged), rng.choice([64, 1024, 10**9])) or 1)  # headers are at the start
        length = rng.choice([1, 2, 4, 8, 100])
        action = rng.randrange(7)
        if action <= 1:
            if damaged:
                damaged[at % len(damaged)] ^= 1 << rng.randrange(8)
        elif action == 2:
            del damaged[at:]
        elif action == 3:
            del damaged[at:at + length]
        elif action == 4:
            damaged[at:at] = damaged[:length]
        elif action == 5:
            number = rng.choice([0, 1, 2**7, 2**15, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1])
            damaged[at:at + 8] = struct.pack('<Q', number)[:length]
        else:
            damaged[at:at] = rng.choice([rng.getrandbits(8 * length).to_bytes(length, 'little'), *EVIL])
    return bytes(damaged)


def damage_zip(data: bytes, rng: random.Random) -> bytes:
    """Rename, drop, repeat and compress the entries of a zip file, and damage its pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, 'w') as target, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # on duplicate names
        for entry in source.infolist():
            content, name = source.read(entry), entry.filename
            action = rng.randrange(12)
            if name.endswith('.pkl') and rng.random() < 0.7:
                content = rng.choice([*EVIL, damage_bytes(content, rng), damage_bytes(content, rng)])
            elif action == 0:
                continue
            elif action == 1:
                name = rng.choice([f'../{name}', f'/tmp/{name}', name.upper(), 'archive/data.pkl', ''])
            elif action == 2:
                content = damage_bytes(content, rng)
            elif action == 3:
                target.writestr(name, content)
            packed = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
            target.writestr(name or 'x', content, packed)
    return out.getvalue()


def damage_weights(rng: random.Random) -> bytes:
    """Return an intact file with tensors dropped, renamed, reshaped or of another type."""
    tensors: dict = resnet50() if rng.random() < 0.2 else small_model()
    for key in rng.sample(list(tensors), min(rng.choice([0, 1, 1, 2, 40]), len(tensors))):
        value, action = tensors.pop(key), rng.randrange(8)
        if action == 1:
            tensors[rng.choice([key + '_', key.replace('gn', 'bn'), key.upper(), '', f'backbone.{key}', 7])] = value
        elif action == 2:
            tensors[key] = rng.choice([value[:1], value[None], value.flatten()[:0], torch.tensor(1.0),
                                       value.mT if value.dim() > 1 else value])
        elif action == 3:
            tensors[key] = value.to(rng.choice(DTYPES))
        elif action == 4:
            tensors[key] = value * rng.choice([math.nan, math.inf, 0])
        elif action == 5:
            tensors[key] = rng.choice([None, 'text', 3.5, [value], {'a': value}, b'\0', np.float64(1)])
        elif action == 6:
            tensors[key] = rng.choice([value.to_sparse() if value.numel() < 9999 else None, value.to('meta'),
                                       torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)])
        elif action == 7:
            tensors[key] = nn.Parameter(value, value.is_floating_point())
    rest = rng.choice([{}, {'meta': rng.choice([None, 1, 'x', [1], {1: 2}, {'CLASSES': {'a'}}])}, {3: 4, (1,): None}])
    return torch_bytes(rng.choice([tensors, {'state_dict': tensors, **rest}, {'model': tensors, **rest}]),
                       legacy=rng.random() < 0.3)


def try_checkpoint(folder: Path, intact: dict[str, bytes], seed: int) -> str:
    """Convert a randomly damaged file in an empty folder, as the tool does."""
    rng = random.Random(seed)
    name = rng.choices(list(intact), [1 if len(data) > 2**20 else 9 for data in intact.values()])[0]
    kinds: list[Callable[[], bytes]] = [lambda: damage_bytes(intact[name], rng), lambda: damage_weights(rng)]
    kinds += [lambda: damage_zip(intact[name], rng)] * intact[name].startswith(b'PK')
    kind = rng.randrange(len(kinds))
    name = name if kind != 1 else 'damaged.pth'
    path, out = folder / name, folder / rng.choice(['out.pth', 'out.safetensors'])
    path.write_bytes(kinds[kind]())
    start = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        converted = convert_checkpoint(path)
        write_checkpoint(out, converted.state_dict, converted.meta)
    except WSError:
        outcome = 'refused'
        assert {each.name for each in folder.iterdir()} == {name}, 'something was written'
    else:
        outcome = 'accepted'
        check_converted(path, out, converted.state_dict)
    finally:
        for each in folder.iterdir():
            each.unlink()
    assert not Path('executed').exists(), 'something was executed'
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY >> 10
    assert time.perf_counter() - start < SECONDS
    return outcome


def check_converted(path: Path, out: Path, state_dict: dict) -> None:
    """Assert that each tensor is unchanged in the result or listed as left over, and that the result reads back."""
    source, written = read_checkpoint(path), read_checkpoint(out)
    assert {each.name for each in out.parent.iterdir()} == {path.name, out.name}
    left_over = written.meta['mmws']['left_over']
    unused = [key for key in source.tensors if without_prefix(key, 'module.') in left_over]
    assert len(source.tensors) == len(state_dict) + len(unused)
    assert all(torch.equal(value, written.tensors[name]) for name, value in state_dict.items())
    kept = sorted(str((tuple(value.shape), value.dtype)) for value in state_dict.values())
    assert set(kept) <= {str((tuple(value.shape), value.dtype)) for value in source.tensors.values()}


def format_counts(outcomes: Counter) -> str:
    return ', '.join(f'{count} {outcome}' for outcome, count in sorted(outcomes.items()))
