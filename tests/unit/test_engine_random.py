"""Whatever callers do in whatever order, the engine says what reading everything anew would say."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minmo.engine.operations import (
    BranchChanged,
    Close,
    Failed,
    Fork,
    Generate,
    Generated,
    Matrix,
    Prefill,
    Prefilled,
    Reason,
    Tokens,
    Truncate,
)
from minmo.model.llm import Llm
from tests.unit.tiny_llm import CONFIG, STOP_TOKEN, Desk, embeddings, recompute, tiny_llm, tokens

CONTEXT = 40
BRANCHES = ("main", "fork", "other")

branch = st.sampled_from(BRANCHES)
part = st.one_of(
    st.lists(st.integers(0, CONFIG.vocabulary_size - 1), max_size=9).map(lambda ids: tokens(*ids)),
    st.builds(embeddings, st.integers(1, 9), st.integers(0, 5)),
)
action = st.one_of(
    st.tuples(st.just("prefill"), branch, st.lists(part, max_size=3)),
    st.tuples(st.just("generate"), branch, st.integers(1, 6)),
    st.tuples(st.just("fork"), branch, st.tuples(branch, st.floats(0, 1.2))),
    st.tuples(st.just("truncate"), branch, st.floats(0, 1.2)),
    st.tuples(st.just("close"), branch, st.none()),
)


@dataclass
class Reference:
    """Branches as plain lists of what was read; nothing is kept of what was computed."""

    model: Llm
    branches: dict[str, list[Tokens | Matrix]] = field(default_factory=dict)

    def length(self, name: str) -> int:
        return sum(len(item) for item in self.branches.get(name, []))

    def keep(self, name: str, length: int) -> list[Tokens | Matrix]:
        rows = [item[i : i + 1] for item in self.branches[name] for i in range(len(item))]
        return rows[:length]

    def generate(self, name: str, count: int) -> list[int]:
        drawn: list[int] = []
        while len(drawn) < count and self.length(name) < CONTEXT:
            hidden = recompute(self.model, self.branches[name])[-1:].copy()
            token = int(self.model.logits(_tensor(hidden)).argmax())
            if token == STOP_TOKEN:
                break
            drawn.append(token)
            self.branches[name].append(tokens(token))
        return drawn


def _tensor(array: Matrix) -> object:
    import torch

    return torch.from_numpy(array)


@pytest.fixture(scope="module")
def model() -> Llm:
    return tiny_llm()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(actions=st.lists(action, min_size=1, max_size=14), noise=st.booleans())
def test_agrees_with_reading_everything_anew(
    model: Llm, actions: list[tuple[str, str, object]], noise: bool
) -> None:
    desk = Desk(model, context=CONTEXT, slots=4)
    if noise:
        desk.prefill(1, 2, 3, session="noise")
        desk.hand_in(Generate(3, 30), session="noise")
    reference = Reference(model)
    try:
        for kind, name, argument in actions:
            _step(desk, reference, kind, name, argument)
    finally:
        desk.engine.stop()


def _step(desk: Desk, reference: Reference, kind: str, name: str, argument: object) -> None:
    known, length = name in reference.branches, reference.length(name)
    if kind == "prefill":
        parts = tuple(argument)  # type: ignore[arg-type]
        event = desk.ask(Prefill(length, parts, return_hidden_states=True), branch=name)
        total = length + sum(len(item) for item in parts)
        if total > CONTEXT:
            assert isinstance(event, Failed) and event.reason is Reason.CONTEXT_FULL
            return
        reference.branches.setdefault(name, []).extend(parts)
        assert isinstance(event, Prefilled) and event.position == total
        if total:
            expected = recompute(desk.model, reference.branches[name])[length:]
            np.testing.assert_allclose(event.hidden_states, expected, atol=2e-4)
    elif kind == "generate":
        ticket = desk.hand_in(Generate(length, argument), branch=name)  # type: ignore[arg-type]
        event = ticket.wait()
        if not known or length == 0:
            assert isinstance(event, Failed)
            return
        assert ticket.tokens == reference.generate(name, argument)  # type: ignore[arg-type]
        assert isinstance(event, Generated) and event.position == reference.length(name)
    elif kind == "fork":
        source, share = argument  # type: ignore[misc]
        position = int(share * reference.length(source))
        event = desk.ask(Fork(source, position), branch=name)
        if source not in reference.branches or position > reference.length(source):
            assert isinstance(event, Failed)
            return
        assert event == BranchChanged(position)
        reference.branches[name] = reference.keep(source, position)
    elif kind == "truncate":
        position = int(argument * length)  # type: ignore[operator]
        event = desk.ask(Truncate(position), branch=name)
        if not known or position > length:
            assert isinstance(event, Failed)
            return
        assert event == BranchChanged(position)
        reference.branches[name] = reference.keep(name, position)
    else:
        assert desk.ask(Close(), branch=name) == BranchChanged(0)
        reference.branches.pop(name, None)
