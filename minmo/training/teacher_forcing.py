"""What the frozen LLM makes of a text, as if it had said it itself (teacher forcing).

The LLM learns nothing while the voice does, so what it makes of a clip's text is the same every
time: it is most of what a step costs until it is remembered.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from minmo.engine.spoken_text import SpokenText
from minmo.model.llm import Llm
from minmo.training.clip_memory import ClipMemory


class LlmStates(NamedTuple):
    """What the voice reads of the LLM.

    Attributes:
        query: `[positions, width]`, embeddings of the user's words.
        query_states: `[positions, width]`, the last hidden states there.
        said: `[tokens, width]`, embeddings of the text's tokens.
        said_states: `[tokens, width]`, the last hidden states that predicted them.
    """

    query: Tensor
    query_states: Tensor
    said: Tensor
    said_states: Tensor


class TeacherForcing(nn.Module):
    """The frozen LLM, and what it has made of texts so far.

    Args:
        llm: with plain or packed weights.
        megabytes: of hidden states that are remembered, in float16; texts beyond are read each
            time. An hour of speech takes some 20 MB at the width of SmolLM2-135M.
    """

    def __init__(self, llm: Llm, megabytes: float) -> None:
        super().__init__()
        self.llm = llm.requires_grad_(False).eval()
        self._memory = ClipMemory(megabytes)

    @torch.no_grad()
    def forward(self, clip: str, text: SpokenText) -> LlmStates:
        """Reads a text.

        Each is read alone: its numbers depend on nothing else, so a run that was cut goes on with
        those that it had.

        Args:
            clip: under which it is remembered.
            text: of that clip, the same every time.

        Returns:
            Float32.
        """
        places = [*text.query, *text.predicting]
        states = self._memory(clip, lambda: self._read(text)[places].half().cpu())
        states = states.to(self.llm.device).float()
        count = len(text.query)
        embeddings = self._embed([text.tokens[place] for place in (*text.query, *text.said)])
        return LlmStates(embeddings[:count], states[:count], embeddings[count:], states[count:])

    def _read(self, text: SpokenText) -> Tensor:
        """Last hidden states of all that is read, `[positions, width]`."""
        device = self.llm.device
        # Mixed precision is for what learns: the LLM has the number type that it was given.
        with torch.autocast(device.type, enabled=False):
            # The last token is spoken, and predicts nothing that is.
            embeddings = self.llm.embed(torch.tensor(text.tokens[:-1], device=device))
            return self.llm.forward_sequence(embeddings[None])[0]

    def _embed(self, tokens: list[int]) -> Tensor:
        ids = torch.tensor(tokens, device=self.llm.device, dtype=torch.int64)
        # The rows as they are stored, whatever the LLM computes in: so the voice looks them up.
        rows: Tensor = self.llm.embed_tokens(ids)
        return rows.float()
