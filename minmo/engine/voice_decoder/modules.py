"""The network's modules between the LLM and the audio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from minmo.model.flow_encoder import MEL_FRAMES_PER_TOKEN
from minmo.model.flow_matching import FlowMatching
from minmo.model.output_projector import OutputProjector
from minmo.model.vocoder import Vocoder
from minmo.model.voice_token_lm import VoiceTokenLm


@dataclass(frozen=True)
class SemanticVectors:
    """Makes the voice token LM's input from the LLM's output.

    Attributes:
        projector: joins a token's embedding and its hidden state.
        embeddings: `[vocabulary, hidden_width]`, the LLM's table of input embeddings.
        spelled: `[vocabulary, width]`, what the letters of each token add to its vector; None
            where the projector reads no letters.
    """

    projector: OutputProjector
    embeddings: Tensor
    spelled: Tensor | None = None


@dataclass(frozen=True)
class VoiceModules:
    """What speaks; all on one device.

    Attributes:
        lm: the voice token LM.
        flow: token2wav's first half, speech tokens to mel.
        vocoder: its second half, mel to samples.
        semantic: what reads the LLM; None where the LM reads text tokens by a table of its own.
    """

    lm: VoiceTokenLm
    flow: FlowMatching
    vocoder: Vocoder
    semantic: SemanticVectors | None = None

    def __post_init__(self) -> None:
        if self.semantic is None and self.lm.text_embedding is None:
            raise ValueError(
                "nothing reads the text: give an output projector with the LLM's embeddings, or a "
                "voice token LM with a text_vocabulary"
            )

    @classmethod
    def load(
        cls,
        load: Callable[[str], Any],
        embeddings: Callable[[], Tensor],
        spellings: Callable[[], Tensor] | None = None,
    ) -> Self:
        """Brings together what a preset has.

        A voice token LM with a table of text embeddings speaks by that table; any other needs the
        output projector. On a CPU it reads its weights as float16 where that changes nothing, which
        makes its steps several times as fast: it is worth storing them so.

        Args:
            load: gives a module by the name of its table in the preset.
            embeddings: gives the LLM's table of input embeddings, `[vocabulary, hidden_width]`.
            spellings: gives how its tokens are spelled, `[vocabulary, LONGEST_SPELLING]`
                (`minmo.engine.token_spellings`); asked for where the projector reads letters.

        Raises:
            ValueError: it does, and there are none.
        """
        lm = load("voice_token_lm")
        semantic = None
        if not lm.config.text_vocabulary:
            projector: OutputProjector = load("output_projector")
            spelled = None
            if projector.spelling is not None:
                if spellings is None:
                    raise ValueError(
                        "the output projector reads letters: say how the LLM's tokens are spelled"
                    )
                # Once for all: reading letters would else be part of the first audio's delay.
                with torch.inference_mode():
                    spelled = projector.spell(spellings().to(lm.start.device))
            semantic = SemanticVectors(projector, embeddings(), spelled)
        return cls(lm, load("flow_matching"), load("vocoder"), semantic)

    @property
    def hidden_width(self) -> int:
        """Width of the LLM's hidden states; 0 if they are not read."""
        return self.semantic.projector.config.input_width if self.semantic else 0

    @property
    def vocabulary(self) -> int:
        """Text tokens that there are."""
        if self.semantic is not None:
            return self.semantic.embeddings.shape[0]
        return self.lm.config.text_vocabulary

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.lm.start.device

    @property
    def samples_per_token(self) -> int:
        """Audio of one speech token, in samples."""
        return MEL_FRAMES_PER_TOKEN * self.vocoder.config.hop
