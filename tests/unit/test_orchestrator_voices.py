"""Which voices there are: asked of the voice decoder, known for a while, checked by name."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from minmo.rpc.errors import StatusError
from minmo.v1 import voice_decoder_pb2, voice_decoder_pb2_grpc
from services.orchestrator import voices
from services.orchestrator.query import POSITIONS
from services.orchestrator.voices import Known, Voices


class Decoder(voice_decoder_pb2_grpc.VoiceDecoderServiceServicer):
    """Has voices, or has no answer."""

    def __init__(self) -> None:
        self.names = ["default", "other"]
        self.query_positions = 100
        self.asked = 0
        self.away = False

    async def ListVoices(self, request, context) -> voice_decoder_pb2.ListVoicesResponse:
        self.asked += 1
        if self.away:
            await context.abort(grpc.StatusCode.INTERNAL, "no")
        return voice_decoder_pb2.ListVoicesResponse(
            names=self.names, reads_hidden_states=True, max_query_positions=self.query_positions
        )


@pytest.fixture
async def served() -> AsyncIterator[tuple[Decoder, Voices]]:
    decoder, server = Decoder(), grpc.aio.server()
    voice_decoder_pb2_grpc.add_VoiceDecoderServiceServicer_to_server(decoder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield decoder, Voices(channel)
    await server.stop(0)


async def test_they_are_asked_for_once_and_a_name_that_is_new_at_once(
    served: tuple[Decoder, Voices],
) -> None:
    decoder, known = served
    assert await known.names() == ("default", "other")
    await known.check("other", "voice")
    await known.check("", "voice")
    assert decoder.asked == 1
    decoder.names.append("new")
    await known.check("new", "voice")
    assert decoder.asked == 2


async def test_one_that_does_not_exist_is_refused_with_those_that_do(
    served: tuple[Decoder, Voices],
) -> None:
    with pytest.raises(StatusError) as refused:
        await served[1].check("nobody", "settings.voice")
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.reason == "VOICE_NOT_FOUND"
    assert refused.value.message.endswith("there are: default, other")


async def test_without_an_answer_what_was_known_holds_and_else_any_name_is_taken(
    served: tuple[Decoder, Voices], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, known = served
    decoder.away = True
    assert await known.names() == ()
    await known.check("anybody", "voice")
    decoder.away = False
    monkeypatch.setattr(voices, "FRESH_SECONDS", 0.0)
    assert await known.names() == ("default", "other")
    decoder.away = True
    with pytest.raises(StatusError):
        await known.check("anybody", "voice")


async def test_what_they_read_is_known_and_a_query_is_bounded(
    served: tuple[Decoder, Voices],
) -> None:
    decoder, known = served
    assert known.latest == Known()
    assert await known.known() == Known(("default", "other"), True, 100)
    decoder.query_positions = 10_000
    decoder.names.append("new")
    await known.check("new", "voice")
    assert known.latest.query_positions == POSITIONS
