"""Conversion of any network in place. Imports only torch, :mod:`mmws.ops` and :mod:`mmws.layers`."""
