"""Layers: convolutions with standardized weights, the cache of these weights, and norms that torch lacks.

Imports torch and :mod:`mmws.ops` only.
"""
