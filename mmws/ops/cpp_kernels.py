"""C++ kernels for filters on CPU: optional, on with the environment variable ``MMWS_CPP=1``.

torch's own operators read each filter twice in each direction; ``filters.cpp`` reads it once. torch compiles this file
at the first use, and keeps the result in its folder of extensions (``TORCH_EXTENSIONS_DIR``). This needs a C++ compiler
and ninja. Without them there is a warning, and torch's operators do the work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mmws.errors import FOREIGN_ERRORS, format_exception

__all__ = ['cpp_kernels']

VARIABLE = 'MMWS_CPP'
NAME = 'mmws_cpp'
DTYPES = torch.float32, torch.float64
enabled = os.environ.get(VARIABLE) == '1'


def cpp_kernels(rows: Tensor) -> Any:
    """Return the kernels, or None if they are off, cannot be built, or do not support ``rows``.

    Their functions take contiguous matrices with one filter per row:

    - ``standardize_rows(rows, eps, unbiased, out)`` writes to ``out``, and returns the factors for the gradient, as
      :func:`mmws.ops.kernels.standardize_filters`;
    - ``gradient_rows(grad, standardized, factors)`` returns the gradient of the raw rows.

    Example:
        >>> cpp_kernels(torch.ones(2, 3, dtype=torch.float16)) is None
        True
    """
    return _build() if enabled and rows.is_cpu and rows.dtype in DTYPES else None


@lru_cache(maxsize=None)
def _build() -> Any:
    from torch.utils import cpp_extension  # it imports setuptools

    if not list(Path(cpp_extension.get_default_build_root()).rglob(f'{NAME}.*')):
        print('mmws: compiling its C++ kernels, once on this machine: about half a minute', file=sys.stderr)
    openmp = ['-fopenmp'] if sys.platform == 'linux' else []
    programs = os.pathsep.join([sysconfig.get_path('scripts'), os.environ.get('PATH', '')])  # ninja may be in the first
    try:
        with mock.patch.dict(os.environ, PATH=programs):
            cpp_extension.load(NAME, [str(Path(__file__).with_name('filters.cpp'))], extra_cflags=['-O3', *openmp],
                               extra_ldflags=openmp, is_python_module=False)
    except (*FOREIGN_ERRORS, OSError, subprocess.SubprocessError) as error:
        warnings.warn(f"{VARIABLE}=1: the C++ kernels cannot be built, so torch's operators are used: "
                      f'{format_exception(error)}', stacklevel=2)
        return None
    return getattr(torch.ops, NAME)
