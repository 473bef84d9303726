"""Code that the scripts in ``tools/`` share: config loading and checks, reports, publishing, export.

Imports everything but :mod:`mmws.experiments`.
"""
