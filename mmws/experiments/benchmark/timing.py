"""Time several forms of one network side by side."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from mmws.experiments.benchmark.forms import Form, scope_of
from mmws.experiments.benchmark.rounds import WARM_UP, compare
from mmws.experiments.benchmark.shares import time_shares
from mmws.experiments.demo_samples import demo_samples
from mmws.experiments.worker import WorkerPool
from mmws.ops import cpp_kernels

__all__ = ['MODES', 'Scenario', 'Subject', 'measure']

MODES = ('training', 'inference')


@dataclass(frozen=True)
class Scenario:
    """Forms of a network to compare on one image."""

    network: str  # 'ResNet-50' or a key of forms.NETWORKS
    size: tuple[int, int]  # height and width of the image in pixels
    rounds: int  # how often to time each form
    forms: Mapping[str, Form]  # by name; the first is the baseline
    modes: tuple[str, ...] = MODES
    micro_steps: int = 1  # forward and backward passes before each step of the optimizer
    amp: bool = False  # autocast: bfloat16 on CPU, float16 on CUDA
    with_shares: bool = False  # measure what takes the time of a step
    shared: bool = False  # measure the CPU time of one thread, for a machine with other load

    @property
    def title(self) -> str:
        size = f'{self.size[0]}' if self.size[0] == self.size[1] else '{}x{}'.format(*self.size)
        return (f'{self.network} {size}' + (f', {self.micro_steps} micro-steps' if self.micro_steps > 1 else '')
                + (', AMP' if self.amp else ''))

    @property
    def runs(self) -> int:
        """Number of calls of ``on_run`` by :func:`measure`."""
        return len(self.modes) * len(self.forms) * (self.rounds + WARM_UP)


class Subject:
    """One form of a scenario's network, with an optimizer and a batch."""

    def __init__(self, scenario: Scenario, form: Form, device: str) -> None:
        self.scenario, self.form, self.device = scenario, form, device
        self.clock = time.process_time if scenario.shared else time.perf_counter
        self.synchronize: Callable[[], None] = torch.cuda.synchronize if device == 'cuda' else lambda: None
        if scenario.shared:
            torch.set_num_threads(1)
        self.net = form.build(scenario.network).to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-4, momentum=0.9)
        self.batch = _batch(scenario)
        if hasattr(self.net, 'data_preprocessor'):
            self.batch = self.net.data_preprocessor(self.batch, True)  # type: ignore[operator]
        self.batch['inputs'] = self.batch['inputs'].to(
            device, memory_format=torch.channels_last if form.channels_last else torch.preserve_format)

    def run(self, mode: str) -> float:
        """Return the seconds of one training step or of one forward pass."""
        self.synchronize()
        start = self.clock()
        self._run_passes(mode)
        if mode == 'training':
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.synchronize()
        return self.clock() - start

    def peak(self, mode: str) -> int:
        """Return the peak memory of the passes of a step in bytes, beyond the memory before; call it before a step."""
        if self.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._run_passes(mode)
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self._run_passes(mode)
        allocated = peak = 0
        for event in sorted(record.profiler.kineto_results.events(), key=_start_of):
            if event.name() == '[memory]':
                allocated += event.nbytes()
                peak = max(peak, allocated)
        return peak

    def shares(self, mode: str) -> dict[str, float]:
        """Return what takes the CPU time of a second step; see :func:`time_shares`."""
        self.run(mode)
        return time_shares(lambda: self.run(mode))

    def _run_passes(self, mode: str) -> None:
        self.net.train(mode == 'training')
        with mock.patch.object(cpp_kernels, 'enabled', self.form.cpp), \
                torch.autocast(self.device, enabled=self.scenario.amp), torch.set_grad_enabled(mode == 'training'):
            for _ in range(self.scenario.micro_steps if mode == 'training' else 1):
                loss = self._forward(mode)
                if mode == 'training':
                    loss.backward()

    def _forward(self, mode: str) -> Any:
        if 'data_samples' not in self.batch:
            return sum(level.mean() for level in self.net(self.batch['inputs']))
        batch = copy.deepcopy(self.batch)
        if mode == 'inference':
            return self.net(**batch, mode='tensor')
        loss, _ = self.net.parse_losses(self.net(**batch, mode='loss'))  # type: ignore[operator]
        return loss

_subjects: list[Subject] = []  # the only subject of a worker process


def _prepare(scenario: Scenario, form: Form, device: str) -> None:
    _subjects.append(Subject(scenario, form, device))


def _run(mode: str) -> float:
    return _subjects[0].run(mode)


def _start(scenario: Scenario, form: Form, device: str) -> Callable[[str], float]:
    """Return ``Subject.run``, in a new process if the form has an environment: the allocator reads it at the start."""
    if form.environment is None:
        return Subject(scenario, form, device).run
    with mock.patch.dict(os.environ, form.environment):
        pool = WorkerPool(1, _prepare, (scenario, form, device))
        pool.submit(os.getpid).result()  # starts the process
    return lambda mode: pool.submit(_run, mode).result()


def _batch(scenario: Scenario) -> dict[str, Any]:
    torch.manual_seed(0)
    if scenario.network == 'ResNet-50':
        return {'inputs': torch.randn(1, 3, *scenario.size)}
    return {'inputs': [torch.randint(256, (3, *scenario.size))],
            'data_samples': demo_samples(scope_of(scenario.network), scenario.size, num_classes=10, boxes=5)}


def measure(scenario: Scenario, device: str, on_run: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Time the forms of a scenario round by round.

    Returns:
        A dict for each mode and form: the times of :func:`mmws.experiments.benchmark.rounds.compare`, and ``peak``,
        the peak memory of a first step in bytes, or None; ``shares`` of the time, if the scenario asks for them.
    """
    if any(form.compiled for form in scenario.forms.values()):
        torch.compiler.reset()  # at its limit of recompilations torch runs a network without compilation
    run = {name: _start(scenario, form, device) for name, form in scenario.forms.items()}
    results: list[dict[str, Any]] = []
    for mode in scenario.modes:
        eager = {name: form for name, form in scenario.forms.items() if not form.compiled and form.environment is None}
        peaks = {name: Subject(scenario, form, device).peak(mode) for name, form in eager.items()}
        shares = {name: {'shares': Subject(scenario, form, device).shares(mode)} for name, form in eager.items()
                  if scenario.with_shares}
        timed = compare({name: partial(each, mode) for name, each in run.items()}, scenario.rounds, on_run)
        results += [{'scenario': scenario.title, 'mode': mode, 'form': name, **times, 'peak': peaks.get(name),
                     **shares.get(name, {})} for name, times in timed.items()]
    return results


def _start_of(event: Any) -> int:  # the name is another one before torch 2.4
    return event.start_ns() if hasattr(event, 'start_ns') else event.start_us()  # type: ignore[no-any-return]
