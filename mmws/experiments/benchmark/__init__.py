"""Cost of Weight Standardization compared to other implementations. Used by ``tools/benchmark.py``."""
