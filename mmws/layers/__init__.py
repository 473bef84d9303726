"""Layers: standardized convolutions, the cache of their weights, and norms that torch lacks. Imports no toolkit."""
