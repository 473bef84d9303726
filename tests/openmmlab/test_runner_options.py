"""Options of mmengine's runner and of the toolkits' networks, on a small segmenter with the prefix."""

from __future__ import annotations

import copy
from typing import Callable

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmseg.apis import MMSegInferencer, inference_model
from torch import distributed, nn

from mmws import ConvWS2d, WSError, standardize_weight
from mmws.layers.conv import WeightStandardized
from tests.helpers.models import BN, SEGMENTATION

BACKBONE = {'type': 'ResNetV1c', 'depth': 18, 'num_stages': 1, 'strides': (1,), 'dilations': (1,), 'out_indices': (0,),
            'base_channels': 8, 'stem_channels': 8, 'norm_cfg': BN}
HEAD = {'type': 'FCNHead', 'in_channels': 8, 'in_index': 0, 'channels': 8, 'num_convs': 1, 'num_classes': 11,
        'norm_cfg': BN}
KEEP = {'model.ws': {'norm': 'keep'}}


@pytest.fixture
def runner(digits, tmp_path) -> Callable[..., Runner]:
    """Return a function that builds a run of two steps, with options by their paths in the config."""
    def build(**options: object) -> Runner:
        config = Config.fromfile(SEGMENTATION)
        config.merge_from_dict({
            'model.backbone': {'_delete_': True, **BACKBONE}, 'model.decode_head': {'_delete_': True, **HEAD},
            'model.auxiliary_head': None,
            'train_dataloader': {'num_workers': 0, 'persistent_workers': False, 'dataset': {'data_root': str(digits)}},
            'train_cfg.max_iters': 2, 'param_scheduler': None, 'work_dir': str(tmp_path), **options})
        for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
            config.pop(key)
        return Runner.from_cfg(config)
    return build


def names_of(model: nn.Module, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def gap(model: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of two networks' weights, relative to the weights of each layer."""
    weights = other.state_dict()
    assert list(model.state_dict()) == list(weights)
    return max(float((value - weights[name]).norm() / weights[name].norm().clamp_min(1e-3))
               for name, value in model.state_dict().items() if value.is_floating_point())


def test_ema_averages_the_raw_weights_and_standardizes_the_average(runner, tmp_path):
    run = runner(custom_hooks=[{'type': 'EMAHook', 'momentum': 0.3}])
    model = run.train()
    ema = next(hook for hook in run.hooks if isinstance(hook, EMAHook))
    conv, averaged = model.backbone.stem[0], ema.ema_model.module.backbone.stem[0]
    assert type(averaged) is ConvWS2d
    with torch.no_grad():
        own, expected = conv.standardized_weight().clone(), standardize_weight(averaged.weight)
        assert not torch.allclose(own, expected)
        ema.before_val_epoch(run)  # exchanges the weights of the two networks
        torch.testing.assert_close(conv.standardized_weight(), expected)
        ema.after_val_epoch(run)
        torch.testing.assert_close(conv.standardized_weight(), own)
    saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    assert torch.equal(saved['state_dict']['backbone.stem.0.weight'], averaged.weight)
    assert torch.equal(saved['ema_state_dict']['module.backbone.stem.0.weight'], conv.weight)


@pytest.fixture
def process_group(tmp_path, monkeypatch):
    """Join a group of one process, and return the options of a distributed run on the CPU."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    yield {'launcher': 'pytorch', 'model_wrapper_cfg': {'type': 'MMDistributedDataParallel', 'device_ids': None}}
    distributed.destroy_process_group()


def test_sync_bn_finds_nothing_to_convert_and_the_network_trains(runner, process_group):
    run = runner(sync_bn='torch', **process_group)
    assert not names_of(run.model, nn.SyncBatchNorm)
    assert gap(run.train().module, runner().train()) < 1e-5


def test_sync_bn_converts_kept_norms_and_no_convolution(runner):
    plain = runner(**KEEP).model.eval()
    synchronized = convert_sync_batchnorm(copy.deepcopy(plain), 'torch').eval()  # the runner's; trains on a GPU only
    assert names_of(synchronized, nn.SyncBatchNorm) == names_of(plain, nn.BatchNorm2d) != []
    assert names_of(synchronized, WeightStandardized) == names_of(plain, WeightStandardized) != []
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(synchronized(image), plain(image))


@pytest.mark.parametrize('norm', ['GN', 'keep'])
def test_checkpointed_blocks_have_the_same_gradients(norm, in_scope):
    config = {**BACKBONE, 'type': 'mmws.ResNetV1c', 'ws': {'norm': norm}}
    with in_scope('mmseg'):
        plain, checkpointed = (MODELS.build({**config, 'with_cp': with_cp}) for with_cp in (False, True))
    assert names_of(checkpointed, WeightStandardized) == names_of(plain, WeightStandardized) != []
    checkpointed.load_state_dict(plain.state_dict(), strict=True)
    image = torch.randn(2, 3, 64, 64)
    for net in (plain, checkpointed):
        sum(output.square().mean() for output in net(image)).backward()
    for (name, parameter), expected in zip(checkpointed.named_parameters(), plain.parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


def test_a_compiled_step_trains_the_same_network(runner):
    try:
        torch.compile(nn.Identity(), backend='eager')
    except RuntimeError as error:
        pytest.skip(f'torch {torch.__version__}: {error}')
    torch._dynamo.reset()
    # torch 2.1 cannot compile a step of SGD with momentum
    options = {'optim_wrapper.optimizer.momentum': 0.0} if torch.__version__.startswith('2.1.') else {}
    compiled = runner(compile={'backend': 'eager'}, **options).train()
    assert gap(compiled, runner(**options).train()) < 1e-5


def test_efficient_conv_bn_eval_finds_nothing_to_fuse(runner):
    pytest.importorskip('mmengine.model.efficient_conv_bn_eval', reason='needs mmengine 0.8')
    run = runner(efficient_conv_bn_eval=['backbone'])
    assert gap(run.train(), runner().train()) < 1e-5


def test_efficient_conv_bn_eval_is_refused_for_kept_norms(runner):
    pytest.importorskip('mmengine.model.efficient_conv_bn_eval', reason='needs mmengine 0.8')
    run = runner(efficient_conv_bn_eval=['backbone'], **{'model.backbone.norm_eval': True}, **KEEP)
    with pytest.raises(WSError, match=r'cannot fuse a norm into this layer.*fold first'):
        run.train()


def test_the_inferencer_of_mmseg(runner, digits, tmp_path):
    run = runner()
    model = run.train().eval()
    run.cfg.dump(tmp_path / 'config.py')
    image = str(digits / 'images' / 'val' / '000000.jpg')
    inferencer = MMSegInferencer(str(tmp_path / 'config.py'), weights=str(tmp_path / 'iter_2.pth'), device='cpu')
    assert type(inferencer.model.backbone.stem[0]) is ConvWS2d
    found = torch.from_numpy(inferencer(image)['predictions'])
    model.cfg = run.cfg
    assert torch.equal(found, inference_model(model, image).pred_sem_seg.data[0])
