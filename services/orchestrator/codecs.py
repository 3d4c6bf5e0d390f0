"""Between the client's audio and the PCM that the services speak: checks, Opus in and out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from minmo.audio.opus import DECODED_RATE_HZ, OpusDecoder, OpusEncoder
from minmo.audio.pcm import AudioError, PcmFormat
from minmo.rpc import metrics
from minmo.rpc.errors import StatusError, invalid_argument
from minmo.v1 import common_pb2
from services.orchestrator import checks
from services.orchestrator.utterance import Audio


class Incoming:
    """The user's audio, message by message.

    Args:
        audio_format: what the client sends, checked.
        max_seconds: longest PCM in a message.
    """

    def __init__(self, audio_format: common_pb2.AudioFormat, *, max_seconds: float) -> None:
        self.pcm_format = audio_format
        """What `pcm` returns."""
        self._max_seconds = max_seconds
        self._decoder: OpusDecoder | None = None
        if audio_format.encoding == common_pb2.AUDIO_ENCODING_OPUS:
            self._decoder = OpusDecoder()
            self._pcm = PcmFormat(DECODED_RATE_HZ)
            self.pcm_format = self._pcm.to_proto()
        frame = checks.frame_bytes(self.pcm_format)
        self._bytes_per_second = frame * self.pcm_format.sample_rate_hz

    def pcm(self, data: bytes) -> bytes:
        """The PCM in a message. Raises INVALID_ARGUMENT for what is none, or too long."""
        try:
            pcm = self._decoded(data)
        except StatusError:
            # Nobody can say how long it was.
            metrics.count_lost_input("refused", metrics.FRAME_SECONDS)
            raise
        seconds = len(pcm) / self._bytes_per_second
        if data or not pcm:
            metrics.AUDIO_IN.inc(metrics.frames(seconds))
        else:
            metrics.count_lost_input("concealed", seconds)
        return pcm

    def _decoded(self, data: bytes) -> bytes:
        if self._decoder is None:
            checks.audio_data(data, self.pcm_format, max_seconds=self._max_seconds)
            return data
        try:
            return self._pcm.encode(self._decoder.decode(data))
        except AudioError as error:
            raise invalid_argument("audio.data", str(error), reason="BAD_PACKET") from None


class Outgoing:
    """The assistant's audio, as the client wants it.

    Args:
        audio_format: what the client gets, checked.
    """

    def __init__(self, audio_format: common_pb2.AudioFormat) -> None:
        self.pcm_format = audio_format
        """What `pieces` takes."""
        self._opus = audio_format.encoding == common_pb2.AUDIO_ENCODING_OPUS
        if self._opus:
            self._pcm = PcmFormat(audio_format.sample_rate_hz)
            self.pcm_format = self._pcm.to_proto()
        self._utterance_id = ""
        self._packets: _Packets | None = None

    def pieces(self, utterance_id: str, audio: Audio) -> Iterator[Audio]:
        """What to send of a piece of an utterance: itself, or the packets that are complete."""
        if not self._opus:
            return iter((audio,))
        if self._packets is None or utterance_id != self._utterance_id:
            self._utterance_id = utterance_id
            self._packets = _Packets(self._pcm, audio.first_sample)
        return self._packets.of(audio)


class _Packets:
    """An utterance as a stream of Opus."""

    def __init__(self, pcm: PcmFormat, first_sample: int) -> None:
        self._pcm = pcm
        self._encoder = OpusEncoder(pcm.sample_rate_hz)
        self._position = first_sample
        self._marks: deque[common_pb2.Mark] = deque()

    def of(self, audio: Audio) -> Iterator[Audio]:
        self._marks += audio.marks
        samples = self._pcm.decode(audio.data)
        size = self._encoder.packet_samples
        # One after the other: whoever sends them lets others work in between.
        for start in range(0, len(samples), size):
            for packet in self._encoder.encode(samples[start : start + size]):
                yield self._piece(packet)
        if audio.final:
            *packets, last = self._encoder.encode(samples[:0], last=True) or [b""]
            for packet in packets:
                yield self._piece(packet)
            yield self._piece(last, final=True)

    def _piece(self, packet: bytes, *, final: bool = False) -> Audio:
        first = self._position
        if packet:
            self._position += self._encoder.packet_samples
        return Audio(first, packet, self._marks_until_here(), final)

    def _marks_until_here(self) -> list[common_pb2.Mark]:
        marks = []
        while self._marks and self._marks[0].sample <= self._position:
            marks.append(self._marks.popleft())
        return marks
