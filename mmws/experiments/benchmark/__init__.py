"""What Weight Standardization costs, beside other ways to compute it; run by ``tools/benchmark.py``."""
