"""Transplant: carry what a BatchNorm network learned over to its converted form, with a few images and no labels.

May import torch, :mod:`mmws.conversion`, :mod:`mmws.layers`, :mod:`mmws.ops` and :mod:`mmws.errors` only.
"""
