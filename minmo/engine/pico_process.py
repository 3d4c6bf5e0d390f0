"""SVOX Pico in processes of its own, which are replaced when they hang, die or have grown."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minmo.engine import pico_worker
from minmo.engine.pico_worker import REQUEST, RESPONSE
from minmo.engine.voice import Samples

SAMPLE_RATE_HZ = 16_000

# Said in 10 to 100 ms, if it is said at all; the rest is for a machine that is busy.
_DEADLINE_SECONDS = 5.0
# Pico's binding frees no audio: 32 kB a second of speech.
_MAX_GROWTH_BYTES = 64 * 1024 * 1024
_S16_SCALE = 32768.0


class PicoError(Exception):
    """Pico could not say a text."""


class PicoStuckError(PicoError):
    """Pico did not come back from a text: another try would take as long."""


@dataclass(frozen=True)
class Manner:
    """How Pico speaks, each in percent of its own normal.

    Attributes:
        rate: 20 to 500.
        pitch: 50 to 200.
        volume: 0 to 500; at 100 it clips.
    """

    rate: int = 100
    pitch: int = 100
    volume: int = 70


class PicoProcesses:
    """A fixed number of Pico processes; safe to use from as many threads.

    Args:
        count: processes, and so texts that are spoken at the same time.
        deadline_seconds: after which a text counts as stuck.
    """

    def __init__(self, count: int, deadline_seconds: float = _DEADLINE_SECONDS) -> None:
        self._all = [_PicoProcess(deadline_seconds) for _ in range(count)]
        self._idle: queue.LifoQueue[_PicoProcess] = queue.LifoQueue()
        for process in self._all:
            self._idle.put(process)

    def speak(self, text: str, manner: Manner) -> Samples:
        """Says a text; waits for a process that is idle.

        Args:
            text: printable ASCII without ``<`` and ``>``, which Pico takes for markup: it would
                open and write files that are named there.
            manner: how to say it.

        Returns:
            `[samples]` at 16 kHz, with Pico's own silence around the words.

        Raises:
            PicoError: it cannot say this, or died of it.
            PicoStuckError: it was still at it after the deadline.
        """
        if not text.isascii() or not text.isprintable() or "<" in text or ">" in text:
            raise ValueError(f"{text!r} is not plain text: pass it through speakable first")
        process = self._idle.get()
        try:
            return process.speak(text, manner)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Ends the processes."""
        for process in self._all:
            process.close()


class _PicoProcess:
    """One process, started again as often as needed."""

    def __init__(self, deadline_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        self._grown_bytes = 0
        self._closed = False
        self._popen = _start()

    def speak(self, text: str, manner: Manner) -> Samples:
        process = self._popen
        stuck = threading.Event()

        def give_up() -> None:
            stuck.set()
            process.kill()

        # Killing it ends the reads below as well.
        timer = threading.Timer(self._deadline_seconds, give_up)
        timer.start()
        try:
            said, pcm = _ask(process, text, manner)
        except (EOFError, OSError) as error:
            self._replace()
            if stuck.is_set():
                raise PicoStuckError(
                    f"not said within {self._deadline_seconds:g} s: {text!r}"
                ) from None
            raise PicoError(f"died of {text!r}") from error
        finally:
            timer.cancel()
        self._grown_bytes += len(pcm)
        if self._grown_bytes > _MAX_GROWTH_BYTES or stuck.is_set():
            self._replace()
        if not said:
            raise PicoError(f"cannot say {text!r}")
        return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(_S16_SCALE)

    def close(self) -> None:
        self._closed = True
        _stop(self._popen)

    def _replace(self) -> None:
        _stop(self._popen)
        self._grown_bytes = 0
        if not self._closed:
            self._popen = _start()


def _ask(process: subprocess.Popen[bytes], text: str, manner: Manner) -> tuple[bool, bytes]:
    assert process.stdin is not None and process.stdout is not None
    encoded = text.encode()
    header = REQUEST.pack(manner.rate, manner.pitch, manner.volume, len(encoded))
    process.stdin.write(header + encoded)
    process.stdin.flush()
    answer = process.stdout.read(RESPONSE.size)
    if len(answer) < RESPONSE.size:
        raise EOFError
    said, length = RESPONSE.unpack(answer)
    pcm = process.stdout.read(length)
    if len(pcm) < length:
        raise EOFError
    return said, pcm


def _start() -> subprocess.Popen[bytes]:
    # -P: the folder of the file must not hide modules of the same names.
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(pico_worker.__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                continue  # what was written last went nowhere
