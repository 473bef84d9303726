"""The maths of Weight Standardization: the formula, its kernels, its gradient.

Imports torch and :mod:`mmws.errors` only.
"""
