import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mmws.data.digits import make_digits
from tests.helpers.commands import REPOSITORY, tracked_files


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    """A dataset of a few images."""
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', train=6, val=3, size=128)


@pytest.fixture(scope='session')
def wheel(tmp_path_factory) -> Path:
    """The package's wheel, built from a copy: setuptools packs whatever an earlier build left in build/."""
    folder = tmp_path_factory.mktemp('wheel')
    for name in tracked_files():
        copy = folder / 'source' / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w',
                    str(folder), str(folder / 'source')], check=True)
    return next(folder.glob('mmws-*.whl'))


@pytest.fixture(autouse=True)
def what_mmengine_remembers() -> Iterator[None]:
    """A runner in this process leaves a scope, a logger and more behind, which later tests are not to find."""
    kinds = [kind for parent in (DefaultScope, MMLogger, MessageHub, Visualizer) for kind in _with_subclasses(parent)]
    before, disabled = [dict(kind._instance_dict) for kind in kinds], logging.root.manager.disable
    yield
    logging.disable(disabled)
    for logger in MMLogger._instance_dict.values():
        logger._cache.clear()  # which remembers what was disabled
    for kind, instances in zip(kinds, before, strict=True):
        kind._instance_dict.clear()
        kind._instance_dict.update(instances)


def _with_subclasses(kind: type) -> Iterator[type]:
    """A toolkit's visualizer keeps its instances apart from mmengine's."""
    yield kind
    for inner in kind.__subclasses__():
        yield from _with_subclasses(inner)


@pytest.fixture
def in_scope():
    """Called with a toolkit's name: the default scope of the rest of the block."""
    return DefaultScope.overwrite_default_scope


@pytest.fixture
def mmdet_scope(in_scope) -> Iterator[None]:
    with in_scope('mmdet'):
        yield


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What mmengine's logger is told: 'LEVEL text'."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(f'{record.levelname} {record.getMessage()}')  # type: ignore[method-assign]
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
