"""A microphone and a loudspeaker for the scripts here: no device, real time, 24 kHz, 16 bit, mono.

Standard library alone: the scripts run in an environment of their own, without MinMo.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import wave
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

RATE_HZ = 24_000
FRAME_SECONDS = 0.02
FRAME_BYTES = 2 * RATE_HZ // 50
LISTEN_SECONDS = 2.0
"""How long somebody listens to the first answer before he speaks over it."""
DEADLINE_SECONDS = 90.0
INSTRUCTIONS = "You tell long stories in many sentences."


@dataclass
class Task:
    """What a script is asked to do: say the first recording, and the second over the answer."""

    url: str
    key: str
    first: bytes
    second: bytes
    out: Path

    @classmethod
    def from_command_line(cls) -> Task:
        parser = argparse.ArgumentParser()
        parser.add_argument("url", help="base of the server's addresses, as in ws://HOST:PORT/v1")
        parser.add_argument("key", help="API key")
        parser.add_argument("first", help="16 bit mono WAV at 24 kHz")
        parser.add_argument("second", help="the same, said over the answer to the first")
        parser.add_argument("out", type=Path, help="folder for what was heard")
        given = parser.parse_args()
        return cls(given.url, given.key, read(given.first), read(given.second), given.out)


def read(path: str) -> bytes:
    with wave.open(path) as file:
        assert file.getparams()[:3] == (1, 2, RATE_HZ), f"{path} is no 16 bit mono WAV at 24 kHz"
        return file.readframes(file.getnframes())


class Microphone:
    """Is always open: what is to be said when there is something, silence otherwise."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def say(self, recording: bytes) -> None:
        self._waiting += recording

    async def frames(self) -> AsyncIterator[bytes]:
        """Frames of 20 ms as they are due, without an end."""
        due = time.monotonic()
        while True:
            frame = bytes(self._waiting[:FRAME_BYTES]).ljust(FRAME_BYTES, b"\0")
            del self._waiting[:FRAME_BYTES]
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            yield frame
            due += FRAME_SECONDS


@dataclass
class _Piece:
    item: str
    data: bytes
    begins: float

    @property
    def ends(self) -> float:
        return self.begins + len(self.data) / 2 / RATE_HZ


@dataclass
class Speaker:
    """Plays what it is given as soon as it can, and knows how far it has come."""

    _pieces: list[_Piece] = field(default_factory=list)

    def play(self, item: str, data: bytes) -> None:
        now = time.monotonic()
        begins = max(now, self._pieces[-1].ends) if self._pieces else now
        self._pieces.append(_Piece(item, data, begins))

    @property
    def left_seconds(self) -> float:
        """Audio that is still to be played."""
        return max(0.0, self._pieces[-1].ends - time.monotonic()) if self._pieces else 0.0

    def stop(self) -> tuple[str, int] | None:
        """Drops what was not played; which item was cut and how much of it was, in ms."""
        if not self.left_seconds:
            return None
        now = time.monotonic()
        item = next(piece.item for piece in self._pieces if piece.ends > now)
        kept: deque[_Piece] = deque()
        for piece in self._pieces:
            length = 2 * round(max(0.0, min(piece.ends, now) - piece.begins) * RATE_HZ)
            kept.append(_Piece(piece.item, piece.data[:length], piece.begins))
        self._pieces = [piece for piece in kept if piece.data]
        return item, 1000 * len(self.played(item)) // 2 // RATE_HZ

    def played(self, item: str) -> bytes:
        """All of an item that was not dropped."""
        return b"".join(piece.data for piece in self._pieces if piece.item == item)


@dataclass
class Report:
    """What a script saw and heard, for the test."""

    client: str
    user_texts: list[str] = field(default_factory=list)
    answers: list[dict[str, object]] = field(default_factory=list)
    """Of each: `text` as the server sent it, `interrupted`, `file` with what was heard."""
    errors: list[str] = field(default_factory=list)

    def add_answer(self, out: Path, text: str, heard: bytes, *, interrupted: bool) -> None:
        path = out / f"answer-{len(self.answers)}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, RATE_HZ, 0, "NONE", "not compressed"))
            file.writeframes(heard)
        self.answers.append({"text": text, "interrupted": interrupted, "file": str(path)})

    def print(self) -> None:
        print(json.dumps(asdict(self)))
