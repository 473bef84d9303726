import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from mmws.data.digits import make_digits

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    """A dataset of a few images."""
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', train=6, val=3, size=128)


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
