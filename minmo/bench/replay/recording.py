"""What the services with models once said of a few questions, and when."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from minmo.client.errors import RecordingError

TAIL_FRAMES = 100
"""Frames of silence behind a question whose activity is kept: until any turn has ended."""
TOKENS_AN_ANSWER = 10_000
"""Ids of replayed tokens say whose they are: an answer's number times this, and the token's."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")


class Activity(_Model):
    """What the encoder said of one frame.

    Attributes:
        seconds: from the frame's coming to the answer.
        probability: of speech.
        speaking: whether somebody did.
        speech_start: of the latest speech, in samples at 16 kHz from the question's first frame;
            None before there was any.
        speech_end: its end so far.
    """

    seconds: float
    probability: float
    speaking: bool
    speech_start: int | None
    speech_end: int | None


class Words(_Model):
    """The words of a question up to a point.

    Attributes:
        end: of the audio, in samples at 16 kHz from the question's first frame.
        text: what was recognised.
        seconds: from the request to the answer.
        compute_ms: of it, computing.
    """

    end: int
    text: str
    seconds: float
    compute_ms: float


class Token(_Model):
    """A text token, `seconds` after the generation was asked for."""

    seconds: float
    text: str


class Piece(_Model):
    """A piece of speech.

    Attributes:
        tokens: of the answer that the voice had when it was sent.
        ended: whether it had been told that no more would come.
        seconds: from the last of them to the piece.
        first_sample: its place.
        data: 16-bit PCM at 24 kHz.
        marks: ``(token count, sample)``.
    """

    tokens: int
    ended: bool
    seconds: float
    first_sample: int
    data: bytes
    marks: tuple[tuple[int, int], ...]


class Question(_Model):
    """A question with its answer.

    Attributes:
        name: of the file.
        frames: digests of its frames of 20 ms, as they were sent.
        heard: activity of each frame, and of `TAIL_FRAMES` of silence behind.
        words: as they were asked for, the last one all of them.
        text: the user's turn.
        tokens: of the answer.
        finish_reason: why there were no more.
        pieces: of its speech.
        done_seconds: from the last piece until the voice was done.
        compute_ms: of the voice.
    """

    name: str
    frames: tuple[str, ...]
    heard: tuple[Activity, ...]
    words: tuple[Words, ...]
    text: str
    tokens: tuple[Token, ...]
    finish_reason: int
    pieces: tuple[Piece, ...]
    done_seconds: float
    compute_ms: float


class Recording(_Model):
    """All of it.

    Attributes:
        version: of MinMo.
        model: `GetModelResponse` of the LLM.
        prefills: size of what was read, in bytes of the request, and how long it took.
        branch_seconds: that forks, cuts and closes took.
        questions: at least one.
    """

    version: str
    model: bytes
    prefills: tuple[tuple[int, float], ...]
    branch_seconds: float
    questions: tuple[Question, ...]

    def write(self, path: Path) -> None:
        """Writes it, compressed. Raises OSError."""
        path.write_bytes(gzip.compress(self.model_dump_json().encode(), mtime=0))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads it.

        Raises:
            RecordingError: it is not there, or none.
        """
        try:
            return cls.model_validate_json(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, ValidationError) as error:
            raise RecordingError(f"{path} is no recording of the services: {error}") from None

    def prefill_seconds(self, size: int) -> float:
        """How long it took to read something of about that size."""
        if not self.prefills:
            return 0.0
        return min(self.prefills, key=lambda known: abs(known[0] - size))[1]

    def answer_to(self, text: str) -> int:
        """Number of the question that a turn is, or ends with; else one that the text picks."""
        for number, question in enumerate(self.questions):
            if text == question.text:
                return number
        for number, question in enumerate(self.questions):
            if text.endswith(question.text):
                return number
        return int(digest(text.encode()), 16) % len(self.questions)

    def token_ids(self, number: int) -> Iterator[int]:
        """Ids that the tokens of an answer have when they are replayed."""
        first = (number + 1) * TOKENS_AN_ANSWER
        return iter(range(first, first + len(self.questions[number].tokens)))


def token_place(token_id: int) -> tuple[int, int] | None:
    """Number of the answer and of the token in it; None for an id that was not replayed."""
    number, place = divmod(token_id, TOKENS_AN_ANSWER)
    return (number - 1, place) if number else None


def digest(data: bytes) -> str:
    """Names a frame by what is in it."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
