"""What the LLM has read survives whatever happens to the LLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from minmo.rpc.errors import StatusError
from minmo.v1.common_pb2 import ROLE_USER, FloatMatrix
from services.orchestrator import items
from services.orchestrator.link import Link
from services.orchestrator.mind import Context, Epoch, Sampling
from tests.unit.fake_llm import FakeLlm, served


class Setup:
    def __init__(self, llm: FakeLlm, link: Link) -> None:
        self.llm = llm
        self.link = link
        self.outages: list[bool] = []
        self.number = 0

        async def advance() -> int:
            self.number += 1
            return self.number

        async def on_outage(lost: bool) -> None:
            self.outages.append(lost)

        self.context = Context(
            link, Epoch(0, advance), "main", recovery_seconds=2, on_outage=on_outage
        )

    @property
    def read(self) -> str:
        return "".join(self.llm.branches.get("main", []))


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    llm = FakeLlm()
    async with served(llm) as channel:
        link = Link(channel, "session", deadline_seconds=2)
        yield Setup(llm, link)
        await link.close()


async def answer(context: Context, max_tokens: int = 10) -> list[int]:
    tokens = context.generate(max_tokens, Sampling(), hidden_states=False)
    return [token.id async for token in tokens]


async def test_content_is_read_once(setup: Setup) -> None:
    setup.context.add([items.role_start(ROLE_USER), items.text("hi")])
    await setup.context.sync()
    await setup.context.sync()
    assert setup.read == "<role_start>hi"
    assert setup.llm.operations == ["prefill"]
    assert setup.context.size == 3


async def test_an_answer_becomes_part_of_what_was_read(setup: Setup) -> None:
    setup.context.add([items.text("abc")])
    assert await answer(setup.context) == [3, 4, 5, 6, 7]
    assert len(setup.context) == 6
    setup.context.add([items.turn_end()])
    await setup.context.sync()
    assert setup.read == "abc#3#4#5#6#7<turn_end>"


async def test_an_answer_ends_at_its_limit(setup: Setup) -> None:
    setup.context.add([items.text("abc")])
    assert await answer(setup.context, max_tokens=2) == [3, 4]


async def test_a_lost_cache_is_read_again(setup: Setup) -> None:
    setup.context.add([items.text("abc")])
    await answer(setup.context)
    setup.llm.lose_cache()
    setup.context.add([items.turn_end()])
    await setup.context.sync()
    assert setup.read == "abc#3#4#5#6#7<turn_end>"
    assert setup.outages == [True, False]
    assert setup.number == 1


async def test_an_answer_goes_on_after_the_service_died(setup: Setup) -> None:
    setup.context.add([items.text("abc")])
    setup.llm.break_stream = 1
    setup.llm.stop_after = 4
    # Whatever was lost on the way, every token stands where it should: after what it had read.
    assert await answer(setup.context, max_tokens=4) == [3, 4, 5, 6]
    assert setup.read.startswith("abc#3#4#5")


async def test_stopping_an_answer_stops_the_llm_and_keeps_what_was_made(setup: Setup) -> None:
    setup.context.add([items.text("abc")])
    setup.llm.stop_after = 1000
    tokens = setup.context.generate(1000, Sampling(), hidden_states=False)
    made = [(await anext(tokens)).id for _ in range(3)]
    setup.llm.gate.clear()
    await tokens.aclose()
    assert "cancel" in setup.llm.operations
    await setup.context.rewind(1 + 2)
    setup.context.add([items.interruption()])
    setup.llm.gate.set()
    await setup.context.sync()
    assert made == [3, 4, 5]
    assert setup.read == "abc#3#4<interruption>"


async def test_cancelling_the_task_of_an_answer_stops_the_llm(setup: Setup) -> None:
    setup.context.add([items.text("abc")])
    setup.llm.gate.clear()
    task = asyncio.create_task(answer(setup.context))
    async with asyncio.timeout(5):
        while "generate" not in setup.llm.operations:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "cancel" in setup.llm.operations
    setup.llm.gate.set()
    assert await answer(setup.context) == [3, 4, 5, 6, 7]


async def test_rewinding_cuts_the_cache_under_a_new_epoch(setup: Setup) -> None:
    setup.context.add([items.text("abc"), items.text("def")])
    await setup.context.sync()
    await setup.context.rewind(1)
    setup.context.add([items.text("x")])
    await setup.context.sync()
    assert setup.read == "abcx"
    assert setup.number == 1


async def test_a_fork_reads_on_beside_its_source(setup: Setup) -> None:
    setup.context.add([items.text("abc"), items.text("def")])
    await setup.context.sync()
    fork = await setup.context.fork("overlap", 1)
    fork.add([items.embeddings(FloatMatrix(data=bytes(32), rows=2, columns=4))])
    await fork.sync()
    assert "".join(setup.llm.branches["overlap"]) == "abc~~"
    assert setup.read == "abcdef"


async def test_a_fork_of_a_lost_cache_reads_everything_itself(setup: Setup) -> None:
    setup.context.add([items.text("abc"), items.text("def")])
    await setup.context.sync()
    setup.llm.lose_cache()
    fork = await setup.context.fork("overlap", 1)
    fork.add([items.text("x")])
    await fork.sync()
    assert "".join(setup.llm.branches["overlap"]) == "abcx"


async def test_replacing_the_content_builds_the_cache_anew(setup: Setup) -> None:
    setup.context.add([items.text("a long history")])
    await setup.context.sync()
    setup.context.replace([items.text("short")])
    await setup.context.sync()
    assert setup.read == "short"


async def test_no_free_slot_is_waited_for(setup: Setup) -> None:
    setup.llm.refuse = ["NO_SLOT", "NO_SLOT"]
    setup.context.add([items.text("abc")])
    await setup.context.sync()
    assert setup.read == "abc"


async def test_a_stale_epoch_ends_the_stream(setup: Setup) -> None:
    setup.llm.epoch = 7
    setup.context.add([items.text("abc")])
    with pytest.raises(StatusError, match="taken over"):
        await setup.context.sync()


async def test_what_cannot_be_read_is_an_error_at_once(setup: Setup) -> None:
    setup.llm.refuse = ["CONTEXT_FULL"]
    setup.context.add([items.text("abc")])
    with pytest.raises(StatusError, match="CONTEXT_FULL"):
        await setup.context.sync()


async def test_an_llm_that_stays_away_is_given_up(setup: Setup) -> None:
    setup.llm.refuse = ["UPSTREAM"] * 1000
    setup.context.add([items.text("abc")])
    with pytest.raises(StatusError, match="could not be had"):
        await setup.context.sync()
