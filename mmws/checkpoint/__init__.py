"""Checkpoints: a safe reader, a writer, and one file a foreign format; to read another format, see format.py.

May import torch, numpy, safetensors, :mod:`mmws.files` and :mod:`mmws.errors` only.
"""

from mmws.checkpoint.convert import Converted, convert_checkpoint
from mmws.checkpoint.reader import read_checkpoint
from mmws.checkpoint.writer import write_checkpoint

__all__ = ['Converted', 'convert_checkpoint', 'read_checkpoint', 'write_checkpoint']
