"""The neural voice: an engine's utterances behind the interface that every voice has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minmo.engine.prompt import ChatFormat
from minmo.engine.voice import HiddenStates, InstructError, Piece, Query, TextToken
from minmo.engine.voice_decoder.engine import VoiceEngine
from minmo.engine.voice_decoder.sequence import SpeechSequence
from minmo.engine.voice_decoder.spelling import Spelling
from minmo.model.speaker import Speaker


class NeuralVoice:
    """A speaker of an engine. It does not end the engine, which other speakers may share.

    An instruction reaches this voice as part of the query: it is among the words that the LLM has
    read, and the query says what the LLM made of them (paper, section 3.1). There is none in words,
    as no LLM is here; one that reads text by a table of its own follows none.

    Args:
        engine: which computes; started.
        speaker: who speaks.
        seed: of the draws; the same text then sounds the same.
        spelling: the LLM's tokenizer, for text that comes without token ids; None reads ids alone.

    Raises:
        SpeakerError: the engine's modules cannot speak as this speaker.
    """

    def __init__(
        self,
        engine: VoiceEngine,
        speaker: Speaker,
        seed: int = 0,
        spelling: ChatFormat | None = None,
    ) -> None:
        engine.check(speaker)
        self._engine, self._speaker, self._seed = engine, speaker, seed
        self._spelling = spelling

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

    @property
    def max_query_positions(self) -> int:
        """Positions of a query that it reads at most; 0 if it reads none."""
        return self._engine.longest_query if self.hidden_width else 0

    def warm_up(self) -> None:
        """Says something once, in a first chunk and in one that follows."""
        utterance = self.open("", None)
        # Two groups of text make speech enough for two chunks.
        count, width = 2 * self._engine.modules.lm.config.text_group, self.hidden_width
        states = np.zeros((count, width), np.float32) if width else None
        utterance.push([TextToken(0, "")] * count, states)
        utterance.step()
        utterance.step()
        utterance.close()

    def open(self, instruct: str, query: Query | None) -> NeuralUtterance:
        """Starts an utterance; see `minmo.engine.voice.Voice.open`.

        Args:
            instruct: must be empty.
            query: what the user has said, an instruction how to speak included.
        """
        if instruct.strip() and not self.reads_hidden_states:
            raise InstructError(f"voice {self.name!r} follows no instructions")
        if instruct.strip():
            raise InstructError(
                f"voice {self.name!r} reads instructions in the query: let the LLM read it as the "
                "user's words, and send what it made of them"
            )
        if query is not None:
            # The caller's may be a view of a message that is gone by the time it is read.
            query = Query(np.array(query.embeddings), np.array(query.hidden_states))
        spelling = Spelling(self._spelling) if self._spelling is not None else None
        sequence = self._engine.open(self._speaker, self._seed, query)
        return NeuralUtterance(self._engine, sequence, spelling)

    def close(self) -> None:
        """Does nothing: the engine is stopped by whom it was started."""


class NeuralUtterance:
    """One answer on its way to audio; see `minmo.engine.voice.Utterance`."""

    def __init__(
        self, engine: VoiceEngine, sequence: SpeechSequence, spelling: Spelling | None
    ) -> None:
        self._engine, self._sequence, self._spelling = engine, sequence, spelling

    @property
    def unspoken_reason(self) -> str:
        """Why (part of) the text has no sound; empty if all of it has."""
        return self._sequence.unspoken_reason

    def push(self, tokens: Sequence[TextToken], hidden_states: HiddenStates | None) -> None:
        """Takes the next tokens."""
        if self._spelling is not None:
            tokens = self._spelling.spell(tokens)
        self._engine.push(self._sequence, tokens, hidden_states)

    def end(self) -> None:
        """No more tokens follow."""
        self._engine.end(self._sequence)

    def step(self) -> Piece | None:
        """Waits for the next piece, which the engine computes in a thread of its own."""
        piece = self._engine.next_piece(self._sequence)
        if piece is None or self._spelling is None:
            return piece
        return self._spelling.counted(piece)

    def close(self) -> None:
        """Nobody wants more of it."""
        self._engine.close(self._sequence)
