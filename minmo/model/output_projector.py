"""The output projector: what the LLM says, as semantic vectors for the voice token LM.

A text token's input embedding is exact and knows no context; the hidden state that predicted it
is rich in context and vague about the word. One linear layer reads both, as in the paper (section
3.2 and Table 1).

An embedding says which token it is, and nothing of how that sounds: each has to be heard before it
can be spoken. A voice that learns from few hours can be told the token's letters too, which make a
vector that is added; then a token that was never heard is spoken as others that are spelled alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minmo.model.spelling import SpellingEncoder

_TOGETHER = 1024
"""Tokens whose letters are read at once: those of a vocabulary would take a lot of memory."""


@dataclass(frozen=True)
class OutputProjectorConfig:
    """Sizes of the output projector.

    Attributes:
        input_width: of the LLM's embeddings and hidden states.
        output_width: of the voice token LM.
        spelling_width: inner channels of what reads a token's letters; 0 for the paper's projector,
            which does not.
    """

    input_width: int
    output_width: int
    spelling_width: int = 0


class OutputProjector(nn.Module):
    """One linear layer over a token's embedding and its hidden state, and the token's letters."""

    def __init__(self, config: OutputProjectorConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(2 * config.input_width, config.output_width)
        self.spelling: SpellingEncoder | None = None
        if config.spelling_width:
            self.spelling = SpellingEncoder(config.spelling_width, config.output_width)

    def forward(
        self, token_embeddings: Tensor, hidden_states: Tensor, spelled: Tensor | None = None
    ) -> Tensor:
        """Makes semantic vectors.

        Args:
            token_embeddings: `[..., input_width]`, the LLM's input embeddings of text tokens.
            hidden_states: `[..., input_width]`, the last hidden state that predicted each.
            spelled: `[..., output_width]`, what `spell` makes of the tokens; None for what is no
                text, as speech embeddings of the user's query.

        Returns:
            `[..., output_width]`.
        """
        vectors: Tensor = self.linear(torch.cat((token_embeddings, hidden_states), dim=-1))
        return vectors if spelled is None else vectors + spelled

    def spell(self, spellings: Tensor) -> Tensor:
        """What the letters of tokens add to their semantic vectors.

        Args:
            spellings: `[tokens, LONGEST_SPELLING]`, uint8, as `spellings_of` gives; zeros for a
                token without letters.

        Returns:
            `[tokens, output_width]`.

        Raises:
            ValueError: this projector reads no letters.
        """
        if self.spelling is None:
            raise ValueError("the output projector reads no letters: its spelling_width is 0")
        # Tokens of like length together, which spares most of the work.
        order = (spellings > 0).sum(1).argsort(stable=True)
        parts = [self.spelling(spellings[part]) for part in torch.split(order, _TOGETHER)]
        return torch.cat(parts)[order.argsort()]
