"""Conversion of any network in place: options, placement, layer replacement, folding.

May import torch, :mod:`mmws.layers`, :mod:`mmws.ops` and :mod:`mmws.errors` only.
"""
