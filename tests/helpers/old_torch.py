"""pytest plugin: take away names that torch 2.0 lacks, before mmws is imported; see tests/test_fallbacks.py."""

import torch
from torch import nn
from torch.nn.utils import parametrizations

for owner, name in ((torch._C, '_data_address'), (torch._C, '_storage_Use_Count'), (nn.utils, 'get_total_norm'),
                    (parametrizations, 'weight_norm'), (nn.Module, 'register_load_state_dict_pre_hook')):
    if hasattr(owner, name):
        delattr(owner, name)
