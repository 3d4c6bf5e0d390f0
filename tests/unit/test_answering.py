"""What the LLM has read when an answer to speech begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from minmo.rpc.errors import StatusError
from minmo.v1.common_pb2 import ROLE_USER, FloatMatrix
from minmo.v1.conversation_pb2 import TurnEventKind
from services.orchestrator import items
from services.orchestrator.answering import Answer, Answering
from services.orchestrator.branches import Branches
from services.orchestrator.link import Link
from services.orchestrator.manner import Manner
from services.orchestrator.mind import Context, Epoch, Sampling
from services.orchestrator.user_turn import Speech, UserTurn
from services.orchestrator.waterfall import Waterfall
from tests.unit.fake_llm import FakeLlm, served

ROWS = FloatMatrix(data=bytes(2 * 4 * 4), rows=2, columns=4)


class Told:
    """Responses that are noted."""

    def __init__(self) -> None:
        self.events: list[TurnEventKind.ValueType] = []

    async def event(self, kind: TurnEventKind.ValueType, **_: Any) -> None:
        self.events.append(kind)


class Setup:
    def __init__(self, llm: FakeLlm, link: Link) -> None:
        self.llm, self.told = llm, Told()
        self.ended: asyncio.Queue[StatusError | None] = asyncio.Queue()
        self.epoch = 0

        async def advance() -> int:
            self.epoch += 1
            return self.epoch

        async def on_outage(lost: bool) -> None: ...

        async def on_ended(answer: Answer, error: StatusError | None) -> None:
            await self.ended.put(error)

        def in_background(work: Awaitable[None]) -> None: ...

        self.context = Context(
            link, Epoch(0, advance), "main", recovery_seconds=2, on_outage=on_outage
        )
        manner = Manner(
            aligned=True,
            context_length=100,
            max_tokens=10,
            sampling=Sampling(),
            voice=None,  # type: ignore[arg-type]
            reports_playback=False,
            embed_seconds=0.2,
        )
        self.answering = Answering(
            "session",
            manner,
            record=None,  # type: ignore[arg-type]
            branches=Branches(self.context, in_background, "stream"),
            responses=self.told,  # type: ignore[arg-type]
            on_ended=on_ended,
        )

    @property
    def read(self) -> str:
        return "".join(self.llm.branches.get("main", []))

    async def hears(self) -> None:
        """More of the user's speech is read."""
        await self.answering.speech_goes_on()
        self.context.add([items.embeddings(ROWS)])
        await self.context.sync()

    async def answers(self, words: str) -> StatusError | None:
        turn = UserTurn(0, checkpoint=1, speech=[Speech(1, words)])
        self.answering.begin(Waterfall(0.0), spoken=turn, spoken_ms=500)
        return await asyncio.wait_for(self.ended.get(), 5)


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    llm = FakeLlm()
    async with served(llm) as channel:
        link = Link(channel, "session", deadline_seconds=2)
        setup = Setup(llm, link)
        setup.context.add([items.text("S"), items.role_start(ROLE_USER)])
        yield setup
        await link.close()


async def test_the_start_of_an_answer_is_read_once_though_it_was_expected(setup: Setup) -> None:
    await setup.hears()
    assert setup.answering.expect_answer()
    assert not setup.answering.expect_answer()
    await setup.context.sync()
    assert setup.read == "S<role_start>~~<turn_end><role_start>"
    operations = len(setup.llm.operations)
    answer = Answer(None, None, 500, Waterfall(0.0))
    await setup.answering._read_question(answer, None, read_as_speech=True)  # type: ignore[arg-type]
    assert setup.read == "S<role_start>~~<turn_end><role_start>"
    # Nothing was left to be read: no way to the LLM and back.
    assert len(setup.llm.operations) == operations
    assert (answer.content, answer.base) == (3, 5)


async def test_the_start_of_an_answer_is_taken_back_when_the_user_goes_on(setup: Setup) -> None:
    await setup.hears()
    setup.answering.expect_answer()
    await setup.context.sync()
    await setup.hears()
    assert setup.read == "S<role_start>~~~~"
    answer = Answer(None, None, 500, Waterfall(0.0))
    await setup.answering._read_question(answer, None, read_as_speech=True)  # type: ignore[arg-type]
    assert setup.read == "S<role_start>~~~~<turn_end><role_start>"
    assert answer.content == 4


async def test_a_turn_without_any_piece_is_not_answered_and_forgotten(setup: Setup) -> None:
    await setup.context.sync()
    setup.answering.embeddings_over.set()
    assert await setup.answers("") is None
    assert setup.told.events == [TurnEventKind.TURN_EVENT_KIND_NOTHING_SAID]
    assert setup.read == "S"
    assert "generate" not in setup.llm.operations


async def test_an_encoder_that_does_not_end_the_turn_is_not_waited_for_longer(
    setup: Setup,
) -> None:
    error = await setup.answers("hello")
    assert error is not None
    assert "did not end the turn within 0.2 s" in str(error)
