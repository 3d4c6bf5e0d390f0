"""One utterance on its way through the engine: its text, its speech tokens, its audio."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

import numpy as np

from minmo.engine.voice import HiddenStates, Mark, Piece, Query, Samples, TextToken
from minmo.engine.voice_decoder.marks import MarkEstimator
from minmo.model.interleave import ContextFullError, Input, Interleaving, Kind
from minmo.model.speaker import Speaker

_LONGEST_SHOWN = 60


class State(Enum):
    """Where an utterance is on its way."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class Rates:
    """Sizes that every utterance of an engine shares.

    Attributes:
        text_group: semantic vectors of a group.
        speech_group: speech tokens that follow each.
        end: the class that ends the speech.
        context: positions of a sequence.
        chunk_tokens: speech tokens of a chunk.
        look_ahead_tokens: speech tokens behind a chunk that token2wav sees.
        samples_per_token: audio of a speech token.
        sample_rate_hz: of the audio.
        max_speech_per_vector: speech tokens for each text token, after which speech ends.
    """

    text_group: int
    speech_group: int
    end: int
    context: int
    chunk_tokens: int
    look_ahead_tokens: int
    samples_per_token: int
    sample_rate_hz: int
    max_speech_per_vector: int


@dataclass(frozen=True, eq=False)
class Reading:
    """Inputs that the voice token LM reads in one step.

    Attributes:
        sequence: whose.
        slot: in which slot.
        start: position of the first one.
        inputs: in order.
        text: ids of the text tokens among them.
        hidden_states: `[text, hidden_width]`, what predicted each; None if the voice reads none.
        draws: whether a speech token is drawn after them.
        may_end: whether that may be the end.
    """

    sequence: SpeechSequence
    slot: int
    start: int
    inputs: tuple[Input, ...]
    text: tuple[int, ...]
    hidden_states: HiddenStates | None
    draws: bool
    may_end: bool


@dataclass(frozen=True, eq=False)
class Chunk:
    """Speech tokens that token2wav makes audio of in one step.

    Attributes:
        sequence: whose.
        slot: in which slot.
        tokens: those of the chunk, then those that it sees ahead.
        length: how many of them are the chunk's.
        skipped: tokens at its start that are the prompt's, which is not to be heard again.
        last: whether the utterance ends with it.
    """

    sequence: SpeechSequence
    slot: int
    tokens: tuple[int, ...]
    length: int
    skipped: int
    last: bool


