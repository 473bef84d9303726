"""Timing of several forms of one network, side by side."""

from __future__ import annotations

import copy
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch.profiler import ProfilerActivity, profile

from mmws.experiments.benchmark.forms import Form

__all__ = ['MODES', 'Scenario', 'Subject', 'measure']

MODES = ('training', 'inference')
WARM_UP = 2


@dataclass(frozen=True)
class Scenario:
    """A network on one image.

    Args:
        network: ``'ResNet-50'`` or a key of :data:`mmws.experiments.benchmark.forms.NETWORKS`.
        size: height and width of the image in pixels.
        rounds: how often each form is timed.
        forms: what is compared, the first being what the others are compared with.
        modes: of :data:`MODES`.
        micro_steps: forward and backward passes before the optimizer steps.
        amp: whether autocast is on (bfloat16 on CPU, float16 on CUDA).
        shared: count the CPU seconds of one thread, for a machine that others are at work on.
    """

    network: str
    size: tuple[int, int]
    rounds: int
    forms: Mapping[str, Form]
    modes: tuple[str, ...] = MODES
    micro_steps: int = 1
    amp: bool = False
    shared: bool = False

    @property
    def title(self) -> str:
        size = f'{self.size[0]}' if self.size[0] == self.size[1] else '{}x{}'.format(*self.size)
        return (f'{self.network} {size}' + (f', {self.micro_steps} micro-steps' if self.micro_steps > 1 else '')
                + (', AMP' if self.amp else ''))

    @property
    def runs(self) -> int:
        """How often :func:`measure` reports progress."""
        return len(self.modes) * len(self.forms) * (self.rounds + WARM_UP)


class Subject:
    """One form of a scenario's network, taking steps."""

    def __init__(self, scenario: Scenario, form: Form, device: str) -> None:
        self.scenario, self.device = scenario, device
        self.clock = time.process_time if scenario.shared else time.perf_counter
        if scenario.shared:
            torch.set_num_threads(1)
        self.net = form.build(scenario.network).to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-4, momentum=0.9)
        self.data = _data(scenario)
        if hasattr(self.net, 'data_preprocessor'):
            self.data = self.net.data_preprocessor(self.data, True)  # type: ignore[operator]
        self.data['inputs'] = self.data['inputs'].to(
            device, memory_format=torch.channels_last if form.channels_last else torch.preserve_format)

    def run(self, mode: str) -> float:
        """Return the seconds of one step or of one forward pass."""
        self._synchronize()
        start = self.clock()
        self._passes(mode)
        if mode == 'training':
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._synchronize()
        return self.clock() - start

    def peak(self, mode: str) -> int:
        """Return how many bytes the passes of a step hold at most beyond those held before; meant for the first one."""
        if self.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._passes(mode)
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self._passes(mode)
        held = highest = 0
        for event in sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == '[memory]':
                held += event.nbytes()
                highest = max(highest, held)
        return highest

    def _passes(self, mode: str) -> None:
        self.net.train(mode == 'training')
        with torch.autocast(self.device, enabled=self.scenario.amp), torch.set_grad_enabled(mode == 'training'):
            for _ in range(self.scenario.micro_steps if mode == 'training' else 1):
                loss = self._forward(mode)
                if mode == 'training':
                    loss.backward()

    def _forward(self, mode: str) -> Any:
        if 'data_samples' not in self.data:
            return sum(level.mean() for level in self.net(self.data['inputs']))
        data = copy.deepcopy(self.data)
        if mode == 'inference':
            return self.net(**data, mode='tensor')
        loss, _ = self.net.parse_losses(self.net(**data, mode='loss'))  # type: ignore[operator]
        return loss

    def _synchronize(self) -> None:
        if self.device == 'cuda':
            torch.cuda.synchronize()


class _Alone:
    """A subject in a process of its own, which the allocator's variables are read by."""

    def __init__(self, scenario: Scenario, form: Form, device: str) -> None:
        with mock.patch.dict(os.environ, form.environment or {}):
            self.process = ProcessPoolExecutor(1, get_context('spawn'), _prepare, (scenario, form, device))
            self.process.submit(os.getpid).result()

    def run(self, mode: str) -> float:
        return self.process.submit(_run, mode).result()


_subjects: list[Subject] = []  # in the process of an _Alone: the one


def _prepare(scenario: Scenario, form: Form, device: str) -> None:
    _subjects.append(Subject(scenario, form, device))


def _run(mode: str) -> float:
    return _subjects[0].run(mode)


def _data(scenario: Scenario) -> dict[str, Any]:
    torch.manual_seed(0)
    shape = (3, *scenario.size)
    if scenario.network == 'ResNet-50':
        return {'inputs': torch.randn(1, *shape)}
    if 'DeepLab' in scenario.network:
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(21, (1, *scenario.size))))
        return {'inputs': [torch.randint(256, shape)], 'data_samples': [sample]}
    data: dict[str, Any] = demo_mm_inputs(1, shape, [5], with_mask=True)
    return data


def measure(scenario: Scenario, device: str, on_run: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Time the forms of one scenario: round by round, in an order drawn anew, after two rounds that do not count.

    Returns:
        For each mode and form ``seconds`` (median over rounds), ``ratio`` to the first form (median over the pairs of a
        round, with its quartiles ``low`` and ``high``) and ``peak``, in bytes: of a first step, where it can be had.
    """
    subjects = {
        name: (Subject if form.environment is None else _Alone)(scenario, form, device)
        for name, form in scenario.forms.items()}
    results = []
    for mode in scenario.modes:
        peaks = {name: Subject(scenario, form, device).peak(mode) for name, form in scenario.forms.items()
                 if not form.compiled and form.environment is None}
        seconds: dict[str, list[float]] = {name: [] for name in subjects}
        for number in range(scenario.rounds + WARM_UP):
            for name in random.Random(number).sample(list(subjects), len(subjects)):
                seconds[name].append(subjects[name].run(mode))
                on_run()
        base = next(iter(seconds.values()))
        for name, took in seconds.items():
            ratios = [one / other for one, other in zip(took[WARM_UP:], base[WARM_UP:], strict=True)]
            low, ratio, high = statistics.quantiles(ratios, n=4, method='inclusive')
            results.append({'scenario': scenario.title, 'mode': mode, 'form': name, 'ratio': ratio, 'low': low,
                            'high': high, 'seconds': statistics.median(took[WARM_UP:]), 'peak': peaks.get(name)})
    return results
