"""Decodes raw G.722: lines of `{"path": "..."}` in, `{"pcm": base64}` out.

The samples are 16-bit little-endian mono at 16 kHz.
"""

from __future__ import annotations

import base64
import json
import sys

import av


def main() -> None:
    """Answers until the input ends."""
    for line in sys.stdin:
        with av.open(json.loads(line)["path"], format="g722") as container:
            # A plane is padded beyond the samples, of two bytes each.
            pcm = b"".join(
                bytes(frame.planes[0])[: 2 * frame.samples] for frame in container.decode(audio=0)
            )
        print(json.dumps({"pcm": base64.b64encode(pcm).decode()}), flush=True)


main()
