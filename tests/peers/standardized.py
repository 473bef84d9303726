"""pytest plugin: replace torch's convolution classes by mmws's."""

import torch

import mmws

for name in ('Conv1d', 'Conv2d', 'Conv3d', 'ConvTranspose1d', 'ConvTranspose2d', 'ConvTranspose3d'):
    setattr(torch.nn, name, getattr(mmws, f'{name[:-2]}WS{name[-2:]}'))
