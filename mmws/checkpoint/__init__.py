"""Checkpoints: a safe reader, a writer, and one file per foreign format; to read another format, see format.py.

"The authors" are those of Weight Standardization, Qiao et al., arXiv 1903.10520.
May import torch, numpy, safetensors, :mod:`mmws.files`, :mod:`mmws.errors` and :mod:`mmws.version` only.
"""

from mmws.checkpoint.convert import Converted, convert_checkpoint
from mmws.checkpoint.reader import read_checkpoint
from mmws.checkpoint.writer import write_checkpoint

__all__ = ['Converted', 'convert_checkpoint', 'read_checkpoint', 'write_checkpoint']
