"""mmws: Weight Standardization (arXiv 1903.10520) for the OpenMMLab toolkits.

``import mmws`` needs only torch. mmengine imports ``mmws.registry`` when a config has ``type='mmws.<Name>'``.
"""

from mmws.version import __version__  # refuses an old torch, with which the other imports fail

# isort: split
from mmws.conversion.convert import convert_
from mmws.conversion.fold import fold
from mmws.conversion.options import Options
from mmws.conversion.report import Report
from mmws.errors import WSError
from mmws.layers.conv import ConvWS1d, ConvWS2d, ConvWS3d
from mmws.layers.conv_transpose import ConvTransposeWS1d, ConvTransposeWS2d, ConvTransposeWS3d
from mmws.moved import install as _find_moved_modules
from mmws.openmmlab.stock_configs import stock_config
from mmws.ops.standardize import standardize_weight
from mmws.transplant.report import TransplantReport
from mmws.transplant.transplant import transplant_

__all__ = ['ConvTransposeWS1d', 'ConvTransposeWS2d', 'ConvTransposeWS3d', 'ConvWS1d', 'ConvWS2d', 'ConvWS3d', 'Options',
           'Report', 'TransplantReport', 'WSError', '__version__', 'convert_', 'fold', 'standardize_weight',
           'stock_config', 'transplant_']

_find_moved_modules()
