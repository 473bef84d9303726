"""Weight Standardization of tensors: the formula, its kernels, its gradient.

May import torch only.
"""
