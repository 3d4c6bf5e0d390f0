"""The full-duplex predictor: who should speak, from the LLM's hidden states.

One Transformer layer and one linear-softmax layer, as in the paper (Table 1). It answers two
questions, several times a second: *assistant turn-taking* (has the user said something that wants
an answer now?) and *user turn-taking* (should the assistant stop and listen?).

A position sees a bounded number of positions before it, and only how far away they are. So the last
`left_context + 1` hidden states settle an answer: a branch that was forked or cut needs no
state of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.causal_transformer import CausalTransformerLayer

QUESTIONS = 2
"""Assistant turn-taking, user turn-taking; the answers are the classes 0, no, and 1, yes."""


@dataclass(frozen=True)
class DuplexPredictorConfig:
    """Sizes of the full-duplex predictor.

    Attributes:
        input_width: channels of the LLM's hidden states.
        width: channels of the Transformer layer; a linear layer stands before it.
        mlp_width: inner channels of its MLP.
        heads: its attention heads.
        left_context: positions before its own that a position sees.
    """

    input_width: int
    width: int
    mlp_width: int
    heads: int
    left_context: int


class DuplexPredictor(nn.Module):
    """Answers to both questions after every position."""

    def __init__(self, config: DuplexPredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.in_proj = nn.Linear(config.input_width, config.width)
        self.layer = CausalTransformerLayer(
            config.width, config.heads, config.mlp_width, config.left_context
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 2 * QUESTIONS)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits after every position.

        Args:
            hidden: `[batch, positions, input_width]`; a shorter sequence has anything finite
                behind it, which no position of its own sees.

        Returns:
            `[batch, positions, 2 questions, 2 classes]`, float32.
        """
        return self._logits(hidden, None)

    def probabilities(self, hidden: Tensor) -> tuple[float, float]:
        """What it says after the last position.

        Args:
            hidden: `[positions, input_width]`, at least one; more than the last
                `left_context + 1` change nothing and cost nothing.

        Returns:
            Of assistant turn-taking and of user turn-taking.

        Raises:
            ValueError: there is no position.
        """
        if len(hidden) == 0:
            raise ValueError("there are no hidden states: one position is needed at least")
        with torch.inference_mode():
            in_sight = hidden[-self.config.left_context - 1 :].to(self.in_proj.weight)
            yes = self._logits(in_sight[None], 1)[0, 0].softmax(-1)[:, 1]
        assistant, user = yes.tolist()
        return assistant, user

    def _logits(self, hidden: Tensor, last: int | None) -> Tensor:
        read = self.norm(self.layer(self.in_proj(hidden), last))
        logits: Tensor = self.head(read)
        return logits.view(*logits.shape[:2], QUESTIONS, 2).float()


def duplex_loss(
    logits: Tensor, labels: Tensor, asked: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Cross entropy of the duplex stage, averaged over both questions.

    Each question has its own weighted mean over the positions where it was asked: the one that is
    asked less often counts as much, and one that was never asked counts nothing.

    Args:
        logits: `[batch, positions, 2 questions, 2 classes]`.
        labels: `[batch, positions, 2 questions]`, int64, class of each answer.
        asked: `[batch, positions, 2 questions]`, true where there is a label.
        class_weights: `[2 questions, 2 classes]`, positive; all 1 if None.

    Returns:
        A scalar; 0 where nothing was asked.
    """
    labels = labels.where(asked, 0)
    losses = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none")
    losses = losses.view_as(labels).where(asked, 0)
    weights = asked.to(losses)
    if class_weights is not None:
        of_class = class_weights.to(losses).expand(*labels.shape, 2)
        weights = weights * of_class.gather(-1, labels[..., None])[..., 0]
    totals = weights.sum((0, 1))
    means = (losses * weights).sum((0, 1)) / totals.clamp(min=torch.finfo(totals.dtype).tiny)
    return means.sum() / (totals > 0).sum().clamp(min=1)
