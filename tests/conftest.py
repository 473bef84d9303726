from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mmws.data.digits import make_digits
from tests.helpers.commands import REPOSITORY, tracked_files

SEED = os.environ.get('MMWS_TEST_SEED')  # `make trust` sets it; without it, all draws are fixed
# Not imported for doctests: a plugin, which would change torch for all tests; and what needs nbclient.
collect_ignore = ['helpers/old_torch.py', 'helpers/notebook.py']


class TorchSeed:
    """Torch's generator for hypothesis, which seeds it before each example as it seeds Python's and numpy's."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


hypothesis.register_random(TorchSeed)
hypothesis.settings.register_profile('mmws', deadline=None, max_examples=60, derandomize=SEED is None, database=None)
hypothesis.settings.load_profile('mmws')


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed the random generators before the fixtures run: no test depends on the tests before it."""
    seed = int(SEED or 0)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    """Return a dataset of 9 images."""
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', train=6, val=3, size=128)


@pytest.fixture(scope='session')
def wheel(tmp_path_factory) -> Path:
    """Return the package's wheel, built from its source distribution, as a release is.

    That is built from a copy: setuptools also packs old files in build/.
    """
    folder = tmp_path_factory.mktemp('wheel')
    for name in tracked_files():
        copy = folder / 'source' / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run([sys.executable, '-c', f'from setuptools.build_meta import *; build_sdist({str(folder)!r})'],
                   check=True, cwd=folder / 'source', stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w',
                    str(folder), str(next(folder.glob('mmws-*.tar.gz')))], check=True)
    return next(folder.glob('mmws-*.whl'))


@pytest.fixture(autouse=True)
def reset_mmengine() -> Iterator[None]:
    """Restore mmengine's global instances: a runner leaves its scope, its logger and more to later tests."""
    before, disabled = {kind: dict(kind._instance_dict) for kind in _managers()}, logging.root.manager.disable
    yield
    logging.disable(disabled)
    for logger in MMLogger._instance_dict.values():
        logger._cache.clear()  # it caches the disabled levels
    for kind in _managers():  # some were imported during the test
        kind._instance_dict.clear()
        kind._instance_dict.update(before.get(kind, {}))


def _managers() -> list[type]:
    return [kind for parent in (DefaultScope, MMLogger, MessageHub, Visualizer) for kind in _with_subclasses(parent)]


def _with_subclasses(kind: type) -> Iterator[type]:
    """Yield a class and its subclasses: a toolkit's visualizer has its own instances."""
    yield kind
    for inner in kind.__subclasses__():
        yield from _with_subclasses(inner)


@pytest.fixture
def in_scope():
    """Return a context manager: ``in_scope('mmdet')`` sets the default scope of a block."""
    return DefaultScope.overwrite_default_scope


@pytest.fixture
def mmdet_scope(in_scope) -> Iterator[None]:
    with in_scope('mmdet'):
        yield


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Yield the list of mmengine's log messages, each as 'LEVEL text'."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(f'{record.levelname} {record.getMessage()}')  # type: ignore[method-assign]
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
