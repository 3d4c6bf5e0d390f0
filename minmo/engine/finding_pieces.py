"""Which pieces of text are heard in a segment, and what the LLM reads for each.

Two ways: the recogniser reads along, or the recognition head says what each speech embedding holds
and equal neighbours are merged. Which of them it is follows from how the weights were trained.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minmo.engine.streaming_recogniser import StreamingRecogniser, Token
from minmo.engine.word_pieces import WordPieces
from minmo.model import merging
from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.model.recognition_head import RecognitionHead

# How it is spoken is the mean of so many speech embeddings before and behind a piece's own.
_AROUND = 2


class Heard(NamedTuple):
    """Pieces of text that were heard, in the order in which they were said.

    Attributes:
        embeddings: `[pieces, width]`, float32, on the CPU: what the LLM reads for each.
        tokens: their ids in the LLM's vocabulary.
        frames: for each, the number of the projector's embedding in which it was heard first.
    """

    embeddings: Tensor
    tokens: list[int]
    frames: list[int]

    def followed_by(self, other: Heard) -> Heard:
        """These and then the others."""
        return Heard(
            torch.cat((self.embeddings, other.embeddings)),
            self.tokens + other.tokens,
            self.frames + other.frames,
        )


class PieceFinder(Protocol):
    """Finds the pieces of one segment."""

    @property
    def settled(self) -> int:
        """Speech embeddings of the segment in which all pieces have been given."""

    def find(self, frames: Tensor, embeddings: Tensor, *, silent: bool) -> Heard:
        """Takes what the next block sounds like, gives the pieces that are over.

        Args:
            frames: `[1, frames, encoder width]` of the voice encoder.
            embeddings: `[1, embeddings, width]` of the input projector.
            silent: whether nothing loud enough to be speech was heard so far.
        """

    def finish(self) -> Heard:
        """Gives the last pieces: the segment has ended."""


class MergedPieces:
    """Those that the recognition head says: runs of speech embeddings that hold the same one.

    Args:
        head: the recognition head.
    """

    def __init__(self, head: RecognitionHead) -> None:
        self._head = head
        self._state = merging.initial_state(1, head.width, head.rows.device, head.rows.dtype)

    @property
    def settled(self) -> int:
        """See `PieceFinder`."""
        state = self._state
        return int(state.first if int(state.piece) else state.position)

    def find(self, frames: Tensor, embeddings: Tensor, *, silent: bool) -> Heard:
        """See `PieceFinder`; the head itself knows silence."""
        found = self._head(embeddings)
        return self._merge(self._head.mixtures(embeddings, found), found, ending=False)

    def finish(self) -> Heard:
        """See `PieceFinder`."""
        none = self._head.rows.new_zeros(1, 0, self._head.width)
        return self._merge(none, none.new_zeros(1, 0, self._head.blank + 1), ending=True)

    def _merge(self, mixtures: Tensor, log_probabilities: Tensor, *, ending: bool) -> Heard:
        device = mixtures.device
        merged = merging.merge_step(
            mixtures,
            log_probabilities,
            torch.tensor([mixtures.shape[1]], device=device),
            self._state,
            torch.tensor([ending], device=device),
        )
        count = int(merged.counts)
        tokens: list[int] = self._head.pieces[merged.classes[0, :count]].tolist()
        frames: list[int] = merged.frames[0, :count].tolist()
        return Heard(merged.embeddings[0, :count].float().cpu(), tokens, frames)


class ReadPieces:
    """Those of the words that the recogniser reads, with a share of how they sound.

    Args:
        recogniser: that the voice encoder was adapted for.
        words: make pieces of its tokens.
        head: adds the share.
        frame_seconds: from one frame of the voice encoder to the next.
        stride: frames of a speech embedding.
    """

    def __init__(
        self,
        recogniser: MoonshineRecognizer,
        words: WordPieces,
        head: RecognitionHead,
        frame_seconds: float,
        stride: int,
    ) -> None:
        self._reader = StreamingRecogniser(recogniser, frame_seconds, words.begins_word)
        self._words, self._head, self._stride = words, head, stride
        self._word: list[Token] = []
        self._is_first = True
        # Speech embeddings from the word's on, and the number of the first of them.
        self._sounds = head.rows.new_zeros(0, head.width)
        self._first_sound = 0

    @property
    def settled(self) -> int:
        """See `PieceFinder`."""
        frames = self._word[0].frame if self._word else self._reader.settled
        return frames // self._stride

    def find(self, frames: Tensor, embeddings: Tensor, *, silent: bool) -> Heard:
        """See `PieceFinder`; in silence a recogniser hears what it likes, so it is not asked."""
        self._sounds = torch.cat((self._sounds, embeddings[0]))
        if silent:
            self._reader.wait(frames)
            return self._nothing()
        return self._heard(self._reader.hear(frames))

    def finish(self) -> Heard:
        """See `PieceFinder`."""
        return self._heard(self._reader.finish())

    def _heard(self, tokens: list[Token]) -> Heard:
        heard = self._nothing()
        for token in tokens:
            if self._word and self._words.begins_word[token.id]:
                heard = heard.followed_by(self._end_word())
            self._word.append(token)
        if self._word and self._reader.word_is_over:
            heard = heard.followed_by(self._end_word())
        self._drop_old_sounds()
        return heard

    def _end_word(self) -> Heard:
        made = self._words.pieces(self._word, is_first=self._is_first)
        self._word, self._is_first = [], self._is_first and not made.tokens
        places = [frame // self._stride for frame in made.frames]
        embeddings = made.mixtures
        if places:
            sounds = torch.stack([self._sound(place) for place in places])
            embeddings = embeddings + self._head.sound(sounds).float().cpu()
        return Heard(embeddings, made.tokens, places)

    def _sound(self, place: int) -> Tensor:
        """The mean of the speech embeddings around one, `[width]`."""
        begin = max(0, place - _AROUND - self._first_sound)
        around = self._sounds[begin : place + _AROUND + 1 - self._first_sound]
        return around.mean(0)

    def _drop_old_sounds(self) -> None:
        old = max(0, self.settled - _AROUND - self._first_sound)
        self._sounds, self._first_sound = self._sounds[old:], self._first_sound + old

    def _nothing(self) -> Heard:
        return Heard(torch.zeros(0, self._words.width), [], [])
