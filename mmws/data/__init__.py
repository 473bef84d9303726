"""Datasets that need no download.

Imports :mod:`mmws.files` and :mod:`mmws.errors` only.
"""
