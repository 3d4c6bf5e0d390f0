"""Recognises speech: lines of `{"pcm": base64}` in, `{"text": "..."}` out.

Called with the folder of a model. The samples are 16-bit little-endian mono at 16 kHz.
"""

from __future__ import annotations

import base64
import json
import sys

import numpy as np
from faster_whisper import WhisperModel


def main(folder: str) -> None:
    """Answers until the input ends."""
    model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=1)
    for line in sys.stdin:
        pcm = np.frombuffer(base64.b64decode(json.loads(line)["pcm"]), "<i2")
        segments, _ = model.transcribe(
            pcm.astype(np.float32) / 32768, language="en", beam_size=1, temperature=0.0
        )
        text = " ".join(segment.text.strip() for segment in segments)
        print(json.dumps({"text": text}), flush=True)


main(sys.argv[1])
