"""pytest plugin: what is tested gets mmws's layer wherever it asks torch for a convolution."""

import torch

import mmws

for name in ('Conv1d', 'Conv2d', 'Conv3d', 'ConvTranspose1d', 'ConvTranspose2d', 'ConvTranspose3d'):
    setattr(torch.nn, name, getattr(mmws, f'{name[:-2]}WS{name[-2:]}'))
