"""Which parameters are moved, and by how much."""

from __future__ import annotations

import torch
from torch import nn

from minmo.training.config import TrainingConfig
from minmo.training.errors import TrainingError
from minmo.training.stage import Trainee

_MATRIX = 2


def trained_parameters(model: Trainee, config: TrainingConfig) -> dict[str, nn.Parameter]:
    """Freezes what has no learning rate; the other parameters, as `<module>.<name>`."""
    kept, rates = model.kept(), config.optimizer.learning_rates
    model.requires_grad_(False)
    named: dict[str, nn.Parameter] = {}
    for module in rates:
        if module not in kept:
            raise TrainingError(
                f"optimizer.learning_rates names {module!r}, which this stage does not train; it "
                f"can train: {', '.join(kept)}"
            )
        for name, parameter in kept[module].named_parameters(module):
            if not name.startswith(config.optimizer.frozen):
                parameter.requires_grad_(True)
                named[name] = parameter
    for beginning in config.optimizer.frozen:
        if not any(
            name.startswith(beginning)
            for module in rates
            for name, _ in kept[module].named_parameters(module)
        ):
            raise TrainingError(
                f"optimizer.frozen names {beginning!r}, which no parameter of a trained module "
                "begins with"
            )
    return named


def make_optimizer(
    model: Trainee, config: TrainingConfig
) -> tuple[torch.optim.Optimizer, list[float]]:
    """AdamW with groups of parameters, and the learning rate of each at the top."""
    settings, groups, rates = config.optimizer, [], []
    for module, rate in settings.learning_rates.items():
        parameters = [one for one in model.kept()[module].parameters() if one.requires_grad]
        matrices = [one for one in parameters if one.ndim >= _MATRIX]
        others = [one for one in parameters if one.ndim < _MATRIX]
        for chosen, decay in ((matrices, settings.weight_decay), (others, 0.0)):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
                rates.append(rate)
    return torch.optim.AdamW(groups, betas=settings.betas, fused=True), rates
