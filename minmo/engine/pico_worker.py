"""The process that SVOX Pico runs in: requests on standard input, PCM on standard output.

A program of its own, and not a thread, because Pico's C code does not come back from some words
and cannot be stopped there, and because its Python binding keeps every sample it made.
`minmo.engine.pico_process` is the other side. Started as a file, it imports nothing of ours.
"""

from __future__ import annotations

import signal
import struct
import sys

from ttspico import TtsEngine

REQUEST = struct.Struct("<HHHI")
"""Rate, pitch and volume in percent; bytes of UTF-8 that follow."""

RESPONSE = struct.Struct("<?I")
"""Whether it was said; bytes of PCM (signed 16 bit, 16 kHz) that follow."""

# Nobody else ends a process that loops in C after its parent was killed.
_LONGEST_SECONDS = 30


def main() -> None:
    """Answers requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests, responses = sys.stdin.buffer, sys.stdout.buffer
    while header := requests.read(REQUEST.size):
        rate, pitch, volume, length = REQUEST.unpack(header)
        text = requests.read(length).decode()
        signal.alarm(_LONGEST_SECONDS)
        said, pcm = _speak(text, rate, pitch, volume)
        signal.alarm(0)
        responses.write(RESPONSE.pack(said, len(pcm)) + pcm)
        responses.flush()


def _speak(text: str, rate: int, pitch: int, volume: int) -> tuple[bool, bytes]:
    # A new engine takes 2 ms; an old one carries noise, and trouble, from phrase to phrase.
    engine = TtsEngine("en-US")
    engine.rate, engine.pitch, engine.volume = rate, pitch, volume
    try:
        return True, engine.speak(text) or b""
    except RuntimeError:
        return False, b""


if __name__ == "__main__":
    main()
