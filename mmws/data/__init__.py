"""Datasets that need no download. Of mmws, imports :mod:`mmws.files` and :mod:`mmws.errors` only."""
