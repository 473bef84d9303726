"""What pyproject.toml cannot say: configs and tools travel in ``mmws/.mim``, where OpenMMLab's tools look for them."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARRIED = ('configs', 'tools')


class BuildWithMim(build_py):
    def run(self) -> None:
        super().run()
        here = Path(__file__).resolve().parent
        mim = (here if self.editable_mode else Path(self.build_lib).resolve()) / 'mmws' / '.mim'
        mim.mkdir(parents=True, exist_ok=True)
        for name in CARRIED:
            if not self.editable_mode:
                shutil.copytree(here / name, mim / name, dirs_exist_ok=True,
                                ignore=shutil.ignore_patterns('__pycache__'))
            elif not (mim / name).exists():
                (mim / name).symlink_to(Path('..', '..', name), target_is_directory=True)


setup(cmdclass={'build_py': BuildWithMim})
