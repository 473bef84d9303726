"""mmws: Weight Standardization (arXiv 1903.10520) for the OpenMMLab toolkits.

Importing this package needs torch alone. The registry side, ``mmws.registry``, is imported by mmengine when a config
says ``type='mmws.<Name>'``.
"""

from mmws.conv import ConvWS1d, ConvWS2d, ConvWS3d
from mmws.conv_transpose import ConvTransposeWS1d, ConvTransposeWS2d, ConvTransposeWS3d
from mmws.convert import Report, convert_
from mmws.errors import WSError
from mmws.fold import fold
from mmws.functional import standardize_weight
from mmws.inherit import stock_config
from mmws.version import __version__

__all__ = ['ConvTransposeWS1d', 'ConvTransposeWS2d', 'ConvTransposeWS3d', 'ConvWS1d', 'ConvWS2d', 'ConvWS3d', 'Report',
           'WSError', '__version__', 'convert_', 'fold', 'standardize_weight', 'stock_config']

