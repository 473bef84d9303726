"""The mmengine side: registry, pretrained weights, stock configs, hooks, and one table with a row a toolkit.

Imports everything below it, mmengine, and a toolkit where a config asks for one.
"""
