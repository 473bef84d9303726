"""Weights that were trained under another formula, and so do not fit."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ['why_foreign']

BIASED = ('their standard deviation is the biased one, with eps inside the root, so each filter would come out '
          "another; timm's own layers run them")
REASONS = {
    r'(.*\.)?stages\.\d+\.blocks\.\d+\.conv1\.weight': f"timm's resnetv2_* of BiT with StdConv2d: {BIASED}",
    r'(.*\.)?block\d\.unit\d+\.(gn1|conv1)\.weight|.*standardized_conv2d.*': f"BiT's weights: {BIASED}",
    r'(.*\.)?conv\d?\.gain': f"timm's ScaledStdConv2d (NFNets), with a learnt gain for each filter: {BIASED}",
    r'(.*\.)?weight_gamma': "mmcv's ConvAWS (DetectoRS), with eps inside the root and a scale and a shift of its "
                            'own for each filter',
    r'(.*\.)?running_mean': 'BatchNorm statistics: they were trained without GroupNorm and Weight Standardization',
}


def why_foreign(keys: Collection[str]) -> str:
    """Return whose other formula ``keys`` show, empty if none.

    Example:
        >>> why_foreign(['stages.0.blocks.0.conv1.weight'])[:22]
        "timm's resnetv2_* of B"
    """
    for pattern, reason in REASONS.items():
        found = next((key for key in keys if re.fullmatch(pattern, key)), None)
        if found:
            return f'{reason} ({found})'
    return ''
