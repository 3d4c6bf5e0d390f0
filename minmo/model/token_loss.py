"""Cross entropy over the tokens of sequences, for the LLM and for the voice token LM."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from minmo.model.llm import Llm

IGNORED = -100
"""The target of a position that predicts nothing."""


class TokenLoss(NamedTuple):
    """The loss of a batch, and how good it is.

    Attributes:
        loss: scalar, the mean cross entropy over all targets, differentiable.
        accuracy: scalar, the share of targets that are the likeliest class.
        targets: scalar, how many there are.
    """

    loss: Tensor
    accuracy: Tensor
    targets: Tensor


def token_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> TokenLoss:
    """Cross entropy of sequences.

    Every target counts the same, however long its sequence is. Without any target the loss is 0.

    Args:
        logits: `[..., classes]`; those at a position predict its target.
        targets: `[...]`, classes, or `IGNORED`.
        label_smoothing: share of the target's probability that all classes divide.
    """
    there = targets != IGNORED
    count = there.sum()
    total = F.cross_entropy(
        logits.flatten(0, -2),
        targets.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    right = (logits.detach().argmax(-1) == targets) & there
    divisor = count.clamp(min=1)
    return TokenLoss(total / divisor, right.sum() / divisor, count)


def text_loss(
    llm: Llm, embeddings: Tensor, targets: Tensor, lengths: Tensor | None = None
) -> TokenLoss:
    """What speech-to-text training minimises: the LLM's next tokens after speech embeddings.

    Logits are made of the positions that predict a token alone: a vocabulary is many times wider
    than a hidden state, and most positions of a spoken query predict nothing.

    Args:
        llm: with plain weights; frozen or not, gradients reach the embeddings.
        embeddings: `[batch, positions, width]`, of speech and text in their order.
        targets: `[batch, positions]`, the token after each position, or `IGNORED`.
        lengths: `[batch]`, positions that are there; None for all.
    """
    hidden = llm.forward_sequence(embeddings, lengths)
    there = targets != IGNORED
    return token_loss(llm.logits(hidden[there]), targets[there])
