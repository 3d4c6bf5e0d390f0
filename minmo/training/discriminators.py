"""The vocoder's discriminators, which learn beside it with an optimizer of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minmo.model.vocoder_loss import SpectrumDiscriminators, discriminator_loss

_BETAS = (0.8, 0.99)


class LearningDiscriminators(nn.Module):
    """Discriminators that learn whenever they are asked to.

    What their optimizer (AdamW) knows lies in buffers, so that it is a part of the state: a run
    that was cut goes on exactly.

    Args:
        rate: the learning rate.
    """

    steps: Tensor
    means: Tensor
    squares: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.networks = SpectrumDiscriminators().requires_grad_(False)
        sizes = [one.numel() for one in self.networks.parameters()]
        self.register_buffer("steps", torch.zeros(len(sizes)))
        for name in ("means", "squares"):
            self.register_buffer(name, torch.zeros(sum(sizes)))
        self._rate, self._sizes = rate, sizes
        self._made: torch.optim.Optimizer | None = None

    def forward(self, samples: Tensor) -> list[list[Tensor]]:
        """`[batch, samples]` to what each discriminator says of it; the weights get no gradient."""
        verdicts: list[list[Tensor]] = self.networks(samples)
        return verdicts

    def learn(self, made: Tensor, real: Tensor) -> Tensor:
        """Takes one step towards telling made speech from real speech.

        Processes that train together take the same step. One whose loss is not finite is left out.

        Args:
            made: `[batch, samples]`, of the vocoder.
            real: `[batch, samples]`.

        Returns:
            The loss before it, a scalar.
        """
        parameters = list(self.networks.parameters())
        self.networks.requires_grad_(True)
        loss = discriminator_loss(self.networks(made.detach()), self.networks(real.detach()))
        gradients = list(torch.autograd.grad(loss, parameters))
        self.networks.requires_grad_(False)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for gradient in gradients:
                torch.distributed.all_reduce(gradient)
                gradient.div_(torch.distributed.get_world_size())
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            for parameter in parameters:
                parameter.grad = None
        return loss.detach()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        # Made late: the buffers are others once the module has moved to its device.
        if self._made is None:
            parameters = list(self.networks.parameters())
            self._made = torch.optim.AdamW(parameters, lr=self._rate, betas=_BETAS, fused=True)
            buffers = (torch.split(buffer, self._sizes) for buffer in (self.means, self.squares))
            parts = zip(*buffers, strict=True)
            for parameter, step, (mean, square) in zip(parameters, self.steps, parts, strict=True):
                self._made.state[parameter] = {
                    "step": step,
                    "exp_avg": mean.view_as(parameter),
                    "exp_avg_sq": square.view_as(parameter),
                }
        return self._made
