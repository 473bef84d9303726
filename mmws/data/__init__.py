"""Data that needs no download."""

from mmws.data.digits import make_digits

__all__ = ['make_digits']
