"""What the voice reads of the user's words first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from minmo.v1.common_pb2 import ROLE_ASSISTANT, ROLE_USER, FloatMatrix
from services.orchestrator import history, items
from services.orchestrator.items import Item
from services.orchestrator.link import Link
from services.orchestrator.mind import Context, Epoch
from services.orchestrator.query import NOTHING, Query
from services.orchestrator.store import StoredTurn
from tests.unit.fake_llm import EMBEDDING, HIDDEN, FakeLlm, served


class Setup:
    def __init__(self, llm: FakeLlm, link: Link) -> None:
        self.llm, self.epoch = llm, 0

        async def advance() -> int:
            self.epoch += 1
            return self.epoch

        async def on_outage(lost: bool) -> None: ...

        self.context = Context(
            link, Epoch(0, advance), "main", recovery_seconds=2, on_outage=on_outage
        )
        self.context.query_positions = 8

    async def reads(self, *content: Item) -> None:
        self.context.add(content)
        await self.context.sync()


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    llm = FakeLlm()
    async with served(llm) as channel:
        link = Link(channel, "session", deadline_seconds=2)
        yield Setup(llm, link)
        await link.close()


def answer() -> list[Item]:
    """The user's turn ends, the assistant's begins."""
    return [items.turn_end(), items.role_start(ROLE_ASSISTANT)]


def speech(rows: int) -> Item:
    return items.embeddings(FloatMatrix(data=bytes(4 * 4 * rows), rows=rows, columns=4))


def positions(query: Query) -> list[int]:
    """Where the LLM had read what is in a query; embeddings and hidden states are of the same."""
    found = []
    for matrix, kind in ((query.embeddings, EMBEDDING), (query.hidden_states, HIDDEN)):
        values = np.frombuffer(matrix.data, "<f4").reshape(matrix.rows, matrix.columns or 4)
        assert (values[:, 1] == kind).all()
        found.append([int(row[0]) for row in values])
    assert found[0] == found[1]
    return found[0]


def of(items_: Sequence[Item]) -> str:
    return "".join(item.part.text for item in items_)


async def test_of_words_the_voice_reads_what_the_llm_read_and_made_of_them(setup: Setup) -> None:
    await setup.reads(items.text("Be kind"))
    await setup.reads(items.role_start(ROLE_USER), items.text("hi!", asked=True), *answer())
    assert positions(setup.context.query()) == [8, 9, 10]
    # Instructions are nobody's words: nothing came back for them.
    assert [prefill.return_last > 0 for prefill in setup.llm.prefills] == [False, True]


async def test_of_speech_it_reads_all_stretches_and_of_a_long_turn_the_end(setup: Setup) -> None:
    await setup.reads(items.role_start(ROLE_USER), speech(2))
    await setup.reads(speech(3))
    assert positions(setup.context.query()) == [1, 2, 3, 4, 5]
    await setup.reads(speech(3), *answer())
    await setup.reads(items.token(7))
    assert positions(setup.context.query()) == [1, 2, 3, 4, 5, 6, 7, 8]
    await setup.context.rewind(4)
    await setup.reads(speech(5), *answer())
    assert positions(setup.context.query()) == [6, 7, 8, 9, 10, 11, 12, 13]
    # What is further back is of no use, and not kept.
    made = [item.made is not None for item in setup.context._items]
    assert made == [False, False, False, True, True, False, False]


async def test_of_a_long_text_it_reads_the_end(setup: Setup) -> None:
    await setup.reads(items.text("a" * 300, asked=True), *answer())
    assert positions(setup.context.query()) == list(range(292, 300))


async def test_only_the_latest_turn_is_kept(setup: Setup) -> None:
    first = [items.role_start(ROLE_USER), items.text("one", asked=True), *answer(), items.token(1)]
    await setup.reads(*first)
    await setup.reads(items.turn_end(), items.role_start(ROLE_USER), speech(2), *answer())
    assert positions(setup.context.query()) == [9, 10]
    assert [item.made for item in first] == [None] * 5


async def test_it_is_read_again_with_a_cache_that_was_lost(setup: Setup) -> None:
    await setup.reads(items.text("S"), items.role_start(ROLE_USER), speech(2))
    before = setup.context.query()
    setup.llm.lose_cache()
    setup.context._items[2].made = None
    await setup.reads(*answer())
    assert setup.context.query() == before
    assert positions(before) == [2, 3]


async def test_a_branch_knows_what_the_line_before_it_has_read(setup: Setup) -> None:
    await setup.reads(items.role_start(ROLE_USER), items.text("hi", asked=True), *answer())
    fork = await setup.context.fork("fork", 4)
    assert positions(fork.query()) == [1, 2]
    await setup.reads(items.turn_end())
    fork.add([items.turn_end(), items.role_start(ROLE_USER), speech(1)])
    await fork.sync()
    assert positions(fork.query()) == [7]


async def test_a_history_has_the_words_of_its_last_question(setup: Setup) -> None:
    turns = [
        StoredTurn(0, "user", "one"),
        StoredTurn(1, "assistant", "two"),
        StoredTurn(2, "user", "three"),
        StoredTurn(3, "assistant", "", call_id="c", call_name="look", call_arguments="{}"),
        StoredTurn(4, "tool", "seen", call_id="c"),
    ]
    told = history.prompt("Be kind.", turns, limit=1000)
    assert [of([item]) for item in told if item.asked] == ["one", "three"]
    setup.context.query_positions = 100
    await setup.reads(*told, items.role_start(ROLE_ASSISTANT))
    units = setup.llm.branches["main"]
    assert "".join(units[at] for at in positions(setup.context.query())) == "three"


async def test_for_a_voice_that_reads_text_nothing_comes_back(setup: Setup) -> None:
    setup.context.query_positions = 0
    await setup.reads(
        items.role_start(ROLE_USER), items.text("hi", asked=True), speech(2), *answer()
    )
    assert setup.context.query() == NOTHING
    assert not any(prefill.return_hidden_states for prefill in setup.llm.prefills)


async def test_an_instruction_comes_first_and_leaves_the_rest_to_the_end_of_the_words(
    setup: Setup,
) -> None:
    beside = setup.context.beside("beside", history.told_by_user("sad"))
    await beside.sync()
    await setup.reads(items.text("xyz"), items.text("abcdefgh", asked=True), *answer())
    both = beside.query().before(setup.context.query(), 8)
    assert positions(both) == [1, 2, 3, 6, 7, 8, 9, 10]
    assert NOTHING.before(beside.query(), 8) == beside.query()
    assert beside.query().before(NOTHING, 8) == beside.query()
