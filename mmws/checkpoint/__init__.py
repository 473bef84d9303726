"""Checkpoints of other people: one file a foreign format, one safe reader under them. Needs torch and safetensors."""

from mmws.checkpoint.convert import Converted, convert_checkpoint
from mmws.checkpoint.reader import read_checkpoint
from mmws.checkpoint.writer import write_checkpoint

__all__ = ['Converted', 'convert_checkpoint', 'read_checkpoint', 'write_checkpoint']
