"""The version of mmws, and the check of torch's version. ``import mmws`` runs it before any other import."""

import torch

from mmws.errors import WSError

__all__ = ['MINIMUM_TORCH', '__version__']

__version__ = '0.2.0'
MINIMUM_TORCH = '2.0.1'

if torch.__version__ < MINIMUM_TORCH:  # a TorchVersion, which does not compare as text
    raise WSError(f'mmws {__version__} needs torch >= {MINIMUM_TORCH}, this is {torch.__version__}')
