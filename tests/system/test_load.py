"""A load test as it is run: real services, real time; faults under load lose nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minmo.bench.faults import parse_faults
from minmo.bench.latency import read_questions
from minmo.bench.lines import Question
from minmo.bench.load import Load, LoadPlan, Servers, Stage
from minmo.bench.load_result import LoadResult
from minmo.bench.replay import stand_ins
from minmo.bench.replay.record import record
from minmo.bench.usage import OWN
from minmo.bench.user import Habits
from minmo.client import Target
from minmo.stack.config import StackConfig
from minmo.stack.stack import Stack
from tests.system.conftest import ROOT, SAME_LOOP

pytestmark = SAME_LOOP

ANSWER_TOKENS = 12
BUSY = Habits(think_seconds=0.5, interrupt_share=0.2)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return [Question.of(one) for one in read_questions(ROOT / "examples" / "questions", 2)]


def servers(stack: Stack, *, replayed: bool = False) -> Servers:
    return Servers(
        Target(stack.targets["orchestrator"]),
        tuple(address for name, address in stack.addresses.items() if name.startswith("gateway")),
        pids=lambda: {**stack.pids, OWN: os.getpid()},
        metrics_urls=tuple(
            url for name, url in stack.metrics_urls.items() if name.startswith("triton")
        ),
        redis_url=stack.redis_url,
        stack=stack,
        replayed=replayed,
    )


async def loaded(plan: LoadPlan, servers: Servers, questions: list[Question]) -> LoadResult:
    load = Load(plan, servers, questions)
    await load.run()
    return load.result()


def check_whole(result: LoadResult, sessions: int) -> None:
    assert result.finished
    assert (result.total.sessions, result.total.lost) == (sessions, 0), result.total.errors
    assert result.history_problems == {}
    assert result.whole_sessions == sessions


async def test_with_the_models_all_are_answered_through_the_gateway_and_the_cost_is_known(
    stack: Stack, questions: list[Question]
) -> None:
    plan = LoadPlan((Stage(2, 8.0),), through="gateway", habits=BUSY, answer_tokens=ANSWER_TOKENS)
    result = await loaded(plan, servers(stack), questions)
    check_whole(result, 2)
    level = result.levels[0]
    assert level.turns >= 2
    assert level.answered == level.turns, level.errors
    # The silence that ends a turn is 500 ms of it.
    assert 500 < level.first_audio.p50 < 10_000
    assert level.usage is not None
    assert level.usage.tokens is not None
    assert level.usage.tokens > 0
    cost = level.cpu_seconds_a_minute()
    assert {"triton", "encoder", "orchestrator", "gateway", OWN} <= cost.keys()
    assert cost["triton"] > cost["gateway"] > 0
    assert level.usage.memory_bytes["triton"] > 100_000_000
    assert set(result.redis_bytes_by_session.values()) != {0}
    assert not result.to_json()["replayed"]


async def test_replicas_that_die_drain_and_come_lose_no_session(
    stack: Stack, questions: list[Question], tmp_path: Path
) -> None:
    asked = questions[:1]
    recording = await record(stack.targets, stack.redis_url, asked, answer_tokens=ANSWER_TOKENS)
    assert [question.name for question in recording.questions] == ["01.ogg"]
    recording.write(tmp_path / "recording")
    config = StackConfig(
        mode="cascade",
        port=0,
        folder=tmp_path,
        replicas={"encoder": 2, "orchestrator": 2},
        held_back={"llm": 1},
        drain_seconds=4.0,
        stand_ins=stand_ins(tmp_path / "recording"),
    )
    # Wherever the sessions are: one of the two has some.
    faults = parse_faults(
        "kill:orchestrator@2.5s,drain:encoder@4s,kill:orchestrator-2@5.5s,add:llm@6s"
    )
    plan = LoadPlan(
        (Stage(2, 1.5), Stage(4, 7.0)),
        habits=BUSY,
        answer_tokens=ANSWER_TOKENS,
        faults=tuple(faults),
    )
    async with Stack(config) as replayed:
        assert "triton" not in replayed.names
        result = await loaded(plan, servers(replayed, replayed=True), asked)
        assert "llm-2" in replayed.pids
    check_whole(result, 4)
    assert result.to_json()["outputs"] == "model outputs replayed from a recording"
    assert [fault.problem for fault in result.faults] == [""] * 4
    assert all(fault.back_seconds is not None for fault in result.faults)
    assert [fault.lost for fault in result.faults] == [0] * 4
    assert result.total.reconnects >= 1
    # An answer whose orchestrator was killed may be cut; nothing else is lost by any fault.
    assert set(result.total.outcomes) <= {"answered", "interrupted", "cut"}
    assert result.total.outcomes.get("cut", 0) <= result.total.reconnects
