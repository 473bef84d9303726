"""Cost of Weight Standardization in a ResNet-50 with GroupNorm, beside other implementations, on one device."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mmws import ConvWS2d
from mmws.experiments.benchmark.convs import MmcvConv, TimmConv, use_convs_
from mmws.experiments.benchmark.rounds import WARM_UP, compare
from tests.gpu.networks import ResNet

__all__ = ['FORMS', 'Scenario', 'Subject', 'measure', 'plan']

FORMS: dict[str, type[nn.Conv2d]] = {'plain': nn.Conv2d, 'mmws': ConvWS2d, "mmcv's formula": MmcvConv,
                                     "timm's trick": TimmConv}
MODES = ('training', 'inference')
SETTINGS = ('fp32', 'bf16 autocast', 'bf16 autocast, compiled')


@dataclass(frozen=True)
class Scenario:
    """A network on a batch of images, in one setting."""

    setting: str  # one of SETTINGS
    size: tuple[int, int]  # height and width of the images in pixels
    batch: int  # images
    rounds: int  # how often to time each form
    depth: int = 50  # of the ResNet
    width: int = 64  # of the ResNet

    @property
    def title(self) -> str:
        return f'ResNet-{self.depth}, {self.batch} x {self.size[0]}x{self.size[1]}, {self.setting}'

    @property
    def compiled(self) -> bool:
        return self.setting.endswith('compiled')

    @property
    def forms(self) -> list[str]:
        """Names in FORMS; mmcv's formula and that of mmws compile to the same kernels, and each takes a minute."""
        return list(FORMS)[:2 if self.compiled else None]


def plan(quick: bool) -> list[Scenario]:
    """Return the scenarios, the most important first: the time may not be enough for all."""
    if quick:
        return [Scenario(setting, (32, 32), 1, 2, depth=8, width=8) for setting in SETTINGS]
    eager = [Scenario(setting, size, batch, 20) for size in ((800, 1333), (224, 224)) for batch in (1, 2)
             for setting in SETTINGS[:2]]
    return [*eager, *(Scenario(SETTINGS[2], size, 1, 20) for size in ((800, 1333), (224, 224)))]


class Subject:
    """One form of a scenario's network, with an optimizer and a batch."""

    def __init__(self, scenario: Scenario, conv: type[nn.Conv2d], device: str) -> None:
        torch.manual_seed(0)
        self.device, self.autocast = device, scenario.setting != SETTINGS[0]
        net = ResNet(scenario.depth, ConvWS2d, width=scenario.width).to(device)
        use_convs_(net, conv)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
        self.net: Any = net
        if scenario.compiled:  # without a GPU: the tracing only, the code generation needs a C++ compiler
            self.net = torch.compile(net, **({} if device == 'cuda' else {'backend': 'aot_eager'}))
        self.images = torch.randn(scenario.batch, 3, *scenario.size, device=device)

    def step(self, mode: str) -> None:
        """Run one training step or one forward pass, without waiting for the device."""
        training = mode == 'training'
        self.net.train(training)
        with torch.set_grad_enabled(training), torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            loss = self.net(self.images).float().square().mean()
        if training:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def seconds(self, mode: str) -> float:
        """Return the wall time of one step."""
        self._wait()
        start = time.perf_counter()
        self.step(mode)
        self._wait()
        return time.perf_counter() - start

    def launches(self, mode: str) -> tuple[int | None, float | None]:
        """Return the number of kernels, copies and fills of one step, and their time in seconds, by torch's profiler.

        Without a GPU these are the operators of torch that call no other operator. None: the profiler saw nothing.
        """
        self.seconds(mode)
        gpu = self.device == 'cuda'
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as record:
            self.seconds(mode)
        events = [event for event in record.events() if not getattr(event, 'is_user_annotation', False) and (
            event.device_type == torch.autograd.DeviceType.CUDA if gpu else
            event.name.startswith('aten::') and not event.cpu_children)]
        return (len(events), sum(event.time_range.elapsed_us() for event in events) / 1e6) if events else (None, None)

    def _wait(self) -> None:
        if self.device == 'cuda':
            torch.cuda.synchronize()


def measure(scenario: Scenario, device: str) -> list[dict[str, Any]]:
    """Time the forms round by round in a random order.

    Returns:
        A dict for each mode and form: the times of :func:`mmws.experiments.benchmark.rounds.compare`, and
        ``launches`` and ``kernel_seconds`` of one step.
    """
    torch.compiler.reset()  # each scenario compiles for its own size
    subjects = {name: Subject(scenario, FORMS[name], device) for name in scenario.forms}
    results = []
    for mode in MODES:
        runs = {name: partial(subject.seconds, mode) for name, subject in subjects.items()}
        for name, times in compare(runs, scenario.rounds).items():
            launches, kernel_seconds = subjects[name].launches(mode)
            results.append({'scenario': scenario.title, 'compiled': scenario.compiled, 'mode': mode, 'form': name,
                            **times, 'launches': launches, 'kernel_seconds': kernel_seconds})
    return results


def runs(scenario: Scenario) -> int:
    """Return the number of steps that :func:`measure` times, with those of the warm-up."""
    return len(MODES) * len(scenario.forms) * (scenario.rounds + WARM_UP)
