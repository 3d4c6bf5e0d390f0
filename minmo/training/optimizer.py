"""Which parameters are moved, how, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from minmo.training.config import TrainingConfig
from minmo.training.errors import TrainingError
from minmo.training.muon import Muon
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
            if not any(_begins(name, one) for one in config.optimizer.frozen):
                parameter.requires_grad_(True)
                named[name] = parameter
    for beginning in config.optimizer.frozen:
        if not any(
            _begins(name, beginning)
            for module in rates
            for name, _ in kept[module].named_parameters(module)
        ):
            raise TrainingError(
                f"optimizer.frozen names {beginning!r}, which no parameter of a trained module "
                "begins with"
            )
    return named


def _begins(name: str, pattern: str) -> bool:
    return fnmatchcase(name, f"{pattern}*")


def make_optimizer(
    model: Trainee, config: TrainingConfig
) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimizer with its groups of parameters, and the learning rate of each at the top."""
    settings = config.optimizer
    hidden: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for module, rate in settings.learning_rates.items():
        parts: dict[str, list[nn.Parameter]] = {"hidden": [], "matrices": [], "vectors": []}
        for name, parameter in model.kept()[module].named_parameters():
            if parameter.requires_grad:
                kind = "matrices" if parameter.ndim >= _MATRIX else "vectors"
                if settings.method == "muon" and _is_hidden(name, parameter):
                    kind = "hidden"
                parts[kind].append(parameter)
        for kind, chosen in parts.items():
            decay = 0.0 if kind == "vectors" else settings.weight_decay
            if chosen:
                group = {"params": chosen, "lr": rate, "weight_decay": decay}
                (hidden if kind == "hidden" else others).append(group)
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        optimizers.append(Muon(hidden, settings.momentum))
    if others:
        optimizers.append(torch.optim.AdamW(others, betas=settings.betas, fused=True))
    joined = optimizers[0] if len(optimizers) == 1 else Joined(optimizers)
    return joined, [group["lr"] for group in joined.param_groups]


class Joined(torch.optim.Optimizer):
    """Several optimizers, each of its own parameters, that are stepped and saved as one.

    Args:
        parts: the optimizers; their groups and their state become this one's.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Each takes its step."""
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        super().load_state_dict(dict(state_dict))
        self._share()

    def _share(self) -> None:
        """Groups and state are this one's, and the parts work on them."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]


def _is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix of a Transformer layer: what Muon is made for."""
    return parameter.ndim == _MATRIX and (name.startswith("layers.") or ".layers." in name)
