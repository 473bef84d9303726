"""Study of normalization layers at small batch sizes, with seeds. Used by ``tools/study.py``."""
