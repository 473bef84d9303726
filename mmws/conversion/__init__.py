"""Conversion of any network in place: options, placement, layer replacement, folding.

Imports torch, :mod:`mmws.ops` and :mod:`mmws.layers` only.
"""
