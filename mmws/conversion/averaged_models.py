"""Moving averages of parameters that are a part of a network, such as the momentum encoders of MoCo and BYOL."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ['averaged_models', 'rename_parameters_']


def averaged_models(model: nn.Module) -> list[Any]:
    """Return the modules of ``model`` that average the parameters of others: torch's ``AveragedModel`` and mmengine's.

    Their method ``update_parameters`` reads weights, and changes nothing but the averages.
    """
    return [module for module in model.modules()
            if isinstance(module, AveragedModel) or isinstance(vars(module).get('avg_parameters'), dict)]


def rename_parameters_(model: nn.Module) -> None:
    """Update the names of parameters that mmengine's averaged models keep, after a conversion changed names."""
    for average in averaged_models(model):
        if 'avg_parameters' in vars(average):
            named = average.module.state_dict if average.update_buffers else average.module.named_parameters
            average.avg_parameters = dict(named())