class SpeechSequence:
    """An utterance as the scheduler sees it.

    Args:
        rates: sizes that all share.
        speaker: who speaks.
        seed: of the draws.
        query: what the user has said, if the voice is to know it.
        prompts_lm: whether the LM goes on from the speaker's prompt, too.
        now: seconds.

    Attributes:
        speaker: as given.
        seed: as given.
        query: as given.
        state: where it is on its way.
        slot: which slot it holds; -1 if none.
        opened: seconds, when it came.
        last_used: seconds, when its caller was last heard of.
        first_chunk_ready: seconds, when there was speech for its first chunk; None before.
        callers: that wait for audio now.
        ran_away: whether its speech was ended because its end did not come.
        error: why it failed, if it did.
        pieces: audio that the caller has not taken.
        unspoken_reason: why not all of its text has sound; empty if all of it has.
    """

    def __init__(
        self,
        rates: Rates,
        speaker: Speaker,
        seed: int,
        query: Query | None,
        prompts_lm: bool,
        now: float,
    ) -> None:
        self.speaker, self.seed, self.query = speaker, seed, query
        self.state = State.WAITING
        self.slot = -1
        self.opened = self.last_used = now
        self.first_chunk_ready: float | None = None
        self.callers = 0
        self.ran_away = False
        self.error: Exception | None = None
        self.pieces: deque[Piece] = deque()
        self.unspoken_reason = ""
        self._rates = rates
        self._interleaving = Interleaving(
            rates.text_group,
            rates.speech_group,
            rates.context,
            rates.end,
            prefix=len(query.embeddings) if query else 0,
            max_speech_per_vector=rates.max_speech_per_vector,
        )
        self._plays_until = now
        self._waiting_samples = self._made_samples = 0
        self._stopped = False
        self._text: list[TextToken] = []
        self._unread_ids: deque[int] = deque()
        self._unread_states: deque[HiddenStates] = deque()
        self._inputs: deque[Input] = deque()
        self._position = 0
        self._marks = MarkEstimator(rates.sample_rate_hz, speaker.characters_per_second)
        self._begin_with_prompt(prompts_lm)
        # Before there is text: how inputs are cut into readings must not depend on when it came.
        self._pull()

    def _begin_with_prompt(self, prompts_lm: bool) -> None:
        prompt = self.speaker.prompt
        self._forced: deque[int] = deque()
        self._prompt_text = self._prompt_speech = 0
        self._chunk_tokens = self._rates.chunk_tokens
        self._tokens: deque[int] = deque()
        if prompt is None:
            # The first chunk is shorter by the look-ahead: then both fill one group of speech.
            self._chunk_tokens -= self._rates.look_ahead_tokens
            return
        unheard = len(prompt.speech_tokens) - self._rates.look_ahead_tokens
        self._tokens.extend(prompt.speech_tokens[unheard:])
        if prompts_lm:
            self._forced.extend(prompt.speech_tokens)
            self._prompt_text, self._prompt_speech = len(prompt.text_tokens), len(self._forced)
            self._unread_ids.extend(prompt.text_tokens)
            self._interleaving.push(self._prompt_text)

    # --- the caller's side

    def push(
        self, tokens: Sequence[TextToken], hidden_states: HiddenStates | None, now: float
    ) -> None:
        """Takes text."""
        if self.is_starved:
            # The silence until now was not the engine's fault; it has no debt.
            self._plays_until = max(self._plays_until, now)
        self._text += tokens
        self._unread_ids.extend(token.id for token in tokens)
        if hidden_states is not None:
            self._unread_states.extend(hidden_states)
        self._interleaving.push(len(tokens))
        self._pull()

    def end(self) -> None:
        """No more text follows."""
        self._interleaving.end()
        if not self._text:
            self._stop()
        self._pull()

    def take(self, now: float) -> Piece:
        """The next piece, which the caller is going to play."""
        piece = self.pieces.popleft()
        self._waiting_samples -= len(piece.samples)
        self._plays_until = max(self._plays_until, now) + self._seconds(len(piece.samples))
        return piece

    # --- the scheduler's side

    @property
    def due(self) -> float:
        """Seconds, when the caller will have nothing to play; before the first audio, its text."""
        return self._plays_until + self.ahead_seconds

    @property
    def ahead_seconds(self) -> float:
        """Audio that the caller has not taken."""
        return self._seconds(self._waiting_samples)

    @property
    def waiting_tokens(self) -> int:
        """Speech tokens of which no audio was made yet."""
        return len(self._tokens)

    @property
    def has_reading(self) -> bool:
        """Whether the LM can go on."""
        return bool(self._inputs)

    @property
    def has_chunk(self) -> bool:
        """Whether token2wav can go on."""
        if self._speech_is_complete:
            return self._has_spoken
        return len(self._tokens) >= self._chunk_tokens + self._rates.look_ahead_tokens

    @property
    def is_starved(self) -> bool:
        """Whether it goes on only once more text comes."""
        return not (self.has_reading or self.has_chunk or self.state is State.FINISHED)

    @property
    def is_silent(self) -> bool:
        """Whether it is complete without any audio."""
        return self._speech_is_complete and not self._has_spoken

    @property
    def spoken(self) -> int:
        """Speech tokens that were drawn."""
        return self._interleaving.spoken - self._prompt_speech + len(self._forced)

    def next_reading(self, longest: int) -> Reading:
        """What the LM reads next, at most `longest` positions."""
        inputs = tuple(islice(self._inputs, longest))
        is_whole = len(inputs) == len(self._inputs)
        count = sum(item.kind is Kind.SEMANTIC for item in inputs)
        states = list(islice(self._unread_states, count))
        return Reading(
            self,
            self.slot,
            self._position,
            inputs,
            tuple(islice(self._unread_ids, count)),
            np.stack(states) if states else None,
            is_whole and self._interleaving.draws,
            self._interleaving.may_end,
        )

    def finish_reading(self, reading: Reading, token: int | None) -> None:
        """The LM has read that, and drawn a speech token if it was asked to."""
        if self._stopped:
            return
        for _ in reading.inputs:
            self._inputs.popleft()
        for _ in reading.text:
            self._unread_ids.popleft()
            if self._unread_states:
                self._unread_states.popleft()
        self._position += len(reading.inputs)
        self._note_text(reading)
        if token is not None:
            self._interleaving.draw(token)
            if token != self._rates.end:
                self._tokens.append(token)
                self.ran_away = self._interleaving.done
        if not self._inputs:
            self._pull()

    def next_chunk(self) -> Chunk:
        """What token2wav does next."""
        length = min(self._chunk_tokens, len(self._tokens))
        seen = min(length + self._rates.look_ahead_tokens, len(self._tokens))
        is_first_after_prompt = self.speaker.prompt is not None and not self._made_samples
        return Chunk(
            self,
            self.slot,
            tuple(islice(self._tokens, seen)),
            length,
            self._rates.look_ahead_tokens if is_first_after_prompt else 0,
            self._speech_is_complete and length == len(self._tokens),
        )

    def finish_chunk(self, chunk: Chunk, samples: Samples, now: float) -> None:
        """Token2wav has made that audio."""
        token2wav_seconds = 0.0
        if self.first_chunk_ready is not None and not self._made_samples:
            token2wav_seconds = now - self.first_chunk_ready
        for _ in range(chunk.length):
            self._tokens.popleft()
        self._chunk_tokens = self._rates.chunk_tokens
        self._made_samples += len(samples)
        self._waiting_samples += len(samples)
        if self._speech_is_complete:
            whole = self.spoken * self._rates.samples_per_token
            marks = self._marks.reached_of(self._made_samples, whole)
        else:
            marks = self._marks.reached(self._made_samples)
        if chunk.last:
            marks = (*marks, *self._last_mark())
        self.pieces.append(Piece(samples, marks, token2wav_seconds))

    def finish_silently(self) -> None:
        """It is complete without audio."""
        if self._text and not self.unspoken_reason:
            shown = "".join(token.text for token in self._text)[:_LONGEST_SHOWN]
            self.unspoken_reason = f"the voice has drawn no speech for {shown!r}"
        if self._text:
            self.pieces.append(Piece(np.empty(0, np.float32), self._last_mark()))

    # --- within

    @property
    def _speech_is_complete(self) -> bool:
        return self._stopped or (self._interleaving.done and not self._inputs)

    @property
    def _has_spoken(self) -> bool:
        return self.spoken > 0

    def _pull(self) -> None:
        """Asks the interleaving for what comes next; a prompt's speech counts as drawn."""
        if self._inputs or self._interleaving.draws or self._stopped:
            return
        try:
            self._inputs.extend(self._interleaving.feed())
            while self._inputs and self._interleaving.draws and self._forced:
                self._interleaving.draw(self._forced.popleft())
                if self._is_group_full:
                    break
                self._inputs.extend(self._interleaving.feed())
        except ContextFullError:
            self._cut()

    @property
    def _is_group_full(self) -> bool:
        """Whether text must come before more speech."""
        full = self._interleaving.spoken % self._rates.speech_group == 0
        return full and not self._interleaving.may_end

    def _cut(self) -> None:
        first = max(0, self._interleaving.fed_vectors - self._prompt_text)
        rest = "".join(token.text for token in self._text[first:])[:_LONGEST_SHOWN]
        what = f"text from {rest!r} on was not spoken" if rest else "the end was not spoken"
        self.unspoken_reason = (
            f"{what}: the voice holds {self._rates.context} positions for one utterance; "
            "speak long text as several"
        )
        self._stop()

    def _stop(self) -> None:
        """Nothing more is spoken."""
        self._stopped = True
        self._inputs.clear()

    def _note_text(self, reading: Reading) -> None:
        values = [item.value for item in reading.inputs if item.kind is Kind.SEMANTIC]
        texts = [self._text[v - self._prompt_text].text for v in values if v >= self._prompt_text]
        self._marks.read(texts, self.spoken * self._rates.samples_per_token)

    def _last_mark(self) -> tuple[Mark, ...]:
        return (Mark(len(self._text), self._made_samples),)

    def _seconds(self, samples: int) -> float:
        return samples / self._rates.sample_rate_hz
