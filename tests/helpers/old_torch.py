"""pytest plugin: take away names that torch 2.0 lacks, before mmws is imported; see tests/test_fallbacks.py."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

for owner, name in ((torch._C, '_data_address'), (torch._C, '_storage_Use_Count'), (nn.utils, 'get_total_norm'),
                    (parametrizations, 'weight_norm'), (nn.Module, 'register_load_state_dict_pre_hook')):
    delattr(owner, name)

COUNT_CACHED_WEIGHTS = {
    'test_weights_of_one_optimizer_step_are_standardized_together',
    'test_weights_of_two_optimizers_are_not_standardized_together',
    'test_stale_memory_is_reused_unless_it_is_used_elsewhere[False]',
    'test_gradient_accumulation_standardizes_once_and_keeps_the_address[SGD]',
    'test_gradient_accumulation_standardizes_once_and_keeps_the_address[AdamW]',
    'test_a_head_shared_by_five_levels_is_standardized_once_per_step',
    'test_frozen_layers_and_inference_are_standardized_once', 'test_threads',
    *(f'test_convolutions_of_any_dimension_are_cached[ConvWS{dim}d-{dim}]' for dim in (1, 2, 3))}
USE_WEIGHT_NORM = {'test_weights_follow_the_definition', 'test_all_forms_apply_to_the_same_convolutions',
                   'test_warns_if_nothing_changes_unless_weights_are_plain'}


def pytest_collection_modifyitems(items):
    for item in items:
        values = item.callspec.params.values() if hasattr(item, 'callspec') else ()
        if item.name in COUNT_CACHED_WEIGHTS:
            item.add_marker(pytest.mark.skip(reason='without copy-on-write, nothing is cached'))
        elif item.originalname in USE_WEIGHT_NORM or any(value == 'wn' for value in values if isinstance(value, str)):
            item.add_marker(pytest.mark.skip(reason='without weight_norm, the option is refused'))
