"""The engine, on a tiny random model: what callers can rely on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from minmo.engine.operations import (
    BranchChanged,
    Cancel,
    Close,
    Event,
    Failed,
    FinishReason,
    Fork,
    Generate,
    Generated,
    Prefill,
    Prefilled,
    Reason,
    Sampling,
    TokenDrawn,
    Truncate,
)
from minmo.model.duplex_predictor import DuplexPredictor, DuplexPredictorConfig
from minmo.model.llm import Llm
from tests.unit.tiny_llm import (
    CONFIG,
    Desk,
    embeddings,
    greedy,
    recompute,
    tiny_llm,
    tokens,
)

PROMPT = (5, 17, 80, 3, 42)
LONG = tuple(range(20))


@pytest.fixture(scope="module")
def model() -> Llm:
    return tiny_llm()


@pytest.fixture
def desk(model: Llm) -> Iterator[Desk]:
    desk = Desk(model)
    yield desk
    desk.engine.stop()


@pytest.fixture
def make_desk(model: Llm) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(**options: Any) -> Desk:
        made.append(Desk(**({"model": model} | options)))
        return made[-1]

    yield make
    for desk in made:
        desk.engine.stop()


# --- reading and generating


def test_generates_what_reading_everything_again_for_each_token_gives(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    assert desk.generate(5, 12) == greedy(desk.model, PROMPT, 12)


def test_says_where_each_part_ends_and_what_the_model_thought_of_it(desk: Desk) -> None:
    parts = (tokens(*PROMPT), embeddings(12), tokens(), tokens(7))
    event = desk.ask(Prefill(0, parts, return_hidden_states=True))
    assert isinstance(event, Prefilled)
    assert (event.position, event.part_positions) == (18, (5, 17, 17, 18))
    assert event.hidden_states is not None
    np.testing.assert_allclose(event.hidden_states, recompute(desk.model, parts), atol=1e-5)
    assert event.turn is None


def test_a_token_travels_with_the_hidden_state_that_predicted_it(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    ticket = desk.hand_in(Generate(5, 6, return_hidden_states=True))
    ticket.wait()
    content = [*PROMPT, *ticket.tokens]
    hidden = recompute(desk.model, [tokens(*content)])
    for event in ticket.events[:-1]:
        assert isinstance(event, TokenDrawn) and event.hidden_state is not None
        np.testing.assert_allclose(event.hidden_state, hidden[4 + event.index], atol=1e-5)


def test_every_token_that_was_sent_is_in_the_cache(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    ticket = desk.hand_in(Generate(5, 6))
    end = ticket.wait()
    assert isinstance(end, Generated) and end.reason is FinishReason.LENGTH
    assert (end.token_count, end.position) == (6, 11)
    assert desk.generate(11, 4) == greedy(desk.model, [*PROMPT, *ticket.tokens], 4)


def test_ends_with_the_models_turn(make_desk: Callable[..., Desk], model: Llm) -> None:
    expected = greedy(model, PROMPT, 3)
    desk = make_desk(stop_tokens=frozenset([expected[2]]))
    desk.prefill(*PROMPT)
    ticket = desk.hand_in(Generate(5, 20))
    end = ticket.wait()
    assert isinstance(end, Generated) and end.reason is FinishReason.STOP
    assert ticket.tokens == expected[:2]
    assert end.position == 7


def test_ends_where_the_context_is_full(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(context=16)
    desk.prefill(*PROMPT)
    ticket = desk.hand_in(Generate(5, 40))
    end = ticket.wait()
    assert isinstance(end, Generated) and end.reason is FinishReason.CONTEXT
    assert (end.token_count, end.position) == (11, 16)
    failed = desk.fails(Prefill(16, (tokens(1),)))
    assert failed.reason is Reason.CONTEXT_FULL and "16" in failed.message


def test_operations_of_a_branch_run_in_the_order_sent(desk: Desk) -> None:
    first = desk.hand_in(Prefill(0, (tokens(*LONG),)))
    second = desk.hand_in(Prefill(20, (tokens(*PROMPT),)))
    third = desk.hand_in(Generate(25, 3))
    assert isinstance(third.wait(), Generated)
    assert isinstance(first.events[-1], Prefilled) and isinstance(second.events[-1], Prefilled)
    assert third.tokens == greedy(desk.model, [*LONG, *PROMPT], 3)


# --- many at once


def test_eight_at_once_give_bit_for_bit_what_each_gives_alone(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(slots=8)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 96, size=rng.integers(1, 30)) for _ in range(8)]

    def run(session: str, prompt: np.ndarray) -> tuple[object, object]:
        read = desk.hand_in(Prefill(0, (prompt,), return_hidden_states=True), session=session)
        sampling = Sampling(temperature=0.8, top_p=0.9, seed=7)
        drawn = desk.hand_in(
            Generate(len(prompt), 20, sampling, return_hidden_states=True), session=session
        )
        return read, drawn

    def numbers(pair: tuple) -> tuple[list[int], bytes, bytes]:
        read, drawn = pair
        assert isinstance(drawn.wait(), Generated), drawn.events
        states = [event.hidden_state for event in drawn.events[:-1]]
        return drawn.tokens, np.stack(states).tobytes(), read.events[-1].hidden_states.tobytes()

    alone = [numbers(run(f"alone-{n}", prompt)) for n, prompt in enumerate(prompts)]
    for n in range(8):
        desk.ask(Close(), session=f"alone-{n}", branch="")
    together = [run(f"together-{n}", prompt) for n, prompt in enumerate(prompts)]
    assert [numbers(pair) for pair in together] == alone


def test_recorded_steps_for_all_generations_give_the_tokens_of_each(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(slots=6, context=512, batched=True)
    prompts = [tuple(range(first, first + 1 + 9 * first)) for first in (1, 3, 5)]
    for prompt in prompts:
        desk.prefill(*prompt, session=str(prompt))
    tickets = [
        desk.hand_in(Generate(len(prompt), count), session=str(prompt))
        for prompt, count in zip(prompts, (30, 50, 40), strict=True)
    ]
    # One that reads while they are being answered, and then joins them.
    desk.prefill(*LONG, session="late")
    assert desk.generate(20, 10, session="late") == greedy(desk.model, LONG, 10)
    for prompt, count, ticket in zip(prompts, (30, 50, 40), tickets, strict=True):
        assert isinstance(ticket.wait(), Generated)
        assert ticket.tokens == greedy(desk.model, prompt, count)


def test_a_sequence_grows_from_one_recorded_step_into_the_next(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(context=270, batched=True)
    content = [token % 90 for token in range(250)]
    desk.prefill(*content)
    ticket = desk.hand_in(Generate(250, 40))
    end = ticket.wait()
    assert isinstance(end, Generated) and end.reason is FinishReason.CONTEXT
    assert ticket.tokens == greedy(desk.model, content, 20)


def test_numbers_that_are_none_in_a_recorded_step_fail_only_who_drew_them(
    make_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llm()
    decode = model.decode

    def overflowing(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        hidden = decode(rows, *rest)
        hidden[(rows == model.embed(torch.tensor([cursed]))).all(-1)] = float("nan")
        return hidden

    monkeypatch.setattr(model, "decode", overflowing)
    other = (9, 9, 9)
    cursed = next(token for token in greedy(model, other, 9) if token not in greedy(model, LONG, 9))
    desk = make_desk(model=model, batched=True)
    desk.prefill(*LONG, session="well")
    desk.prefill(*other, session="ill")
    ill = desk.hand_in(Generate(3, 9), session="ill")
    assert desk.generate(20, 9, session="well") == greedy(model, LONG, 9)
    failed = ill.wait()
    assert isinstance(failed, Failed) and failed.reason is Reason.BAD_CONTENT


def test_a_long_prefill_does_not_hold_up_a_short_one(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(context=512)
    order: list[str] = []
    long = desk.hand_in(
        Prefill(0, (embeddings(500),)), session="long", hook=lambda _: order.append("long")
    )
    short = desk.hand_in(
        Prefill(0, (embeddings(4),)), session="short", hook=lambda _: order.append("short")
    )
    long.wait()
    short.wait()
    assert order == ["short", "long"]


def test_a_prefill_shares_the_steps_of_who_generates(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(context=512)
    desk.prefill(*PROMPT, session="talks")
    seen: list[str] = []
    other: list[object] = []

    def hook(event: Event) -> None:
        seen.append("token")
        if len(seen) == 1:
            prefill = Prefill(0, (embeddings(80),))
            other.append(desk.hand_in(prefill, session="reads", hook=lambda _: seen.append("read")))

    desk.hand_in(Generate(5, 60), session="talks", hook=hook).wait()
    # 80 positions at 8 a step: about ten tokens pass meanwhile.
    assert 8 <= seen.index("read") <= 14


# --- branches


def test_a_fork_goes_its_own_way(desk: Desk) -> None:
    desk.prefill(*LONG)
    assert desk.ask(Fork("main", 12), branch="other") == BranchChanged(12)
    desk.prefill(7, position=12, branch="other")
    assert desk.generate(13, 4, branch="other") == greedy(desk.model, [*LONG[:12], 7], 4)
    assert desk.generate(20, 4) == greedy(desk.model, LONG, 4)


def test_a_fork_goes_on_at_once_from_the_place_where_it_was_cut(desk: Desk) -> None:
    desk.prefill(*LONG)
    desk.ask(Fork("main", 9), branch="other")
    assert desk.generate(9, 4, branch="other") == greedy(desk.model, LONG[:9], 4)


def test_a_fork_becomes_the_conversation(desk: Desk) -> None:
    desk.prefill(*LONG)
    desk.ask(Fork("main", 12), branch="other")
    desk.prefill(1, 2, 3, position=12, branch="other")
    assert desk.ask(Fork("other", 15), branch="main", epoch=1) == BranchChanged(15)
    desk.ask(Close(), branch="other", epoch=1)
    assert desk.engine.snapshot().slots_in_use == 1
    assert desk.generate(15, 4, epoch=1) == greedy(desk.model, [*LONG[:12], 1, 2, 3], 4)


def test_a_fork_waits_for_what_was_sent_before_it(desk: Desk) -> None:
    desk.hand_in(Prefill(0, (tokens(*LONG),)))
    assert desk.ask(Fork("main", 18), branch="other") == BranchChanged(18)


def test_forks_of_each_other_do_not_wait_for_ever(desk: Desk) -> None:
    desk.prefill(*PROMPT, branch="a")
    desk.prefill(*PROMPT, branch="b")
    first = desk.hand_in(Fork("b", 9), branch="a")
    second = desk.hand_in(Fork("a", 9), branch="b")
    for ticket in (first, second):
        event = ticket.wait()
        assert isinstance(event, Failed) and event.reason is Reason.WRONG_POSITION


def test_a_branch_that_was_cut_goes_on_from_there(desk: Desk) -> None:
    desk.prefill(*LONG)
    assert desk.ask(Truncate(7)) == BranchChanged(7)
    desk.prefill(50, 51, position=7)
    assert desk.generate(9, 4) == greedy(desk.model, [*LONG[:7], 50, 51], 4)


def test_a_cut_stops_what_runs_first(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    cut: list[object] = []

    def hook(event: Event) -> None:
        if isinstance(event, TokenDrawn) and event.index == 3:
            cut.append(desk.hand_in(Truncate(6)))

    end = desk.hand_in(Generate(5, 50), hook=hook).wait()
    assert isinstance(end, Generated) and end.reason is FinishReason.CANCELLED
    assert cut[0].wait() == BranchChanged(6)  # type: ignore[attr-defined]


# --- cancellation


def test_a_cancelled_generation_ends_within_one_step(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    cancelled: list[object] = []

    def hook(event: Event) -> None:
        if isinstance(event, TokenDrawn) and event.index == 4:
            cancelled.append(desk.hand_in(Cancel("g"), branch=""))

    ticket = desk.hand_in(Generate(5, 50), operation_id="g", hook=hook)
    end = ticket.wait()
    assert isinstance(end, Generated) and end.reason is FinishReason.CANCELLED
    assert end.token_count == len(ticket.tokens) == 5
    # The fifth token was drawn, but not read.
    assert end.position == 9
    content = [*PROMPT, *ticket.tokens[:4]]
    assert desk.generate(9, 3) == greedy(desk.model, content, 3)


def test_a_caller_who_is_gone_stops_what_he_asked_for(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    gone = threading.Event()

    def hook(event: Event) -> None:
        if isinstance(event, TokenDrawn) and event.index == 2:
            gone.set()

    ticket = desk.hand_in(Generate(5, 50), hook=hook, is_cancelled=gone.is_set)
    end = ticket.wait()
    assert isinstance(end, Generated) and end.reason is FinishReason.CANCELLED
    assert len(ticket.tokens) == 3


def test_nothing_of_a_cancelled_prefill_stays(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(context=512)
    desk.prefill(*PROMPT)
    desk.hand_in(Prefill(5, (embeddings(400),)), operation_id="p")
    desk.ask(Cancel("p"))
    assert desk.fails(Prefill(7, (tokens(1),))).position == 5
    assert desk.generate(5, 4) == greedy(desk.model, PROMPT, 4)


def test_what_waits_can_be_cancelled_too(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    running = desk.hand_in(Generate(5, 40))
    waiting = desk.hand_in(Prefill(45, (tokens(1),)), operation_id="w")
    desk.ask(Cancel("w"))
    event = waiting.wait()
    assert isinstance(event, Failed) and event.reason is Reason.CANCELLED
    assert isinstance(running.wait(), Generated)


def test_cancelling_what_is_unknown_or_finished_is_no_error(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    assert desk.ask(Cancel("never heard of")) == BranchChanged(5)


def test_a_callback_that_raises_cancels_its_own_operation_only(desk: Desk) -> None:
    desk.prefill(*PROMPT, session="a")
    desk.prefill(*PROMPT, session="b")

    def hook(event: Event) -> None:
        if isinstance(event, TokenDrawn):
            raise ConnectionError("nobody there")

    broken = desk.hand_in(Generate(5, 40), session="a", hook=hook)
    assert desk.generate(5, 10, session="b") == greedy(desk.model, PROMPT, 10)
    assert isinstance(broken.wait(), Generated)
    assert len(broken.tokens) == 1


# --- refusals


def test_says_what_length_a_branch_has_when_the_position_is_wrong(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    for action in (Prefill(3, (tokens(1),)), Prefill(0, (tokens(1),)), Generate(9)):
        failed = desk.fails(action)
        assert (failed.reason, failed.position) == (Reason.WRONG_POSITION, 5)
    assert desk.fails(Truncate(6)).reason is Reason.WRONG_POSITION
    assert desk.fails(Fork("main", 6), branch="x").reason is Reason.WRONG_POSITION


def test_says_that_the_cache_is_lost_when_a_branch_is_unknown(desk: Desk) -> None:
    for action in (Prefill(3, (tokens(1),)), Generate(3), Truncate(0), Fork("gone", 0)):
        failed = desk.fails(action)
        assert (failed.reason, failed.position) == (Reason.CACHE_LOST, 0)
    assert desk.engine.snapshot().slots_in_use == 0


def test_refuses_a_stale_epoch(desk: Desk) -> None:
    desk.prefill(*PROMPT, epoch=3)
    failed = desk.fails(Generate(5), epoch=2)
    assert failed.reason is Reason.STALE_EPOCH and "2" in failed.message and "3" in failed.message
    assert isinstance(desk.ask(Generate(5, 1), epoch=3), Generated)


def test_an_operation_that_waits_is_refused_when_the_epoch_grows(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    desk.hand_in(Generate(5, 40))
    waiting = desk.hand_in(Prefill(45, (tokens(1),)))
    desk.ask(Fork("main", 5), branch="other", epoch=1)
    event = waiting.wait()
    assert isinstance(event, Failed) and event.reason is Reason.STALE_EPOCH


def test_nothing_of_a_prefill_that_is_too_long_is_read(desk: Desk) -> None:
    failed = desk.fails(Prefill(0, (embeddings(65),)))
    assert failed.reason is Reason.CONTEXT_FULL and "64" in failed.message
    assert desk.engine.snapshot().slots_in_use == 0


def test_an_empty_branch_cannot_generate(desk: Desk) -> None:
    desk.prefill()
    assert desk.fails(Generate(0)).reason is Reason.BAD_CONTENT


@pytest.mark.parametrize(
    ("part", "word"),
    [
        (tokens(97), "96"),
        (tokens(-1), "96"),
        (np.zeros((2, 31), np.float32), "32"),
        (np.full((1, 32), np.nan, np.float32), "NaN"),
    ],
)
def test_refuses_content_that_cannot_be_read(desk: Desk, part: np.ndarray, word: str) -> None:
    failed = desk.fails(Prefill(0, (part,)))
    assert failed.reason is Reason.BAD_CONTENT and word in failed.message


def test_refuses_more_than_may_wait_but_still_frees(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(max_pending=2)
    desk.prefill(*PROMPT)
    desk.hand_in(Generate(5, 50))
    desk.hand_in(Prefill(55, (tokens(1),)))
    assert desk.fails(Prefill(56, (tokens(1),))).reason is Reason.BUSY
    assert desk.ask(Close(), branch="") == BranchChanged(0)


# --- slots


def test_a_session_that_is_idle_makes_room(desk: Desk) -> None:
    for session in "abcd":
        desk.prefill(*PROMPT, session=session)
    desk.generate(5, 1, session="a")
    desk.prefill(*PROMPT, session="new")
    assert desk.fails(Generate(5), session="b").reason is Reason.CACHE_LOST
    assert desk.generate(6, 1, session="a")


def test_says_so_when_every_slot_is_busy(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(slots=2)
    full = threading.Event()
    seen: list[Event] = []

    def hook(event: Event) -> None:
        if not full.is_set():
            full.set()
            desk.hand_in(Prefill(0, (tokens(1),)), session="late", hook=seen.append)

    desk.prefill(*PROMPT, session="a")
    desk.prefill(*PROMPT, session="b")
    first = desk.hand_in(Generate(5, 40), session="a")
    second = desk.hand_in(Generate(5, 40), session="b", hook=hook)
    first.wait()
    second.wait()
    assert isinstance(seen[0], Failed) and seen[0].reason is Reason.NO_SLOT


def test_a_sessions_own_branches_never_make_room_for_it(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    for branch in "xyz":
        desk.ask(Fork("main", 5), branch=branch)
    assert desk.fails(Fork("main", 5), branch="one too many").reason is Reason.NO_SLOT
    assert desk.generate(5, 3) == greedy(desk.model, PROMPT, 3)


def test_an_idle_session_expires(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(idle_seconds=0.05)
    desk.prefill(*PROMPT)
    deadline = threading.Event()
    for _ in range(400):
        if desk.engine.snapshot().slots_in_use == 0:
            break
        deadline.wait(0.01)
    assert desk.fails(Generate(5)).reason is Reason.CACHE_LOST


def test_closing_frees(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    desk.ask(Fork("main", 5), branch="other")
    assert desk.ask(Close(), branch="other") == BranchChanged(0)
    assert desk.engine.snapshot().slots_in_use == 1
    assert desk.ask(Close(), branch="") == BranchChanged(0)
    assert desk.engine.snapshot().slots_in_use == 0
    assert desk.fails(Generate(5)).reason is Reason.CACHE_LOST


# --- sent again


def test_a_prefill_that_is_sent_again_is_answered_and_not_read_twice(desk: Desk) -> None:
    prefill = Prefill(0, (tokens(*PROMPT),), return_hidden_states=True)
    first = desk.ask(prefill, operation_id="p")
    read = desk.engine.snapshot().positions
    again = desk.ask(prefill, operation_id="p")
    assert isinstance(first, Prefilled) and isinstance(again, Prefilled)
    assert again.position == first.position == 5
    np.testing.assert_array_equal(again.hidden_states, first.hidden_states)
    assert desk.engine.snapshot().positions == read


def test_a_generation_that_is_sent_again_gives_its_tokens_again(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    generate = Generate(5, 6, Sampling(temperature=1.0, seed=3), return_hidden_states=True)
    first = desk.hand_in(generate, operation_id="g")
    first.wait()
    again = desk.hand_in(generate, operation_id="g")
    assert again.wait() == first.wait()
    assert again.tokens == first.tokens
    for one, other in zip(first.events[:-1], again.events[:-1], strict=True):
        assert isinstance(one, TokenDrawn) and isinstance(other, TokenDrawn)
        np.testing.assert_array_equal(one.hidden_state, other.hidden_state)
    assert desk.fails(Prefill(0, (tokens(1),))).position == 11


def test_a_repeat_while_the_first_one_runs_waits_for_its_answer(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    first = desk.hand_in(Generate(5, 6), operation_id="g")
    again = desk.hand_in(Generate(5, 6), operation_id="g")
    assert again.wait() == first.wait()
    assert again.tokens == first.tokens


def test_a_cut_that_is_sent_again_cuts_nothing(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    desk.ask(Truncate(3), operation_id="t")
    desk.prefill(1, 2, 3, position=3)
    assert desk.ask(Truncate(3), operation_id="t") == BranchChanged(3)
    assert desk.fails(Generate(0)).position == 6


def test_an_operation_that_failed_can_be_tried_again(desk: Desk) -> None:
    assert desk.fails(Generate(5, 2), operation_id="g").reason is Reason.CACHE_LOST
    desk.prefill(*PROMPT)
    assert desk.generate(5, 2, operation_id="g")


def test_refuses_an_id_that_was_another_operations(desk: Desk) -> None:
    desk.prefill(*PROMPT, operation_id="x")
    assert desk.fails(Generate(5), operation_id="x").reason is Reason.BAD_CONTENT


# --- faults


def test_numbers_that_are_none_fail_only_who_sent_them(
    make_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llm()
    desk = make_desk(model=model)
    forward = model.forward

    def overflowing(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        hidden = forward(rows, *rest)
        hidden[(rows == 123.0).any(-1)] = float("nan")
        return hidden

    monkeypatch.setattr(model, "forward", overflowing)
    desk.prefill(*PROMPT, session="well")
    ticket = desk.hand_in(Generate(5, 30), session="well")
    cursed = np.full((3, CONFIG.width), 123.0, np.float32)
    failed = desk.fails(Prefill(0, (cursed,)), session="ill")
    assert failed.reason is Reason.BAD_CONTENT
    assert isinstance(ticket.wait(), Generated)
    assert ticket.tokens == greedy(model, PROMPT, 30)


def test_an_exception_in_a_step_fails_only_who_caused_it(
    make_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llm()
    desk = make_desk(model=model)
    forward = model.forward

    def failing(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        if (rows == 123.0).any():
            raise RuntimeError("a broken kernel")
        return forward(rows, *rest)

    monkeypatch.setattr(model, "forward", failing)
    desk.prefill(*PROMPT, session="well")
    ticket = desk.hand_in(Generate(5, 30), session="well")
    cursed = np.full((3, CONFIG.width), 123.0, np.float32)
    assert desk.fails(Prefill(0, (cursed,)), session="ill").reason is Reason.INTERNAL
    assert isinstance(ticket.wait(), Generated)
    assert ticket.tokens == greedy(model, PROMPT, 30)


def test_a_scheduler_that_breaks_fails_what_runs_and_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.prefill(*PROMPT)
    with monkeypatch.context() as patch:
        patch.setattr(desk.engine._scheduler, "plan_drawings", lambda: 1 / 0)
        assert desk.fails(Generate(5)).reason is Reason.INTERNAL
    assert desk.generate(5, 3) == greedy(desk.model, PROMPT, 3)


def test_stopping_answers_everybody(model: Llm) -> None:
    desk = Desk(model, context=512)
    desk.prefill(*PROMPT)
    running = desk.hand_in(Generate(5, 400))
    waiting = desk.hand_in(Prefill(405, (tokens(1),)))
    desk.engine.stop()
    for ticket in (running, waiting):
        assert isinstance(ticket.wait(), Failed)


# --- figures and the predictor


def test_counts_what_it_does(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    drawn = desk.generate(5, 6)
    snapshot = desk.engine.snapshot()
    assert (snapshot.positions, snapshot.tokens) == (5, len(drawn))
    assert (snapshot.slots_in_use, snapshot.running, snapshot.waiting) == (1, 0, 0)
    assert snapshot.steps >= 7 and snapshot.step_seconds > 0


def test_the_duplex_predictor_says_after_a_prefill_what_it_says_of_everything_read(
    make_desk: Callable[..., Desk],
) -> None:
    torch.manual_seed(0)
    sizes = DuplexPredictorConfig(CONFIG.width, 16, 32, heads=2, left_context=6)
    predictor = DuplexPredictor(sizes).eval()
    desk = make_desk(predictor=predictor.probabilities)
    first = desk.prefill(*LONG, session="main")
    second = desk.prefill(1, 2, position=20, session="main")
    for event, content in ((first, LONG), (second, (*LONG, 1, 2))):
        hidden = torch.from_numpy(recompute(desk.model, [tokens(*content)]))
        expected = predictor(hidden[None])[0, -1].softmax(-1)[:, 1].tolist()
        assert event.turn == pytest.approx(expected, abs=1e-5)


def test_a_turn_predictor_sees_the_branch_up_to_its_last_position(
    make_desk: Callable[..., Desk],
) -> None:
    seen: list[int] = []

    def predictor(hidden: torch.Tensor) -> tuple[float, float]:
        seen.append(len(hidden))
        return 0.75, 0.25

    desk = make_desk(predictor=predictor)
    seen.clear()
    assert desk.prefill(*PROMPT).turn == (0.75, 0.25)
    assert desk.prefill(1, 2, position=5).turn == (0.75, 0.25)
    assert seen == [5, 7]


def test_a_prefill_returns_what_was_read_at_its_end(desk: Desk) -> None:
    parts = (tokens(*PROMPT), embeddings(3), tokens(7, 8))
    asked = {"return_hidden_states": True, "return_embeddings": True}
    whole = desk.ask(Prefill(0, parts, **asked))
    end = desk.ask(Prefill(0, parts, return_last=4, **asked), branch="end")
    assert isinstance(whole, Prefilled) and isinstance(end, Prefilled)
    assert whole.embeddings is not None and end.embeddings is not None
    table = desk.model.embed(torch.tensor([*PROMPT, 7, 8])).numpy()
    read = np.concatenate([table[: len(PROMPT)], parts[1], table[len(PROMPT) :]])
    np.testing.assert_array_equal(whole.embeddings, read)
    np.testing.assert_array_equal(end.embeddings, read[-4:])
    np.testing.assert_array_equal(end.hidden_states, whole.hidden_states[-4:])
    longer = desk.ask(Prefill(0, parts, return_last=99, **asked), branch="longer")
    assert isinstance(longer, Prefilled)
    np.testing.assert_array_equal(longer.hidden_states, whole.hidden_states)
    bare = desk.ask(Prefill(0, parts), branch="bare")
    assert isinstance(bare, Prefilled)
    assert bare.hidden_states is None
    assert bare.embeddings is None
