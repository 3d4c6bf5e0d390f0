"""Probes change nothing that was read; drafts are used when they fit and freed when they do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import Counter

from minmo.rpc import metrics
from minmo.v1.common_pb2 import ROLE_ASSISTANT, ROLE_USER, FloatMatrix
from services.orchestrator import drafting, items
from services.orchestrator.branches import Branches
from services.orchestrator.drafting import Drafting
from services.orchestrator.link import Link
from services.orchestrator.listener import Probe
from services.orchestrator.manner import Manner
from services.orchestrator.mind import Context, Epoch, Sampling
from services.orchestrator.prober import Answered, Prober
from tests.unit.fake_llm import FakeLlm, served

MATRIX = FloatMatrix(data=bytes(16), rows=1, columns=4)
MANNER = cast(
    "Manner",
    SimpleNamespace(sampling=Sampling(), voice=SimpleNamespace(reads_hidden_states=False)),
)


class Setup:
    def __init__(self, llm: FakeLlm, link: Link) -> None:
        self.llm, self.link = llm, link
        self.tasks: set[asyncio.Future[None]] = set()
        number = 0

        async def advance() -> int:
            nonlocal number
            number += 1
            return number

        async def on_outage(lost: bool) -> None:
            pass

        main = Context(link, Epoch(0, advance), "main", recovery_seconds=2, on_outage=on_outage)
        self.branches = Branches(main, self.in_background, "x")
        self.drafting = Drafting(self.branches)

    def in_background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @property
    def main(self) -> Context:
        return self.branches.main

    async def settle(self) -> None:
        """Waits for what is done in the background."""
        async with asyncio.timeout(5):
            while self.tasks:
                await asyncio.gather(*self.tasks)

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not is_true():
                await asyncio.sleep(0.005)


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    llm = FakeLlm()
    async with served(llm) as channel:
        link = Link(channel, "session", deadline_seconds=2)
        made = Setup(llm, link)
        made.main.add([items.role_start(ROLE_USER), items.text("hi")])
        await made.main.sync()
        yield made
        made.drafting.drop()
        await made.settle()
        await link.close()


async def answer(context: Context, max_tokens: int = 10) -> list[int]:
    tokens = context.generate(max_tokens, Sampling(), hidden_states=False)
    return [token.id async for token in tokens]


async def said_without_a_draft(setup: Setup) -> list[int]:
    """The answer as it is made when nothing was begun ahead."""
    other = await setup.main.fork("plain", len(setup.main))
    other.add([items.turn_end(), items.role_start(ROLE_ASSISTANT)])
    return await answer(other)


def counted(outcome: str, counter: Counter = metrics.DRAFTED_TOKENS) -> float:
    samples = [sample for metric in counter.collect() for sample in metric.samples]
    found = [s.value for s in samples if s.labels["outcome"] == outcome and "_total" in s.name]
    return sum(found)


# --- probes


async def test_a_probe_is_asked_after_all_that_is_to_be_read_and_adds_nothing(setup: Setup) -> None:
    setup.main.add([items.embeddings(FloatMatrix(data=bytes(32), rows=2, columns=4))])
    said = await setup.main.probe(MATRIX)
    assert said is not None
    assert said.assistant_turn == pytest.approx(0.05)
    assert setup.llm.probed == ["<role_start>hi~~"]
    assert setup.main.is_read
    assert await answer(setup.main) == [5, 6, 7, 8, 9]


async def test_a_probe_does_not_wait_for_what_is_said_after_it(setup: Setup) -> None:
    setup.main.add([items.text("!")])
    async with setup.main._lock:
        asking = asyncio.create_task(setup.main.probe(MATRIX))
        reading = asyncio.create_task(setup.main.sync())
        await setup.until(lambda: len(setup.main._lock._waiters or ()) == 2)
        setup.main.add([items.text("later")])
    assert await asking is not None
    await reading
    assert setup.llm.probed == ["<role_start>hi!"]
    assert "".join(setup.llm.branches["main"]) == "<role_start>hi!"
    await setup.main.sync()
    assert setup.main.is_read


async def test_a_probe_that_cannot_be_asked_says_nothing_and_harms_nothing(setup: Setup) -> None:
    setup.llm.refuse = ["NO_PREDICTOR"]
    assert await setup.main.probe(MATRIX) is None
    assert setup.main.is_read
    assert setup.llm.operations.count("prefill") == 1


async def test_a_lost_cache_is_read_again_before_a_probe(setup: Setup) -> None:
    setup.llm.lose_cache()
    assert await setup.main.probe(MATRIX) is None
    setup.main.add([items.text("!")])
    assert await setup.main.probe(MATRIX) is not None
    assert setup.llm.probed == ["<role_start>hi!"]


async def test_the_latest_of_the_probes_that_wait_counts(setup: Setup) -> None:
    answers: list[Answered] = []

    async def on_answer(answered: Answered) -> None:
        answers.append(answered)

    prober = Prober(on_answer)
    replaced = counted("replaced", metrics.PROBES)
    setup.llm.probe_gate.clear()
    for end in range(1, 6):
        prober.ask(setup.main, Probe(7, MATRIX, end))
    await setup.until(lambda: len(setup.llm.probed) == 1)
    setup.llm.probe_gate.set()
    await setup.until(lambda: len(answers) == 2)
    assert [answered.said.heard_until for answered in answers] == [1, 5]
    assert {answered.segment_id for answered in answers} == {7}
    assert counted("replaced", metrics.PROBES) == replaced + 3
    assert len(setup.llm.probed) == 2
    await prober.stop()


async def test_a_probe_of_one_branch_does_not_wait_for_another(setup: Setup) -> None:
    answers: list[Answered] = []

    async def on_answer(answered: Answered) -> None:
        answers.append(answered)

    prober = Prober(on_answer)
    other = await setup.branches.open_overlap(1)
    async with setup.main._lock:
        prober.ask(setup.main, Probe(1, MATRIX, 1))
        prober.ask(other, Probe(2, MATRIX, 2))
        await setup.until(lambda: len(answers) == 1)
        assert answers[0].segment_id == 2
    await setup.until(lambda: len(answers) == 2)
    await prober.stop()


# --- drafts


async def test_a_draft_becomes_the_answer_with_the_tokens_that_are_there(setup: Setup) -> None:
    expected = await said_without_a_draft(setup)
    used = counted("used")
    setup.drafting.begin(MANNER, 10)
    await setup.until(lambda: "ahead-x-1" in setup.llm.branches)
    await setup.until(lambda: len(setup.llm.branches["ahead-x-1"]) > 8)
    assert await setup.drafting.take() == 2
    await setup.settle()
    assert "main" not in setup.llm.branches
    assert setup.main.branch == "ahead-x-1"
    assert len(setup.main) == 4
    generations = setup.llm.operations.count("generate")
    assert await answer(setup.main) == expected
    assert setup.llm.operations.count("generate") == generations
    assert counted("used") > used
    # The conversation goes on there.
    setup.main.add([items.turn_end()])
    await setup.main.sync()
    read = "".join(setup.llm.branches["ahead-x-1"])
    assert read == "<role_start>hi<turn_end><role_start>#5#6#7#8#9<turn_end>"


async def test_an_answer_that_is_taken_while_it_is_drafted_goes_on(setup: Setup) -> None:
    expected = await said_without_a_draft(setup)
    setup.llm.gate.clear()
    setup.drafting.begin(MANNER, 10)
    assert await setup.drafting.take() == 2
    making = asyncio.create_task(answer(setup.main))
    setup.llm.gate.set()
    assert await asyncio.wait_for(making, 5) == expected


async def test_a_draft_of_less_than_was_said_is_wasted(setup: Setup) -> None:
    wasted = counted("wasted")
    setup.drafting.begin(MANNER, 10)
    await setup.until(lambda: len(setup.llm.branches.get("ahead-x-1", "")) > 8)
    setup.main.add([items.text(" there")])
    assert await setup.drafting.take() is None
    await setup.settle()
    assert setup.main.branch == "main"
    assert "ahead-x-1" not in setup.llm.branches
    assert counted("wasted") == wasted + 5


async def test_a_draft_that_is_dropped_stops_the_llm_and_frees_the_branch(setup: Setup) -> None:
    setup.llm.gate.clear()
    setup.drafting.begin(MANNER, 10)
    await setup.until(lambda: "generate" in setup.llm.operations)
    setup.drafting.drop()
    await setup.settle()
    assert "cancel" in setup.llm.operations
    assert list(setup.llm.branches) == ["main"]
    assert await setup.drafting.take() is None
    # And another may be begun.
    setup.llm.gate.set()
    setup.drafting.begin(MANNER, 10)
    assert await setup.drafting.take() == 2


async def test_a_draft_that_nobody_takes_is_dropped_in_the_end(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "LONGEST_SECONDS", 0.01)
    setup.drafting.begin(MANNER, 10)
    await setup.until(lambda: setup.drafting._draft is None)
    await setup.settle()
    assert list(setup.llm.branches) == ["main"]
    # Nor is the same answer begun again, until there is more to answer.
    setup.drafting.begin(MANNER, 10)
    assert await setup.drafting.take() is None
    monkeypatch.undo()
    setup.main.add([items.text("!")])
    setup.drafting.begin(MANNER, 10)
    assert await setup.drafting.take() == 3


async def test_without_a_free_slot_there_is_no_draft_and_nothing_is_read_for_one(
    setup: Setup,
) -> None:
    setup.llm.refuse = ["NO_SLOT"]
    prefills = setup.llm.operations.count("prefill")
    setup.drafting.begin(MANNER, 10)
    assert await setup.drafting.take() is None
    await setup.settle()
    assert setup.llm.operations.count("prefill") == prefills
    assert setup.main.branch == "main"


async def test_what_was_drafted_and_not_taken_is_cut_from_the_cache(setup: Setup) -> None:
    setup.drafting.begin(MANNER, 10)
    await setup.until(lambda: len(setup.llm.branches.get("ahead-x-1", "")) > 8)
    assert await setup.drafting.take() == 2
    tokens = setup.main.generate(10, Sampling(), hidden_states=False)
    assert (await anext(tokens)).id == 5
    await tokens.aclose()
    setup.main.add([items.interruption()])
    await setup.main.sync()
    read = "".join(setup.llm.branches["ahead-x-1"])
    assert read == "<role_start>hi<turn_end><role_start>#5<interruption>"
    assert "close" not in setup.llm.operations or "main" not in setup.llm.branches


async def test_a_draft_that_was_taken_and_never_read_is_no_answer_to_what_comes_later(
    setup: Setup,
) -> None:
    wasted = counted("wasted")
    setup.drafting.begin(MANNER, 10)
    await setup.until(lambda: len(setup.llm.branches.get("ahead-x-1", "")) > 8)
    assert await setup.drafting.take() == 2
    # The answer is stopped before it begins, and the user goes on.
    await setup.main.rewind(2)
    setup.main.add([items.text("!")])
    assert counted("wasted") == wasted + 5
    assert await answer(setup.main) == [4, 5, 6, 7, 8]
    read = "".join(setup.llm.branches["ahead-x-1"])
    assert read == "<role_start>hi!#4#5#6#7#8"
