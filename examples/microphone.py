"""Talks through this machine's microphone and loudspeaker until Ctrl-C; wear headphones.

pip install 'minmo[mic]'    # and PortAudio: apt-get install libportaudio2
python examples/microphone.py 127.0.0.1:7100
"""

import sys
import threading

import numpy as np
import sounddevice

from minmo.client import Target, sync
from minmo.client.events import AudioReceived, StopPlayback, TurnReport, UserText

RATE_HZ = 24_000
BLOCK = RATE_HZ // 50


class Loudspeaker:
    """Sound that waits to be played."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = np.zeros(0, np.float32)

    def add(self, samples: np.ndarray) -> None:
        """Plays this after what waits."""
        with self._lock:
            self._waiting = np.concatenate((self._waiting, samples))

    def drop(self) -> None:
        """Falls silent."""
        with self._lock:
            self._waiting = self._waiting[:0]

    def play(self, out: np.ndarray, frames: int, *_: object) -> None:
        """Fills what the device plays next."""
        with self._lock:
            piece, self._waiting = self._waiting[:frames], self._waiting[frames:]
        out[:, 0] = np.pad(piece, (0, frames - len(piece)))


def talk(address: str) -> None:
    """The devices call from threads of their own."""
    loudspeaker = Loudspeaker()
    how = {"samplerate": RATE_HZ, "blocksize": BLOCK, "channels": 1, "dtype": "float32"}
    with sync.Conversation(
        Target(address), input_rate_hz=RATE_HZ, output_rate_hz=RATE_HZ, codec="opus"
    ) as conversation:

        def hear(samples: np.ndarray, *_: object) -> None:
            conversation.send_audio(samples[:, 0].copy())

        with (
            sounddevice.OutputStream(callback=loudspeaker.play, **how),
            sounddevice.InputStream(callback=hear, **how),
        ):
            print("listening", flush=True)
            for event in conversation:
                match event:
                    case AudioReceived(samples=samples):
                        loudspeaker.add(samples)
                    case StopPlayback():
                        loudspeaker.drop()
                    case UserText(text=text, final=True):
                        print("you:  ", text, flush=True)
                    case TurnReport(heard_text=text):
                        print("minmo:", text, flush=True)


try:
    talk(sys.argv[1])
except KeyboardInterrupt:
    print("bye")
