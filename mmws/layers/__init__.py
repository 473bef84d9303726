"""Layers: standardized convolutions, the cache of their weights, and norms that torch lacks.

May import torch, :mod:`mmws.ops` and :mod:`mmws.errors` only.
"""
