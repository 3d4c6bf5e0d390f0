"""The client's audio on its way to the services and back: Opus becomes PCM, and PCM Opus."""

from __future__ import annotations

import numpy as np
import pytest

from minmo.audio.opus import OpusDecoder, OpusEncoder
from minmo.audio.pcm import PcmFormat
from minmo.rpc.errors import StatusError
from minmo.v1 import common_pb2
from services.orchestrator.codecs import Incoming, Outgoing
from services.orchestrator.utterance import Audio
from tests.unit.scripted_server import tone

RATE = 24_000
OPUS = common_pb2.AudioFormat(
    encoding=common_pb2.AUDIO_ENCODING_OPUS, sample_rate_hz=RATE, channels=1
)
PCM = PcmFormat(RATE)


def mark(sample: int, tokens: int) -> common_pb2.Mark:
    return common_pb2.Mark(sample=sample, token_count=tokens)


def spoken(outgoing: Outgoing, *pieces: Audio, utterance: str = "one") -> list[Audio]:
    return [sent for piece in pieces for sent in outgoing.pieces(utterance, piece)]


def test_pcm_passes_as_it_is() -> None:
    outgoing = Outgoing(PCM.to_proto())
    audio = Audio(10, b"\0\0" * 7, [mark(12, 1)])
    assert spoken(outgoing, audio) == [audio]
    incoming = Incoming(PCM.to_proto(), max_seconds=1)
    assert incoming.pcm(b"\1\0" * 480) == b"\1\0" * 480


def test_an_utterance_becomes_packets_that_lie_end_to_end() -> None:
    sound = tone(500, 0.25, RATE)
    data = PCM.encode(sound)
    outgoing = Outgoing(OPUS)
    assert outgoing.pcm_format == PCM.to_proto()
    cut = 2 * 1111
    sent = spoken(
        outgoing,
        Audio(0, data[:cut], [mark(480, 1), mark(1000, 2)]),
        Audio(1111, data[cut:], [mark(6000, 3)]),
        Audio(6000, b"", [], final=True),
    )
    assert [piece.first_sample for piece in sent] == [480 * n for n in range(len(sent))]
    assert [piece.final for piece in sent] == [False] * (len(sent) - 1) + [True]
    placed = {m.token_count: n for n, piece in enumerate(sent) for m in piece.marks}
    assert placed == {1: 0, 2: 2, 3: 12}
    decoder = OpusDecoder(RATE)
    back = np.concatenate([decoder.decode(piece.data) for piece in sent])
    assert np.corrcoef(sound, back[156 : 156 + len(sound)])[0, 1] > 0.9


def test_every_utterance_is_a_stream_of_its_own() -> None:
    piece = Audio(0, PCM.encode(tone(500, 0.1, RATE)), [])
    outgoing = Outgoing(OPUS)
    first = spoken(outgoing, piece, utterance="one")
    assert spoken(outgoing, piece, utterance="two") == first


def test_an_utterance_without_audio_ends_all_the_same() -> None:
    sent = spoken(Outgoing(OPUS), Audio(0, b"", [], final=True))
    assert sent == [Audio(0, b"", [], final=True)]


def test_packets_are_heard_as_pcm() -> None:
    incoming = Incoming(OPUS, max_seconds=1)
    (packet,) = OpusEncoder(RATE).encode(tone(500, 0.02, RATE))
    assert len(incoming.pcm(packet)) == 2 * 960
    assert incoming.pcm_format.sample_rate_hz == 48_000
    assert len(incoming.pcm(b"")) == 2 * 960


def test_what_is_no_packet_says_so() -> None:
    with pytest.raises(StatusError, match="no Opus packet") as refused:
        Incoming(OPUS, max_seconds=1).pcm(b"\x03\x00")
    assert refused.value.reason == "BAD_PACKET"
    assert "audio.data" in refused.value.violations
