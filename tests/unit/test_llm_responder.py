"""The thread that tells Triton what happened."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from minmo.engine.operations import BranchChanged, Failed, Prefilled, Reason, TokenDrawn
from minmo.triton.responder import Responder
from minmo.v1 import llm_pb2

WAIT_SECONDS = 10.0
REQUEST = llm_pb2.RunRequest(operation_id="o", session_id="s", branch="main", epoch=4)


class Wire:
    """What Triton would be told."""

    def __init__(self) -> None:
        self.sent: list[llm_pb2.RunResponse] = []
        self.lasts: list[bool] = []
        self.gone = False
        self.broken = False
        self.ended = threading.Event()

    def send(self, data: bytes, last: bool) -> None:
        if self.broken:
            raise ConnectionError("Triton is not there")
        self.sent.append(llm_pb2.RunResponse.FromString(data))
        self.lasts.append(last)
        if last:
            self.ended.set()


@pytest.fixture
def responder() -> Iterator[Responder]:
    responder = Responder("replica")
    yield responder
    responder.stop()


def wait_until_cancelled(is_cancelled: object) -> bool:
    pause = threading.Event()
    for _ in range(500):
        if is_cancelled():  # type: ignore[operator]
            return True
        pause.wait(0.01)
    return False


def test_sends_events_in_order_and_marks_the_last_one(responder: Responder) -> None:
    wire = Wire()
    reply = responder.open(REQUEST, wire.send, lambda: False)
    reply.on_event(TokenDrawn(0, 7, np.array([1.5, -2.0], np.float32)))
    reply.on_event(TokenDrawn(1, 8, None))
    reply.on_event(Failed(Reason.STALE_EPOCH, "too late", 3))
    assert wire.ended.wait(WAIT_SECONDS)
    first, second, third = wire.sent
    assert (first.operation_id, first.session_id, first.branch) == ("o", "s", "main")
    assert (first.epoch, first.replica_id) == (4, "replica")
    assert np.frombuffer(first.token.hidden_state, "<f4").tolist() == [1.5, -2.0]
    assert (second.token.index, second.token.id, second.token.hidden_state) == (1, 8, b"")
    assert (third.error.code, third.error.reason, third.error.position) == (10, "STALE_EPOCH", 3)
    assert wire.lasts == [False, False, True]


def test_a_prefills_answer_carries_matrix_and_probabilities(responder: Responder) -> None:
    wire = Wire()
    hidden = np.arange(6, dtype=np.float32).reshape(2, 3)
    reply = responder.open(REQUEST, wire.send, lambda: False)
    reply.on_event(Prefilled(9, (8, 9), hidden, (0.5, 0.25), 12.5))
    assert wire.ended.wait(WAIT_SECONDS)
    done = wire.sent[0].prefill_done
    assert (done.position, list(done.part_positions), done.elapsed_ms) == (9, [8, 9], 12.5)
    assert (done.hidden_states.rows, done.hidden_states.columns) == (2, 3)
    assert done.hidden_states.data == hidden.tobytes()
    assert (done.turn.assistant_turn, done.turn.user_turn) == (0.5, 0.25)


def test_notices_that_a_client_has_gone(responder: Responder) -> None:
    wire = Wire()
    reply = responder.open(REQUEST, wire.send, lambda: wire.gone)
    assert not reply.is_cancelled()
    wire.gone = True
    assert wait_until_cancelled(reply.is_cancelled)


def test_a_client_that_cannot_be_told_counts_as_gone(responder: Responder) -> None:
    wire, other = Wire(), Wire()
    wire.broken = True
    reply = responder.open(REQUEST, wire.send, lambda: False)
    reply.on_event(TokenDrawn(0, 7, None))
    assert wait_until_cancelled(reply.is_cancelled)
    responder.open(REQUEST, other.send, lambda: False).on_event(BranchChanged(0))
    assert other.ended.wait(WAIT_SECONDS)


def test_sends_what_waits_before_it_stops() -> None:
    responder, wire = Responder("replica"), Wire()
    reply = responder.open(REQUEST, wire.send, lambda: False)
    for index in range(100):
        reply.on_event(TokenDrawn(index, index, None))
    responder.stop()
    assert [response.token.id for response in wire.sent] == list(range(100))
