"""The systems that speak, each of one interface: a text to audio, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import torch

from minmo.audio.pcm import Samples
from minmo.engine.prompt import ChatFormat, TextStream
from minmo.engine.spoken_text import spoken_text
from minmo.engine.voice import HiddenStates, Query, TextToken, Voice
from minmo.evaluation.answering import SYSTEM_PROMPT, Answer, Answerer
from minmo.evaluation.systems import Turn
from minmo.model.llm import Llm

FIRST_TOKENS = 5
"""Text tokens after which the paper's latency model has the voice begin."""


@dataclass(frozen=True, eq=False)
class Spoken:
    """What a system made of a text.

    Attributes:
        samples: `[samples]`; empty where it could say nothing.
        rate_hz: their rate.
        compute_s: seconds from the text to the last sample, the LLM's left out; None for a
            recording.
        first_audio_s: seconds from the fifth text token to the first audio; None for a system that
            reads no tokens, and where the text has fewer.
        borders: samples at which one piece of audio ended and the next began.
    """

    samples: Samples
    rate_hz: int
    compute_s: float | None = None
    first_audio_s: float | None = None
    borders: Sequence[int] = ()


class Speaker(Protocol):
    """Says texts."""

    @property
    def name(self) -> str:
        """In tables."""

    @property
    def made_with(self) -> Mapping[str, Any]:
        """What its audio depends on, so that it is not mixed with that of another."""

    def say(self, text: str, instruct: str = "") -> Spoken:
        """Reads a text out.

        Args:
            text: to say.
            instruct: how, in words; empty is neutral.

        Raises:
            InstructError: it cannot follow the instruction.
        """

    def answer(self, turn: Turn, answer: Answer) -> Spoken:
        """Says the LLM's answer to a user's turn.

        Args:
            turn: the user's.
            answer: to it.
        """


class PicoSpeaker:
    """SVOX Pico, the voice of the cascade.

    Args:
        voice: open; who made it closes it.
    """

    name = "SVOX Pico"

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self.made_with: Mapping[str, Any] = {"ttspico": version("ttspico")}

    def say(self, text: str, instruct: str = "") -> Spoken:
        """Reads a text out, phrase by phrase."""
        tokens = [TextToken(0, f"{word} ") for word in text.split()]
        said = _speak(self._voice, tokens, None, instruct, None)
        # It waits for whole phrases: how soon one is there depends on the LLM.
        return Spoken(said.samples, said.rate_hz, said.compute_s)

    def answer(self, turn: Turn, answer: Answer) -> Spoken:
        """Reads the answer out; what it answers does not matter."""
        return self.say(answer.text)


class NeuralSpeaker:
    """The network that reads the LLM's tokens and hidden states, as the voice decoder runs it.

    Args:
        voice: of a started engine.
        chat: the LLM's format.
        made_with: hashes of what speaks.
        llm: whose hidden states are read; None for a voice that reads none.
        answerer: the same LLM where it answers; None for one that only reads out.
    """

    name = "MinMo"

    def __init__(
        self,
        voice: Voice,
        chat: ChatFormat,
        made_with: Mapping[str, Any],
        llm: Llm | None,
        answerer: Answerer | None = None,
    ) -> None:
        self._voice, self._chat, self._llm, self._answerer = voice, chat, llm, answerer
        self.made_with = made_with

    def say(self, text: str, instruct: str = "") -> Spoken:
        """Reads a text out as if the LLM had answered with it, behind what the user asked for."""
        laid_out = spoken_text(self._chat, text, instruct, SYSTEM_PROMPT)
        if self._llm is None or not laid_out.said_tokens:
            return self._say(laid_out.said_tokens, None, None)
        with torch.inference_mode():
            rows = self._llm.embed(torch.tensor(laid_out.tokens[:-1]))
            states = self._llm.forward_sequence(rows[None])[0].float().numpy()
        asked = slice(laid_out.query.start, laid_out.query.stop)
        query = Query(rows[asked].float().numpy(), states[asked]) if laid_out.query else None
        predicting = slice(laid_out.predicting.start, laid_out.predicting.stop)
        return self._say(laid_out.said_tokens, states[predicting], query)

    def answer(self, turn: Turn, answer: Answer) -> Spoken:
        """Says the answer, behind the turn as the LLM read it."""
        if self._answerer is None or self._llm is None or not answer.tokens:
            return self._say(answer.tokens, None, None)
        query, states = self._answerer.read_answer(turn, answer.tokens)
        return self._say(answer.tokens, states, query)

    def _say(
        self, tokens: Sequence[int], states: HiddenStates | None, query: Query | None
    ) -> Spoken:
        if not tokens:
            return Spoken(np.zeros(0, np.float32), self._voice.sample_rate_hz)
        written = TextStream(self._chat)
        read = [TextToken(token, written.add(token)) for token in tokens]
        return _speak(self._voice, read, states, "", query)


def _speak(
    voice: Voice,
    tokens: Sequence[TextToken],
    states: HiddenStates | None,
    instruct: str,
    query: Query | None,
) -> Spoken:
    """Has an utterance spoken, its first tokens alone until there is audio."""
    utterance = voice.open(instruct, query)
    pieces: list[Samples] = []
    first_audio: float | None = None
    began = time.perf_counter()
    try:
        for start, end in ((0, FIRST_TOKENS), (FIRST_TOKENS, len(tokens))):
            utterance.push(tokens[start:end], None if states is None else states[start:end])
            if end >= len(tokens):
                utterance.end()
            while (piece := utterance.step()) is not None:
                if len(piece.samples):
                    pieces.append(piece.samples)
                    if start == 0 and first_audio is None:
                        first_audio = time.perf_counter() - began
            if end >= len(tokens):
                break
    finally:
        utterance.close()
    seconds = time.perf_counter() - began
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    ends = np.cumsum([len(piece) for piece in pieces])[:-1]
    return Spoken(samples, voice.sample_rate_hz, seconds, first_audio, [int(end) for end in ends])
