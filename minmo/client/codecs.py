"""Audio between samples and what travels in messages: PCM, or packets of Opus."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from minmo.audio.opus import OpusDecoder, OpusEncoder
from minmo.audio.pcm import PcmFormat, Samples
from minmo.v1 import common_pb2

Codec: TypeAlias = Literal["pcm", "opus"]
"""How audio travels: 16-bit PCM, or Opus, which needs a tenth of the bytes."""

_OPUS = common_pb2.AUDIO_ENCODING_OPUS


class Outgoing:
    """Audio of the microphone.

    Args:
        codec: how it travels.
        rate_hz: its rate.

    Raises:
        AudioError: on creation, the codec does not take that rate.
    """

    def __init__(self, codec: Codec, rate_hz: int) -> None:
        self._pcm = PcmFormat(rate_hz)
        self._opus: OpusEncoder | None = None
        self._is_opus = codec == "opus"
        self.restart()

    @property
    def audio_format(self) -> common_pb2.AudioFormat:
        """What the stream declares."""
        return _declared(self._pcm, opus=self._is_opus)

    def restart(self) -> None:
        """Begins a new stream; what waits to fill a packet is dropped."""
        self._opus = OpusEncoder(self._pcm.sample_rate_hz) if self._is_opus else None

    def encode(self, samples: Samples) -> list[tuple[bytes, int]]:
        """What to send of the next samples, as (data, samples in it)."""
        if self._opus is None:
            return [(self._pcm.encode(samples), len(samples))]
        size = self._opus.packet_samples
        return [(packet, size) for packet in self._opus.encode(samples)]

    def rest(self) -> list[tuple[bytes, int]]:
        """What to send once no more samples come."""
        if self._opus is None:
            return []
        size = self._opus.packet_samples
        return [(packet, size) for packet in self._opus.encode(np.zeros(0, np.float32), last=True)]


class Incoming:
    """Audio of the assistant.

    Args:
        codec: how it travels.
        rate_hz: its rate.

    Raises:
        AudioError: on creation, the codec does not take that rate.
    """

    def __init__(self, codec: Codec, rate_hz: int) -> None:
        self._pcm = PcmFormat(rate_hz)
        self._decoder: OpusDecoder | None = OpusDecoder(rate_hz) if codec == "opus" else None
        self._is_opus = codec == "opus"
        self._utterance_id = ""

    @property
    def audio_format(self) -> common_pb2.AudioFormat:
        """What the stream declares."""
        return _declared(self._pcm, opus=self._is_opus)

    def decode(self, utterance_id: str, data: bytes) -> Samples:
        """The samples in a message. Raises AudioError: it is no audio."""
        if self._decoder is None:
            return self._pcm.decode(data)
        if not data:
            return np.zeros(0, np.float32)
        if utterance_id != self._utterance_id:
            # Each utterance is a stream of its own.
            self._decoder = OpusDecoder(self._pcm.sample_rate_hz)
            self._utterance_id = utterance_id
        return self._decoder.decode(data)


def _declared(pcm: PcmFormat, *, opus: bool) -> common_pb2.AudioFormat:
    declared = pcm.to_proto()
    if opus:
        declared.encoding = _OPUS
    return declared
