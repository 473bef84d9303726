"""C++ kernels for filters on CPU: optional, on with the environment variable ``MMWS_CPP=1``.

torch's own operators read each filter twice in each direction; ``filters.cpp`` reads it once. torch compiles this file
at the first use, and keeps the result in its folder of extensions (``TORCH_EXTENSIONS_DIR``). This needs a C++ compiler
and ninja. Without them there is a warning, and torch's operators do the work.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmws.errors import FOREIGN_ERRORS, format_exception

__all__ = ['build', 'cpp_kernels']

VARIABLE = 'MMWS_CPP'
NAME = re.sub(r'\W', '_', f'mmws_cpp_{torch.__version__}')  # the headers of another torch need another library
DTYPES = torch.float32, torch.float64
enabled = os.environ.get(VARIABLE) == '1'
_lock = threading.Lock()


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
    if not (enabled and rows.is_cpu and rows.dtype in DTYPES):
        return None
    with _lock:
        return build()


@lru_cache(maxsize=None)
def build() -> Any:
    """Compile and load the kernels, and return them; None, with a warning, if this is not possible."""
    path = os.environ.get('PATH', '')
    os.environ['PATH'] = os.pathsep.join([sysconfig.get_path('scripts'), path])  # ninja may be in the first
    try:
        from torch.utils import cpp_extension  # it needs setuptools

        root = Path(os.environ.get('TORCH_EXTENSIONS_DIR') or cpp_extension.get_default_build_root())
        if not list(root.rglob(f'{NAME}.so')):
            print('mmws: compiling the C++ kernels, once on this machine: about half a minute', file=sys.stderr)
        openmp = ['-fopenmp'] if sys.platform == 'linux' else []
        cpp_extension.load(NAME, [str(Path(__file__).with_name('filters.cpp'))], extra_cflags=['-O3', *openmp],
                           extra_ldflags=openmp, is_python_module=False)
    except (*FOREIGN_ERRORS, OSError, subprocess.SubprocessError) as error:
        warnings.warn(f"{VARIABLE}=1: the C++ kernels cannot be built, so torch's operators are used: "
                      f'{format_exception(error)}', stacklevel=2)
        return None
    finally:
        os.environ['PATH'] = path
    return torch.ops.mmws_cpp
