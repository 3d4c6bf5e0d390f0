"""What the voice decoder is given of an answer, also one that takes a lost one's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from minmo.rpc.queues import BoundedStream
from minmo.v1.common_pb2 import AUDIO_ENCODING_PCM_S16LE, ROLE_ASSISTANT, ROLE_USER, AudioFormat
from minmo.v1.conversation_pb2 import ConverseResponse
from services.orchestrator import items
from services.orchestrator.codecs import Outgoing
from services.orchestrator.link import Link
from services.orchestrator.mind import Context, Epoch, Sampling
from services.orchestrator.responses import Responses
from services.orchestrator.utterance import Utterance, Voice
from services.orchestrator.waterfall import Waterfall
from tests.unit.fake_llm import FakeLlm, served
from tests.unit.fake_voice_decoder import FakeVoiceDecoder
from tests.unit.fake_voice_decoder import served as spoken_by

FORMAT = AudioFormat(encoding=AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=24_000, channels=1)


class Setup:
    def __init__(self, link: Link, channel: grpc.aio.Channel) -> None:
        async def advance() -> int:
            return 1

        async def nothing(*_: Any) -> None: ...

        self.context = Context(
            link, Epoch(0, advance), "main", recovery_seconds=2, on_outage=nothing
        )
        self.context.query_positions = 8
        self.channel, self.nothing = channel, nothing

    async def answer(self, *, reads_hidden_states: bool = True) -> Utterance:
        voice = Voice(
            self.channel,
            FORMAT,
            "",
            "sadly",
            5,
            reads_hidden_states,
            8 if reads_hidden_states else 0,
        )
        utterance = Utterance(
            "u1",
            "session",
            voice,
            reports_playback=False,
            on_token=self.nothing,
            on_audio=self.nothing,
            on_outage=self.nothing,
            waterfall=Waterfall(0.0),
        )
        self.context.query_positions = voice.query_positions
        self.context.add(
            [
                items.role_start(ROLE_USER),
                items.text("hi", asked=True),
                items.turn_end(),
                items.role_start(ROLE_ASSISTANT),
            ]
        )
        await self.context.sync()
        async with asyncio.timeout(10):
            await utterance.run(self.context, 10, Sampling(), self.context.query())
        return utterance


@pytest.fixture
async def decoder() -> AsyncIterator[FakeVoiceDecoder]:
    yield FakeVoiceDecoder()


@pytest.fixture
async def setup(decoder: FakeVoiceDecoder) -> AsyncIterator[Setup]:
    async with served(FakeLlm()) as llm, spoken_by(decoder) as channel:
        link = Link(llm, "session", deadline_seconds=2)
        yield Setup(link, channel)
        await link.close()


async def test_a_voice_decoder_that_takes_a_lost_ones_place_reads_the_query_again(
    setup: Setup, decoder: FakeVoiceDecoder
) -> None:
    decoder.break_after = 2
    utterance = await setup.answer()
    assert utterance.token_count == utterance.sample_count == 5
    first, second = decoder.configs
    # Of the first audio that was heard, not of what was said again.
    assert utterance.token2wav_ms == 70
    # What was on its way when the connection broke is said again.
    assert first.first_token == 0
    assert second.first_token <= 2
    assert first.query_embeddings.rows == first.query_hidden_states.rows == 2
    assert second.query_embeddings == first.query_embeddings
    assert second.query_hidden_states == first.query_hidden_states
    # It reads how to speak in the query alone.
    assert first.instruct == second.instruct == ""


async def test_the_report_tells_what_the_voice_says_of_its_first_audio(setup: Setup) -> None:
    utterance = await setup.answer()
    out: BoundedStream[ConverseResponse] = BoundedStream(1, put_timeout_seconds=1, reader="client")
    responses = Responses(out, Outgoing(FORMAT))
    told = {"user": None, "turn": None, "utterance": utterance, "error": None}
    await responses.report("completed", utterance.waterfall, **told)
    report = (await anext(out)).report
    assert report.token2wav_ms == 70


async def test_a_voice_that_reads_text_gets_the_instruction_in_words(
    setup: Setup, decoder: FakeVoiceDecoder
) -> None:
    await setup.answer(reads_hidden_states=False)
    (config,) = decoder.configs
    assert config.instruct == "sadly"
    assert config.query_embeddings.rows == config.query_hidden_states.rows == 0
    assert not any(some.hidden_states.rows for some in decoder.tokens)
