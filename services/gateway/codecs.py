"""Audio between the formats of clients and the 16-bit PCM that the orchestrator is told."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final, Literal, Protocol

import numpy as np

from minmo.audio.opus import DECODED_RATE_HZ, MAX_PACKET_BYTES, OpusDecoder, OpusEncoder
from minmo.audio.pcm import AudioError, PcmFormat, Samples
from services.gateway import g711

Format = Literal["audio/pcm", "audio/pcmu", "audio/pcma", "audio/opus"]

INPUT_RATES_HZ: Final[Mapping[Format, int]] = {
    "audio/pcm": 24_000,
    "audio/pcmu": 8_000,
    "audio/pcma": 8_000,
    # A packet may hold anything up to here, whatever its encoder was given.
    "audio/opus": DECODED_RATE_HZ,
}
"""Samples a second of what a decoder gives."""
OUTPUT_RATES_HZ: Final[Mapping[Format, int]] = {**INPUT_RATES_HZ, "audio/opus": 24_000}
"""Samples a second of what an encoder takes; positions in an answer are counted by them."""
_SAMPLE_BYTES = 2
_LENGTH = struct.Struct(">H")


class Decoder(Protocol):
    """The client's audio, piece by piece."""

    def decode(self, data: bytes) -> bytes:
        """The 16-bit PCM in a piece. Raises AudioError: it is none in this format."""


class Encoder(Protocol):
    """The audio of one message, piece by piece."""

    samples: int
    """Samples that whoever decodes it has got so far, at the rate of the format."""

    def encode(self, pcm: bytes, *, last: bool = False) -> bytes:
        """16-bit PCM in the client's format; what fills no packet waits, unless it is the last."""


def decoder_of(audio_format: Format, *, max_seconds: float) -> Decoder:
    """Decodes what a client sends.

    Args:
        audio_format: of the client.
        max_seconds: longest piece, where a few bytes can stand for much audio.
    """
    match audio_format:
        case "audio/opus":
            return _OpusPackets(max_seconds)
        case "audio/pcm":
            return _Pcm()
        case _:
            return _G711(audio_format)


def encoder_of(audio_format: Format) -> Encoder:
    """Encodes one message for a client."""
    match audio_format:
        case "audio/opus":
            return _OpusStream()
        case "audio/pcm":
            return _Pcm()
        case _:
            return _G711(audio_format)


class _Pcm:
    def __init__(self) -> None:
        self.samples = 0

    def decode(self, data: bytes) -> bytes:
        if len(data) % _SAMPLE_BYTES:
            raise AudioError(
                "audio", f"{len(data)} bytes long", "that is no whole number of 16-bit samples"
            )
        return data

    def encode(self, pcm: bytes, *, last: bool = False) -> bytes:
        self.samples += len(pcm) // _SAMPLE_BYTES
        return pcm


class _G711:
    def __init__(self, audio_format: Literal["audio/pcmu", "audio/pcma"]) -> None:
        self.samples = 0
        self._law: g711.Law = "mu" if audio_format == "audio/pcmu" else "a"

    def decode(self, data: bytes) -> bytes:
        return g711.decode(self._law, data)

    def encode(self, pcm: bytes, *, last: bool = False) -> bytes:
        self.samples += len(pcm) // _SAMPLE_BYTES
        return g711.encode(self._law, pcm)


class _OpusPackets:
    """Each packet has its length before it, as an unsigned 16-bit integer, big endian."""

    def __init__(self, max_seconds: float) -> None:
        self._decoder = OpusDecoder()
        self._pcm = PcmFormat(DECODED_RATE_HZ)
        self._most = round(max_seconds * DECODED_RATE_HZ)

    def decode(self, data: bytes) -> bytes:
        pieces: list[Samples] = []
        room = self._most
        for packet in _packets(data):
            pieces.append(self._decoder.decode(packet))
            room -= len(pieces[-1])
            if room < 0:
                seconds = self._most / DECODED_RATE_HZ
                raise AudioError("audio", f"more than {seconds:g} s", "send it in smaller pieces")
        return self._pcm.encode(np.concatenate(pieces)) if pieces else b""


def _packets(data: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        if place + _LENGTH.size > len(data):
            raise AudioError("audio", "cut off", "a packet's length has two bytes")
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        if length > MAX_PACKET_BYTES or place + length > len(data):
            raise AudioError(
                "audio",
                f"at byte {place - _LENGTH.size} a packet of {length} bytes",
                f"{len(data) - place} bytes follow, and {MAX_PACKET_BYTES} are the most; before "
                "each packet stands its length, an unsigned 16-bit integer, big endian",
            )
        yield data[place : place + length]
        place += length


class _OpusStream:
    """Packets of 20 ms, as `_OpusPackets` takes them."""

    def __init__(self) -> None:
        self.samples = 0
        self._pcm = PcmFormat(OUTPUT_RATES_HZ["audio/opus"])
        self._encoder = OpusEncoder(self._pcm.sample_rate_hz)

    def encode(self, pcm: bytes, *, last: bool = False) -> bytes:
        packets = self._encoder.encode(self._pcm.decode(pcm), last=last)
        self.samples += len(packets) * self._encoder.packet_samples
        return b"".join(_LENGTH.pack(len(packet)) + packet for packet in packets)
