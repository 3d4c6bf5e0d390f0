"""Which speech tokenizer named the tokens that a run learns from, kept with its weights.

What learned the tokens of one tokenizer knows nothing of another's, and the one that is installed
may be another by the time that a run is exported.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from minmo.training.errors import TrainingError
from minmo.training.stage import Weights

NAMED_BY = "speech_tokens"
"""Name of it among a checkpoint's modules."""


class NamedBy(nn.Module):
    """The hash of a speech tokenizer.

    Args:
        sha256: as hex digits.
    """

    sha256: Tensor

    def __init__(self, sha256: str) -> None:
        super().__init__()
        self.register_buffer("sha256", torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8))

    @classmethod
    def going_on(cls, weights: Weights, sha256: str) -> Self:
        """That of a run that begins, or goes on, with weights.

        Args:
            weights: maybe of a run that has learned such tokens.
            sha256: of the tokenizer that named the tokens of this run.

        Raises:
            TrainingError: the weights have learned the tokens of another tokenizer.
        """
        learned = named_by(weights)
        if learned not in (None, sha256):
            raise TrainingError(
                f"the weights to begin with have learned the tokens of the speech tokenizer of "
                f"sha256 {learned}, and the one that is installed is {sha256}: bring that one back "
                "(`minmo train export` of its run), or begin without them"
            )
        return cls(sha256)


def named_by(weights: Weights) -> str | None:
    """The hash of the tokenizer whose tokens weights have learned; None where none is known."""
    if NAMED_BY not in weights:
        return None
    return bytes(weights[NAMED_BY]["sha256"].tolist()).hex()
