"""Weight Standardization of tensors: the formula, its kernels, its gradient. Imports torch alone."""
