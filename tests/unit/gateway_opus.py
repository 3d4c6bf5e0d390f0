"""Opus as clients of the Realtime API send and read it: each packet behind its length."""

from __future__ import annotations

import base64
from typing import Any

OPUS: dict[str, Any] = {
    "audio": {
        "input": {"format": {"type": "audio/opus"}},
        "output": {"format": {"type": "audio/opus"}},
    }
}


def framed(packets: list[bytes]) -> str:
    """Packets as a client of the protocol sends them."""
    data = b"".join(len(packet).to_bytes(2, "big") + packet for packet in packets)
    return base64.b64encode(data).decode()


def unframed(data: bytes) -> list[bytes]:
    """Packets as a client of the protocol reads them."""
    packets = []
    while data:
        length = int.from_bytes(data[:2], "big")
        packets.append(data[2 : 2 + length])
        data = data[2 + length :]
    return packets
