"""Probes: read at the end of a branch, remembered by the predictor, kept by nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from minmo.engine.operations import (
    Cancel,
    Close,
    Failed,
    Fork,
    Generate,
    Matrix,
    Prefill,
    Probe,
    Probed,
    Reason,
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


class Watcher:
    """A predictor that keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[Matrix] = []

    def __call__(self, hidden: torch.Tensor) -> tuple[float, float]:
        self.seen.append(hidden.numpy().copy())
        return 0.25, 0.75


@pytest.fixture(scope="module")
def model() -> Llm:
    return tiny_llm()


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def make_desk(model: Llm) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(**options: Any) -> Desk:
        made.append(Desk(**({"model": model} | options)))
        return made[-1]

    yield make
    for desk in made:
        desk.engine.stop()


@pytest.fixture
def desk(make_desk: Callable[..., Desk], watcher: Watcher) -> Desk:
    return make_desk(predictor=watcher)


def probe(desk: Desk, position: int, seed: int = 0, **where: Any) -> Probed:
    event = desk.ask(Probe(position, embeddings(1, seed)), **where)
    assert isinstance(event, Probed), event
    return event


def state_of(model: Llm, seed: int, *before: int) -> Matrix:
    """The last hidden state `[1, width]` of a probe that is read behind some tokens."""
    return recompute(model, [tokens(*before), embeddings(1, seed)])[-1:]


def test_a_probe_is_answered_and_the_branch_stays_as_it_is(desk: Desk, watcher: Watcher) -> None:
    desk.prefill(*PROMPT)
    answer = probe(desk, 5, seed=3)
    assert (answer.position, answer.turn) == (5, (0.25, 0.75))
    expected = np.concatenate(
        (recompute(desk.model, [tokens(*PROMPT)]), state_of(desk.model, 3, *PROMPT))
    )
    np.testing.assert_allclose(watcher.seen[-1], expected, atol=1e-5)
    assert desk.engine.snapshot().probes == 1


@pytest.mark.parametrize("batched", [False, True])
def test_probes_change_no_token(make_desk: Callable[..., Desk], batched: bool) -> None:
    desk = make_desk(predictor=Watcher(), batched=batched)
    desk.prefill(*PROMPT)
    for seed in range(3):
        probe(desk, 5, seed)
    drawn = desk.generate(5, 6)
    assert drawn == greedy(desk.model, PROMPT, 6)
    end = 5 + len(drawn)
    probe(desk, end, 7)
    desk.prefill(9, 8, position=end)
    assert desk.generate(end + 2, 6) == greedy(desk.model, [*PROMPT, *drawn, 9, 8], 6)


def test_no_bit_of_a_probe_depends_on_who_is_beside_it(
    make_desk: Callable[..., Desk],
) -> None:
    alone, beside = Watcher(), Watcher()
    quiet, busy = make_desk(predictor=alone), make_desk(predictor=beside)
    quiet.prefill(*PROMPT)
    probe(quiet, 5)
    busy.prefill(*PROMPT)
    busy.prefill(1, 2, 3, session="other")
    tickets = [
        busy.hand_in(Generate(3, 20), session="other"),
        busy.hand_in(Probe(5, embeddings(1, 0))),
    ]
    for ticket in tickets:
        ticket.wait()
    assert any(np.array_equal(seen, alone.seen[-1]) for seen in beside.seen)


def test_the_predictor_sees_states_in_the_order_in_which_they_were_made(
    desk: Desk, watcher: Watcher
) -> None:
    desk.prefill(*PROMPT)
    probe(desk, 5, seed=1)
    probe(desk, 5, seed=2)
    desk.prefill(9, 8, position=5)
    probe(desk, 7, seed=3)
    model = desk.model
    kept = recompute(model, [tokens(*PROMPT, 9, 8)])
    expected = [
        kept[:5],
        state_of(model, 1, *PROMPT),
        state_of(model, 2, *PROMPT),
        kept[5:],
        state_of(model, 3, *PROMPT, 9, 8),
    ]
    np.testing.assert_allclose(watcher.seen[-1], np.concatenate(expected), atol=1e-5)
    # What follows a prefill is said of the same history.
    np.testing.assert_allclose(watcher.seen[-2], np.concatenate(expected[:-1]), atol=1e-5)


def test_the_predictor_sees_what_it_looks_back_on_and_no_more(
    make_desk: Callable[..., Desk],
) -> None:
    watcher = Watcher()
    desk = make_desk(predictor=watcher, history=6)
    desk.prefill(*PROMPT)
    for seed in range(40):
        probe(desk, 5, seed)
    expected = [state_of(desk.model, seed, *PROMPT) for seed in range(34, 40)]
    np.testing.assert_allclose(watcher.seen[-1], np.concatenate(expected), atol=1e-5)
    desk.prefill(9, position=5)
    assert len(watcher.seen[-1]) == 6
    np.testing.assert_allclose(watcher.seen[-1][:5], np.concatenate(expected[1:]), atol=1e-5)
    (branch,) = desk.engine._table._sessions["s"].branches.values()
    assert len(branch.probes) == 6


