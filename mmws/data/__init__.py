"""Datasets that need no download.

May import libraries, :mod:`mmws.files` and :mod:`mmws.errors` only.
"""
