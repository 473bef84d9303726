"""Import hook for moved modules: whole models pickled before the modules moved into packages record the old names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ['MOVED', 'install']

MOVED = {
    'mmws.conv': 'mmws.layers.conv',
    'mmws.conv_transpose': 'mmws.layers.conv_transpose',
    'mmws.switchable_norm': 'mmws.layers.switchable_norm',
    'mmws.batch_channel_norm': 'mmws.layers.batch_channel_norm',
    'mmws.swap': 'mmws.conversion.swap_convs',
    'mmws.pretrained': 'mmws.openmmlab.pretrained',
}


class _MovedModules(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Replace the new, empty module by the moved one; the import system returns the entry of ``sys.modules``."""
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])


def install() -> None:
    """Make the modules of :data:`MOVED` importable under their old names."""
    sys.meta_path.append(_MovedModules())
