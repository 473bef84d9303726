"""Add the configs and tools to the package; pyproject.toml has the other settings."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGED = ('configs', 'tools', 'model-index.yml')
INHERIT = "globals().update(__import__('mmws.openmmlab.stock_configs', fromlist=['x']).read_mmws_config({name!r}))\n"
HERE = Path(__file__).resolve().parent

if sys.version_info < (3, 8):  # noqa: UP036 - pip checks it too
    sys.exit(f'mmws needs Python >= 3.8, this is {sys.version.split()[0]}')


class BuildWithConfigs(build_py):
    """Add ``mmws/.mim``, the folder of OpenMMLab's tools, and ``mmws/configs``, the bases of new-style configs."""

    def run(self) -> None:
        super().run()
        package = (HERE if self.editable_mode else Path(self.build_lib).resolve()) / 'mmws'
        place = link if self.editable_mode else copy
        for name in PACKAGED:
            place(HERE / name, package / '.mim' / name)
        for config in (HERE / 'configs').rglob('*.py'):
            name = config.relative_to(HERE / 'configs')
            (package / 'configs' / name).parent.mkdir(parents=True, exist_ok=True)
            (package / 'configs' / name).write_text(INHERIT.format(name=name.as_posix()))


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copy(source, target)
    else:
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__'))


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():  # of a checkout that has moved
        target.unlink()
    if not target.exists():
        target.symlink_to(source)


setup(cmdclass={'build_py': BuildWithConfigs})
