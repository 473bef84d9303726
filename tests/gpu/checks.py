"""All checks: functions ``check_*(device)``. They raise an error if wrong, NotHere if the device cannot run them."""

from __future__ import annotations

from collections.abc import Callable

from tests.gpu import check_cuda, check_layers, check_networks
from tests.gpu.check_cuda import NotHere

__all__ = ['NotHere', 'all_checks']


def all_checks() -> dict[str, Callable[[str], None]]:
    """Return the checks by name, in the order of the files."""
    return {name: value for module in (check_layers, check_networks, check_cuda)
            for name, value in vars(module).items() if name.startswith('check_')}
