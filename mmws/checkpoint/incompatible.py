"""Foreign weights of another formula, which mmws refuses."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ['find_incompatibility']

BIASED = "it divides by the biased standard deviation, with eps inside the square root; use timm's own layers"
REASONS = {
    r'(.*\.)?stages\.\d+\.blocks\.\d+\.conv1\.weight': f"timm's resnetv2_* of BiT with StdConv2d: {BIASED}",
    r'(.*\.)?block\d\.unit\d+\.(gn1|conv1)\.weight|.*standardized_conv2d.*': f"BiT's weights: {BIASED}",
    r'(.*\.)?conv\d?\.gain': f"timm's ScaledStdConv2d (NFNets), with a learned gain for each filter: {BIASED}",
    r'(.*\.)?weight_gamma': "mmcv's ConvAWS (DetectoRS), with eps inside the square root and a gain for each filter",
    r'(.*\.)?running_mean': 'it has running statistics, so it was not trained with GroupNorm + WS',
}


def find_incompatibility(keys: Collection[str]) -> str:
    """Return the reason why mmws cannot use a checkpoint with these keys, empty if it can.

    Example:
        >>> find_incompatibility(['stages.0.blocks.0.conv1.weight'])[:22]
        "timm's resnetv2_* of B"
    """
    return next((f'{reason} ({key})' for pattern, reason in REASONS.items() for key in keys
                 if re.fullmatch(pattern, key)), '')
