"""Opus through the gateway: in and out of the protocol, and what is none."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from minmo.audio.opus import LOOK_AHEAD_SECONDS, OpusDecoder, OpusEncoder
from tests.unit.gateway_opus import OPUS, framed, unframed
from tests.unit.gateway_states import Dialogue
from tests.unit.scripted_server import tone
from tests.unit.test_gateway_translation import ENDED, error_of


def test_opus_goes_in_as_packets_behind_their_lengths() -> None:
    dialogue = Dialogue(**OPUS)
    sound = tone(600, 0.5, 48_000)
    packets = OpusEncoder(48_000).encode(sound, last=True)
    for first in range(0, len(packets), 4):
        part = packets[first : first + 4]
        dialogue.client("input_audio_buffer.append", audio=framed(part))
    # One that was lost on its way is concealed.
    dialogue.client("input_audio_buffer.append", audio=framed([b""]))
    pcm = b"".join(request.audio.data for request in dialogue.requests)
    heard = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    assert len(heard) == 960 * (len(packets) + 1)
    late = round(LOOK_AHEAD_SECONDS * 48_000)
    assert np.corrcoef(heard[late : late + len(sound)], sound)[0, 1] > 0.9
    assert dialogue.state.config.audio_formats()[0].sample_rate_hz == 48_000


def test_an_answer_in_opus_is_whole_and_as_long_as_it_says() -> None:
    dialogue = Dialogue(**OPUS)
    dialogue.question()
    dialogue.assistant_says("One")
    pcm = (32767 * tone(600, 0.53, 24_000)).astype("<i2").tobytes()
    dialogue.sound(pcm[:9000])
    dialogue.sound(pcm[9000:], first=4500, final=True)
    deltas = [event for event in dialogue.events if event["type"] == "response.output_audio.delta"]
    decoder = OpusDecoder(24_000)
    packets = [packet for one in deltas for packet in unframed(base64.b64decode(one["delta"]))]
    heard = np.concatenate([decoder.decode(packet) for packet in packets])
    late = round(LOOK_AHEAD_SECONDS * 24_000)
    sent = np.frombuffer(pcm, "<i2").astype(np.float32)
    assert np.corrcoef(heard[late : late + len(sent)], sent)[0, 1] > 0.9
    item = dialogue.state.items.of_utterance("u1")
    assert item is not None
    assert item.audio_ms == len(heard) * 1000 // 24_000
    assert dialogue.kinds()[-6:] == ENDED


@pytest.mark.parametrize(
    "data", [b"\0", b"\0\5abc", b"\xff\xff" + bytes(70_000), b"\0\1\xff", b"\0\1\x08" * 100_000]
)
def test_what_is_no_opus_is_refused_and_the_next_is_heard(data: bytes) -> None:
    dialogue = Dialogue(**OPUS)
    error = error_of(dialogue, "input_audio_buffer.append", audio=base64.b64encode(data).decode())
    assert (error.code, error.param) == ("invalid_value", "audio")
    packets = OpusEncoder(48_000).encode(tone(600, 0.2, 48_000))
    dialogue.client("input_audio_buffer.append", audio=framed(packets))
    assert sum(len(request.audio.data) for request in dialogue.requests) == 2 * 960 * len(packets)


def test_without_the_extra_opus_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.gateway.session.opus_available", lambda: False)
    error = error_of(Dialogue(), "session.update", session=OPUS)
    assert (error.code, error.param) == ("unsupported", "session.audio.input.format")
    assert "minmo[opus]" in error.message