def test_a_fork_and_a_cut_branch_know_positions_and_no_probes(desk: Desk, watcher: Watcher) -> None:
    desk.prefill(*PROMPT)
    probe(desk, 5, seed=1)
    desk.ask(Fork("main", 4), branch="overlap")
    probe(desk, 4, seed=2, branch="overlap")
    kept = recompute(desk.model, [tokens(*PROMPT)])
    expected = np.concatenate((kept[:4], state_of(desk.model, 2, *PROMPT[:4])))
    np.testing.assert_allclose(watcher.seen[-1], expected, atol=1e-5)
    # The source still has its own.
    probe(desk, 5, seed=3)
    assert len(watcher.seen[-1]) == 7
    desk.ask(Truncate(4))
    probe(desk, 4, seed=2)
    np.testing.assert_allclose(watcher.seen[-1], expected, atol=1e-5)


def test_a_new_branch_knows_no_probes_of_the_slots_last_owner(
    make_desk: Callable[..., Desk], watcher: Watcher
) -> None:
    desk = make_desk(predictor=watcher, slots=1)
    desk.prefill(*PROMPT)
    probe(desk, 5)
    desk.ask(Close())
    desk.prefill(1, 2, session="next")
    assert len(watcher.seen[-1]) == 2


def test_a_probe_that_is_sent_again_is_answered_again_and_read_once(
    desk: Desk, watcher: Watcher
) -> None:
    desk.prefill(*PROMPT)
    first = probe(desk, 5, operation_id="once")
    count = len(watcher.seen)
    assert probe(desk, 5, operation_id="once").turn == first.turn
    assert len(watcher.seen) == count
    # Nor do many of them make anything else forgotten.
    for seed in range(70):
        probe(desk, 5, seed)
    again = desk.ask(Prefill(0, (tokens(*PROMPT),)), operation_id="operation-0")
    assert again.position == 5  # type: ignore[union-attr]


def test_a_probe_at_another_position_is_refused(desk: Desk) -> None:
    assert desk.fails(Probe(0, embeddings(1))).reason is Reason.CACHE_LOST
    desk.prefill(*PROMPT)
    failed = desk.fails(Probe(4, embeddings(1)))
    assert (failed.reason, failed.position) == (Reason.WRONG_POSITION, 5)
    assert desk.fails(Probe(5, embeddings(1)), epoch=0, session="other").position == 0


def test_what_cannot_be_read_is_refused(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    narrow = np.zeros((1, CONFIG.width - 1), np.float32)
    assert "wide" in desk.fails(Probe(5, narrow)).message
    assert "found 2" in desk.fails(Probe(5, embeddings(2))).message
    failed = desk.fails(Probe(5, np.full((1, CONFIG.width), np.nan, np.float32)))
    assert (failed.reason, "NaN" in failed.message) == (Reason.BAD_CONTENT, True)
    # The branch is whole after that.
    assert desk.generate(5, 4) == greedy(desk.model, PROMPT, 4)


def test_a_full_branch_has_no_room_to_read(desk: Desk) -> None:
    full = desk.engine.options.context
    desk.prefill(*range(full))
    assert desk.fails(Probe(full, embeddings(1))).reason is Reason.CONTEXT_FULL


def test_without_a_predictor_a_probe_is_refused_and_nothing_is_computed(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk()
    desk.prefill(*PROMPT)
    steps = desk.engine.snapshot().steps
    assert desk.fails(Probe(5, embeddings(1))).reason is Reason.NO_PREDICTOR
    assert desk.engine.snapshot().steps == steps


def test_a_probe_waits_for_what_runs_on_its_branch_and_can_be_cancelled(desk: Desk) -> None:
    desk.prefill(*PROMPT)
    gone: list[bool] = []
    generation = desk.hand_in(Generate(5, 12), is_cancelled=lambda: bool(gone))
    waiting = desk.hand_in(Probe(5, embeddings(1)), operation_id="waits")
    desk.ask(Cancel("waits"))
    event = waiting.wait()
    assert isinstance(event, Failed)
    assert event.reason in (Reason.CANCELLED, Reason.WRONG_POSITION)
    generation.wait()


def test_the_real_predictor_answers_what_it_answers_to_the_same_states(
    make_desk: Callable[..., Desk],
) -> None:
    torch.manual_seed(3)
    sizes = DuplexPredictorConfig(CONFIG.width, 16, 32, 2, left_context=8)
    predictor = DuplexPredictor(sizes).eval()
    desk = make_desk(predictor=predictor.probabilities, history=9)
    desk.prefill(*PROMPT)
    for seed in range(7):
        answer = probe(desk, 5, seed)
    states = [recompute(desk.model, [tokens(*PROMPT)])]
    states += [state_of(desk.model, seed, *PROMPT) for seed in range(7)]
    with torch.inference_mode():
        logits = predictor(torch.from_numpy(np.concatenate(states))[None])
        expected = logits[0, -1].softmax(-1)[:, 1].tolist()
    np.testing.assert_allclose(answer.turn, expected, atol=1e-5)
