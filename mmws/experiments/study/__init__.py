"""Normalization layers compared at few images a step, with seeds; run by ``tools/study.py``."""
