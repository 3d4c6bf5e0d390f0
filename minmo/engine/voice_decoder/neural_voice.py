"""The neural voice: an engine's utterances behind the interface that every voice has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minmo.engine.voice import HiddenStates, InstructError, Piece, TextToken
from minmo.engine.voice_decoder.engine import VoiceEngine
from minmo.engine.voice_decoder.sequence import Query, SpeechSequence
from minmo.engine.voice_decoder.speaker import Speaker

_WARM_UP_TOKENS = 8


class NeuralVoice:
    """A speaker of an engine. It does not end the engine, which other speakers may share.

    An instruction reaches this voice as part of the query: it is among the words that the LLM has
    read, and `query_hidden_states` say what the LLM made of them. There is none in words.

    Args:
        engine: which computes; started.
        speaker: who speaks.
        seed: of the draws; the same text then sounds the same.

    Raises:
        SpeakerError: the engine's modules cannot speak as this speaker.
    """

    def __init__(self, engine: VoiceEngine, speaker: Speaker, seed: int = 0) -> None:
        engine.check(speaker)
        self._engine, self._speaker, self._seed = engine, speaker, seed

    @property
    def name(self) -> str:
        """The speaker's."""
        return self._speaker.name

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the audio that it makes."""
        return self._engine.modules.vocoder.config.sample_rate_hz

    @property
    def reads_hidden_states(self) -> bool:
        """Whether it needs the LLM's hidden states."""
        return self.hidden_width > 0

    @property
    def hidden_width(self) -> int:
        """Width of those that it reads; 0 if it reads none."""
        return self._engine.modules.hidden_width

    def warm_up(self) -> None:
        """Says something once, in both kinds of chunks."""
        utterance = self.open("", None)
        width = self.hidden_width
        states = np.zeros((_WARM_UP_TOKENS, width), np.float32) if width else None
        utterance.push([TextToken(0, "")] * _WARM_UP_TOKENS, states)
        utterance.step()
        utterance.close()

    def open(
        self,
        instruct: str,
        query_hidden_states: HiddenStates | None,
        query_embeddings: HiddenStates | None = None,
    ) -> NeuralUtterance:
        """Starts an utterance; see `minmo.engine.voice.Voice.open`.

        Args:
            instruct: must be empty.
            query_hidden_states: `[positions, hidden_width]` of the user's query.
            query_embeddings: `[positions, hidden_width]`, the LLM's inputs there; zeros if None.
        """
        if instruct.strip():
            raise InstructError(
                f"voice {self.name!r} takes its instructions from the conversation: put it into "
                "what is said to the LLM, and send query_hidden_states"
            )
        query = None
        if query_hidden_states is not None and self.reads_hidden_states:
            embeddings = query_embeddings
            if embeddings is None:
                embeddings = np.zeros_like(query_hidden_states)
            query = Query(np.array(embeddings), np.array(query_hidden_states))
        return NeuralUtterance(self._engine, self._engine.open(self._speaker, self._seed, query))

    def close(self) -> None:
        """Does nothing: the engine is stopped by whom it was started."""


class NeuralUtterance:
    """One answer on its way to audio; see `minmo.engine.voice.Utterance`."""

    def __init__(self, engine: VoiceEngine, sequence: SpeechSequence) -> None:
        self._engine, self._sequence = engine, sequence

    @property
    def unspoken_reason(self) -> str:
        """Why (part of) the text has no sound; empty if all of it has."""
        return self._sequence.unspoken_reason

    def push(self, tokens: Sequence[TextToken], hidden_states: HiddenStates | None) -> None:
        """Takes the next tokens."""
        self._engine.push(self._sequence, tokens, hidden_states)

    def end(self) -> None:
        """No more tokens follow."""
        self._engine.end(self._sequence)

    def step(self) -> Piece | None:
        """Waits for the next piece, which the engine computes in a thread of its own."""
        return self._engine.next_piece(self._sequence)

    def close(self) -> None:
        """Nobody wants more of it."""
        self._engine.close(self._sequence)
