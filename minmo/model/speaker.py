"""Who speaks: a speaker's embedding and, for voices that are cloned, a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

USUAL_CHARACTERS_PER_SECOND = 15.0
"""Of conversational English."""


class SpeakerError(ValueError):
    """A speaker cannot be used; the text says what is wrong."""


@dataclass(frozen=True)
class Prompt:
    """A recording of the speaker, for the voice to go on from.

    Attributes:
        speech_tokens: of the recording, 25 a second.
        mel: `[2 * speech tokens, mel_bins]`, of the recording.
        text_tokens: what is said in it, in the vocabulary of the LLM; may be empty.
    """

    speech_tokens: tuple[int, ...]
    mel: Tensor
    text_tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Speaker:
    """Somebody whose voice can be spoken with.

    Attributes:
        name: what callers ask for.
        embedding: `[speaker_width]`, float32.
        prompt: a recording to go on from, if there is one.
        characters_per_second: how fast the speaker speaks; places the marks.
    """

    name: str
    embedding: Tensor
    prompt: Prompt | None = None
    characters_per_second: float = USUAL_CHARACTERS_PER_SECOND


def random_speaker(width: int, seed: int = 0, name: str = "random") -> Speaker:
    """Nobody: a random embedding of length 1, for tests and measurements."""
    embedding = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return Speaker(name, embedding / embedding.norm())
