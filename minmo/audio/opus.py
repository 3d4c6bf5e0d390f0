"""Opus (RFC 6716) packet by packet: a streaming encoder and a streaming decoder, one channel each.

Both work on MinMo's samples (`[samples]`, float32, -1 to 1). What travels are bare packets, without
a container: their order and their bounds are the transport's business.
"""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np

from minmo.audio.pcm import OPUS_RATES_HZ, AudioError, Samples, to_s16

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext

DECODED_RATE_HZ = 48_000
PACKET_SECONDS = 0.02
"""Audio in a packet of `OpusEncoder`."""
LOOK_AHEAD_SECONDS = 0.0065
"""How much later than the encoder got it a sound leaves the decoder."""
MAX_PACKET_BYTES = 6 * 1275
"""A packet of 120 ms, the longest, whose frames of 20 ms are all as large as they can be."""

_BITRATE_BPS = 32_000
# Half of libopus' highest: a fifth less time for what nobody hears in speech.
_COMPLEXITY = 5
_S16_SCALE = 32768.0
_FIRST_LOSS = np.zeros(int(PACKET_SECONDS * DECODED_RATE_HZ), np.float32)


def available() -> bool:
    """Whether this installation has Opus."""
    return importlib.util.find_spec("av") is not None


def check_rate(rate_hz: int) -> None:
    """Raises AudioError for a rate that Opus does not know."""
    if rate_hz not in OPUS_RATES_HZ:
        rates = ", ".join(str(rate) for rate in OPUS_RATES_HZ)
        raise AudioError("sample_rate_hz", rate_hz, f"Opus takes one of {rates} Hz")


class OpusEncoder:
    """Turns a stream of samples into packets of 20 ms.

    Args:
        rate_hz: of the samples; one of `minmo.audio.pcm.OPUS_RATES_HZ`.
        bitrate_bps: aim of the variable bit rate.

    Raises:
        AudioError: on creation, the rate is none of Opus'.
    """

    def __init__(self, rate_hz: int, *, bitrate_bps: int = _BITRATE_BPS) -> None:
        check_rate(rate_hz)
        self.packet_samples = int(rate_hz * PACKET_SECONDS)
        """Samples in a packet, at `rate_hz`."""
        self._rate_hz = rate_hz
        self._waiting: Samples = np.zeros(0, np.float32)
        self._samples = 0
        codec = _codec("w")
        codec.sample_rate = rate_hz
        codec.layout = "mono"
        codec.format = "s16"
        codec.bit_rate = bitrate_bps
        codec.options = {"application": "voip", "compression_level": str(_COMPLEXITY)}
        codec.open()
        self._codec = codec

    def encode(self, samples: Samples, *, last: bool = False) -> list[bytes]:
        """Takes the next samples, gives the packets that are complete.

        Args:
            samples: float32 [samples], any number.
            last: the sound ends here: it is filled up with silence, so that a decoder gives all of
                it. The stream may go on afterwards.

        Returns:
            Packets, in order.
        """
        size = self.packet_samples
        waiting = np.concatenate((self._waiting, samples))
        if last and (self._samples or len(waiting)):
            needed = len(waiting) + round(LOOK_AHEAD_SECONDS * self._rate_hz)
            waiting = np.pad(waiting, (0, -(-needed // size) * size - len(waiting)))
        whole = len(waiting) // size * size
        self._waiting = waiting[whole:]
        return [self._packet(waiting[start : start + size]) for start in range(0, whole, size)]

    def _packet(self, samples: Samples) -> bytes:
        import av

        frame = av.AudioFrame(format="s16", layout="mono", samples=len(samples))
        frame.sample_rate = self._rate_hz
        frame.time_base = Fraction(1, self._rate_hz)
        frame.pts = self._samples
        self._samples += len(samples)
        frame.planes[0].update(to_s16(samples).tobytes())
        (packet,) = self._codec.encode(frame)
        return bytes(packet)


class OpusDecoder:
    """Turns packets into samples, and says what a lost one may have sounded like.

    Args:
        rate_hz: of the samples to give: 48 kHz, or the rate of the encoder at the other end. (A
            packet holds nothing above half the rate of its encoder, so that lower rates are parts
            of the samples at 48 kHz. Sound that was encoded at a higher rate would be aliased.)

    Raises:
        AudioError: on creation, the rate is none of Opus'.
    """

    def __init__(self, rate_hz: int = DECODED_RATE_HZ) -> None:
        check_rate(rate_hz)
        self._step = DECODED_RATE_HZ // rate_hz
        codec = _codec("r")
        codec.sample_rate = DECODED_RATE_HZ
        codec.layout = "mono"
        codec.open()
        self._codec = codec
        self._latest = b""
        self._latest_samples = 0

    def decode(self, packet: bytes) -> Samples:
        """Decodes the next packet.

        Args:
            packet: one packet, of 2.5 to 120 ms, one or two channels. Empty stands for one that was
                lost: as much sound as in the packet before is made up, and fades out if more are.

        Returns:
            float32 [samples] at `rate_hz`.

        Raises:
            AudioError: it is no Opus packet; the next one is decoded as if this had not been there.
        """
        if not packet:
            return self._conceal()[:: self._step]
        if len(packet) > MAX_PACKET_BYTES:
            raise AudioError(
                "packet", f"{len(packet)} bytes long", f"it must be at most {MAX_PACKET_BYTES}"
            )
        samples = self._decode(packet)
        self._latest, self._latest_samples = packet, len(samples)
        return samples[:: self._step]

    def _conceal(self) -> Samples:
        if not self._latest:
            return _FIRST_LOSS
        # A packet that is only its first byte, one frame of nothing, makes libopus fill the gap.
        nothing = bytes([self._latest[0] & 0xFC])
        pieces: list[Samples] = []
        while sum(map(len, pieces)) < self._latest_samples:
            pieces.append(self._decode(nothing))
        return np.concatenate(pieces)

    def _decode(self, packet: bytes) -> Samples:
        import av

        try:
            frames = self._codec.decode(av.Packet(packet))
        except av.error.FFmpegError:
            frames = []
        if not frames:
            raise AudioError(
                "packet", f"{len(packet)} bytes that are no Opus packet", "see RFC 6716, section 3"
            )
        pieces = [frame.to_ndarray().reshape(-1) for frame in frames]
        samples: Samples = np.concatenate(pieces).astype(np.float32) / np.float32(_S16_SCALE)
        return samples


def _codec(mode: Literal["r", "w"]) -> AudioCodecContext:
    if not available():
        raise AudioError("encoding", "opus", "it takes more: pip install 'minmo[opus]'")
    import av

    codec: AudioCodecContext = av.CodecContext.create("libopus", mode)
    return codec
