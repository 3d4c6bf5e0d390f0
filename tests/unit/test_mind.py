"""What the LLM has read survives whatever happens to the LLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from minmo.rpc.errors import StatusError
from minmo.v1.common_pb2 import ROLE_USER, FloatMatrix
from services.orchestrator import items, retry
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
    assert setup.outages == []
    assert setup.number == 1


async def test_an_llm_that_is_away_for_a_while_is_told(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "QUIET_SECONDS", 0)
    setup.llm.refuse = ["UPSTREAM", "UPSTREAM"]
    setup.context.add([items.text("abc")])
    await setup.context.sync()
    assert setup.outages == [True, False]


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


async def test_a_replica_that_stops_sends_the_session_away_without_an_outage(setup: Setup) -> None:
    moved = asyncio.Event()
    setup.link._on_moved = moved.set
    setup.context.add([items.text("abc")])
    await setup.context.sync()
    setup.llm.drain()
    await asyncio.wait_for(moved.wait(), 5)
    # The next replica has read nothing of it.
    setup.llm.lose_cache()
    assert not setup.context.is_read
    # It need not be asked for anything to be read again.
    await setup.context.sync()
    assert setup.read == "abc"
    setup.context.add([items.text("def")])
    await setup.context.sync()
    assert setup.read == "abcdef"
    assert setup.outages == []


async def test_what_runs_on_a_replica_that_stops_goes_on_elsewhere(setup: Setup) -> None:
    setup.context.add([items.text("abc")])
    setup.llm.stop_after = 4
    setup.llm.gate.clear()
    answering = asyncio.create_task(answer(setup.context, max_tokens=4))
    async with asyncio.timeout(5):
        while "generate" not in setup.llm.operations:
            await asyncio.sleep(0.01)
    setup.llm.drain()
    setup.llm.lose_cache()
    setup.llm.gate.set()
    assert await asyncio.wait_for(answering, 5) == [3, 4, 5, 6]
    assert setup.outages == []


async def test_a_replica_that_has_lost_what_is_behind_it_is_left(setup: Setup) -> None:
    setup.context.add([items.text("abc")])
    await setup.context.sync()
    setup.llm.refuse = ["UPSTREAM"]
    setup.context.add([items.text("def")])
    await setup.context.sync()
    assert setup.read == "abcdef"
    assert setup.llm.streams == 2


async def test_a_branch_forked_after_a_move_reads_everything_itself(setup: Setup) -> None:
    moved = asyncio.Event()
    setup.link._on_moved = moved.set
    setup.context.add([items.text("abc"), items.text("def")])
    await setup.context.sync()
    setup.llm.drain()
    await asyncio.wait_for(moved.wait(), 5)
    setup.llm.lose_cache()
    fork = await setup.context.fork("overlap", 1)
    fork.add([items.text("x")])
    await fork.sync()
    assert "".join(setup.llm.branches["overlap"]) == "abcx"
    assert setup.outages == []


async def test_a_cache_that_was_left_is_gone_on_with(setup: Setup) -> None:
    # What was generated may be other tokens than those of the text that the history has.
    setup.llm.branches["main"] = list("ab") + ["#1"] * 5
    setup.context.resume([items.text("ab"), items.text("cdefgh")], 7)
    assert setup.context.is_read
    setup.context.add([items.text("x")])
    await setup.context.sync()
    assert setup.llm.operations == ["prefill"]
    assert setup.read == "ab" + "#1" * 5 + "x"
    await setup.context.rewind(2)
    setup.context.add([items.text("y")])
    await setup.context.sync()
    assert setup.read == "ab" + "#1" * 5 + "y"


async def test_a_cache_that_is_not_there_any_more_is_read_again(setup: Setup) -> None:
    setup.context.resume([items.text("abc"), items.text("def")], 5)
    setup.context.add([items.text("x")])
    await setup.context.sync()
    assert setup.read == "abcdefx"


async def test_work_that_outlives_its_conversation_opens_no_other_stream(setup: Setup) -> None:
    setup.llm.refuse = ["BUSY"] * 3
    setup.context.add([items.text("hi")])
    waiting = asyncio.create_task(setup.context.sync())
    async with asyncio.timeout(5):
        while not setup.llm.operations:
            await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await setup.link.close()
    left = {task for task in asyncio.all_tasks() if "sync.<locals>.work" in repr(task)}
    assert left
    done, _ = await asyncio.wait(left, timeout=5)
    assert done == left
    assert setup.llm.streams == 1
