"""How quick an engine is: the voice's part of the latency model, alone and with others."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

import numpy as np

from minmo.engine.voice import TextToken
from minmo.engine.voice_decoder.engine import VoiceEngine
from minmo.engine.voice_decoder.sequence import SpeechSequence
from minmo.model.speaker import Speaker


@dataclass(frozen=True)
class VoiceReport:
    """What was measured; times are those of the slowest utterance.

    Attributes:
        utterances: that spoke at the same time.
        first_tokens_ms: from the first five text tokens to 15 speech tokens.
        first_chunk_ms: from the first five text tokens to the first audio, 480 ms of it.
        real_time_factor: time over audio time, until all have spoken; below 1 / `utterances`
            everybody is heard without a gap. With several, audio time is that of all together.
        audio_seconds: that was made.
    """

    utterances: int
    first_tokens_ms: float
    first_chunk_ms: float
    real_time_factor: float
    audio_seconds: float


def measure(
    engine: VoiceEngine, speaker: Speaker, utterances: int = 1, text_tokens: int = 40
) -> VoiceReport:
    """Lets utterances that come at the same moment speak, with random hidden states.

    Args:
        engine: started, warm, and not used by others.
        speaker: who speaks.
        utterances: at the same time, at most as many as there are slots.
        text_tokens: of each.
    """
    drawn = np.random.default_rng(0)
    ids = drawn.integers(0, engine.modules.vocabulary, (utterances, text_tokens))
    shape = (utterances, text_tokens, engine.modules.hidden_width)
    hidden_states = drawn.standard_normal(shape, np.float32)
    before = engine.snapshot()
    sequences = [engine.open(speaker, seed) for seed in range(utterances)]
    first_chunks = [0.0] * utterances
    # The clock of the engine.
    began = time.monotonic()

    def speak(number: int, sequence: SpeechSequence) -> None:
        tokens = [TextToken(int(id), "text") for id in ids[number]]
        states = hidden_states[number] if engine.modules.hidden_width else None
        engine.push(sequence, tokens, states)
        engine.end(sequence)
        while engine.next_piece(sequence) is not None:
            first_chunks[number] = first_chunks[number] or time.monotonic() - began

    threads = [threading.Thread(target=speak, args=pair) for pair in enumerate(sequences)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    first_tokens = max(sequence.first_chunk_ready or math.inf for sequence in sequences) - began
    audio_seconds = engine.snapshot().audio_seconds - before.audio_seconds
    return VoiceReport(
        utterances,
        first_tokens * 1000,
        max(first_chunks) * 1000,
        seconds / audio_seconds,
        audio_seconds,
    )
