"""Whether this machine can compile the C++ kernels."""

import os
import shutil
import sysconfig

from tests.helpers.versions import is_older


def can_compile() -> bool:
    programs = os.pathsep.join([sysconfig.get_path('scripts'), os.environ['PATH']])
    compiler = shutil.which(os.environ.get('CXX', 'c++'), path=programs)
    return bool(compiler and shutil.which('ninja', path=programs)) and not is_older('torch', '2.1')
