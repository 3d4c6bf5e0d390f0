"""The output projector: what the LLM says, as semantic vectors for the voice token LM.

A text token's input embedding is exact and knows no context; the hidden state that predicted it
is rich in context and vague about the word. One linear layer reads both, as in the paper (section
3.2 and Table 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OutputProjectorConfig:
    """Sizes of the output projector.

    Attributes:
        input_width: of the LLM's embeddings and hidden states.
        output_width: of the voice token LM.
    """

    input_width: int
    output_width: int


class OutputProjector(nn.Module):
    """One linear layer over a token's embedding and its hidden state."""

    def __init__(self, config: OutputProjectorConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(2 * config.input_width, config.output_width)

    def forward(self, token_embeddings: Tensor, hidden_states: Tensor) -> Tensor:
        """Makes semantic vectors.

        Args:
            token_embeddings: `[..., input_width]`, the LLM's input embeddings of text tokens.
            hidden_states: `[..., input_width]`, the last hidden state that predicted each.

        Returns:
            `[..., output_width]`.
        """
        vectors: Tensor = self.linear(torch.cat((token_embeddings, hidden_states), dim=-1))
        return vectors
