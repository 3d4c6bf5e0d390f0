"""What every voice offers: text tokens in, audio and marks out, in steps that can be stopped.

A voice is shared by all utterances of a process; an `Utterance` is one answer that it speaks::

    utterance = voice.open(instruct="", query=None)
    utterance.push([TextToken(4093, "Hel"), TextToken(385, "lo.")], None)
    utterance.end()
    while (piece := utterance.step()) is not None:
        play(piece.samples)

Nothing here waits for anybody: `push` and `end` only note what came, `step` computes. A server
calls `step` in a thread of its own; utterances that take turns with their steps share the voice
fairly. One that is not wanted any more is closed, which stops what is computed for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
HiddenStates = NDArray[np.float32]


class InstructError(ValueError):
    """The voice cannot follow an instruction; the text says which it can."""


class TokenError(ValueError):
    """A token or its hidden state is not one that the voice reads; the text says which it does."""


class VoiceBusyError(RuntimeError):
    """The voice speaks as many utterances as it can at once; another try later makes sense."""


class SpeakingError(RuntimeError):
    """The voice failed at this utterance; others go on."""


@dataclass(frozen=True)
class TextToken:
    """One token of the LLM.

    Attributes:
        id: its number in the LLM's vocabulary.
        text: the text that it completes; may be empty, or part of a word.
    """

    id: int
    text: str


@dataclass(frozen=True, eq=False)
class Query:
    """What the user has said, as the LLM read it; a spoken instruction is in it.

    Attributes:
        embeddings: `[positions, hidden_width]`, what the LLM read.
        hidden_states: `[positions, hidden_width]`, its last hidden states there.
    """

    embeddings: HiddenStates
    hidden_states: HiddenStates


@dataclass(frozen=True)
class Mark:
    """When `sample` samples of the utterance have been played, `token_count` tokens were heard."""

    token_count: int
    sample: int


@dataclass(frozen=True)
class Piece:
    """A piece of an utterance's audio.

    Attributes:
        samples: `[samples]` at the voice's rate, -1 to 1; may be empty where tokens say nothing.
        marks: in order, within this piece or at its end. Both counts start with the utterance.
        token2wav_seconds: of an utterance's first audio, from its speech tokens being there until
            it was made; 0 of the others, and where the voice has no speech tokens.
    """

    samples: Samples
    marks: tuple[Mark, ...]
    token2wav_seconds: float = 0.0


class Utterance(Protocol):
    """One answer on its way to audio. Not for two threads at once, except where stated."""

    @property
    def unspoken_reason(self) -> str:
        """Why (part of) the text that was stepped through has no sound; empty if all of it has."""

    def push(self, tokens: Sequence[TextToken], hidden_states: HiddenStates | None) -> None:
        """Takes the next tokens; safe while another thread is in `step`.

        Args:
            tokens: in the order of the LLM.
            hidden_states: `[tokens, hidden_width]`, what predicted each; None if the voice reads
                text only.

        Raises:
            TokenError: the voice does not read such tokens; none of them was taken.
        """

    def end(self) -> None:
        """No more tokens follow; safe while another thread is in `step`."""

    def step(self) -> Piece | None:
        """Makes the next piece, in bounded time.

        Returns:
            The piece, or None if there is nothing to do until more tokens come; after `end`, None
            says that the utterance is complete, and its last mark covers every token.

        Raises:
            VoiceBusyError: too many others speak; nothing of this one was spoken.
            SpeakingError: the voice failed; nothing more comes.
        """

    def close(self) -> None:
        """Nobody wants more of it; safe at any time, from any thread, and more than once."""


class Voice(Protocol):
    """Somebody who speaks; shared by all utterances of a process, from several threads.

    Attributes:
        name: as in ``pico``.
        sample_rate_hz: rate of the audio that it makes.
        reads_hidden_states: whether it needs the LLM's hidden states.
        hidden_width: width of those that it reads; 0 if it reads none.
        max_query_positions: positions of a query that it reads at most; 0 if it reads none.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def sample_rate_hz(self) -> int: ...  # noqa: D102
    @property
    def reads_hidden_states(self) -> bool: ...  # noqa: D102
    @property
    def hidden_width(self) -> int: ...  # noqa: D102
    @property
    def max_query_positions(self) -> int: ...  # noqa: D102

    def warm_up(self) -> None:
        """Loads what is needed for the first utterance to be as quick as the others."""

    def open(self, instruct: str, query: Query | None) -> Utterance:
        """Starts an utterance.

        Args:
            instruct: how to speak, in words; empty is neutral.
            query: what the user has said; None if the voice is not to know it.

        Raises:
            InstructError: the voice cannot follow the instruction.
            VoiceBusyError: too many others wait already.
        """

    def close(self) -> None:
        """Ends what the voice runs; its utterances must not be stepped any more."""
