"""How each family of voice encoders recognises words: samples in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from minmo.model.moonshine_encoder import MoonshineEncoder
from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.model.sense_voice_encoder import SenseVoiceEncoder
from minmo.model.whisper_encoder import WhisperEncoder
from minmo.model.whisper_recognizer import WhisperPrompt, WhisperRecognizer

Read: TypeAlias = Callable[[Tensor, int], Sequence[int]]
"""Samples `[1, samples]` at 16 kHz and a limit to at most so many tokens."""


def read_with_moonshine(encoder: MoonshineEncoder, decoder: MoonshineRecognizer) -> Read:
    """Recognises with Moonshine's decoder."""
    return lambda samples, limit: decoder.greedy(encoder(samples), limit)


def read_with_whisper(
    encoder: WhisperEncoder, decoder: WhisperRecognizer, prompt: WhisperPrompt
) -> Read:
    """Recognises with Whisper's decoder, in the language that it hears.

    Args:
        encoder: of the same checkpoint.
        decoder: of the same checkpoint.
        prompt: what its text starts with.
    """
    device = decoder.embed_tokens.weight.device

    def read(samples: Tensor, limit: int) -> list[int]:
        return decoder.greedy(encoder(samples.to(device)), limit, prompt)

    return read


def read_with_sense_voice(encoder: SenseVoiceEncoder) -> Read:
    """Recognises with SenseVoice's own head, written as people write."""
    device = encoder.embed.weight.device

    def read(samples: Tensor, limit: int) -> list[int]:
        (found,) = encoder.recognise(samples.to(device), written=True)
        return found.tokens[:limit]

    return read
