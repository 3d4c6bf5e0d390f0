"""The spans that the real services make of one spoken turn form one tree, with sensible times."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from minmo.bench.realtime import append_events, connect
from minmo.client import Conversation, Recording, Target
from minmo.client.events import Happening, TurnReport
from minmo.stack.stack import Stack
from tests.otlp_collector import Collector, Taken
from tests.system.conftest import QUESTION, SAME_LOOP, TRACED
from tests.system.test_conversation import collect

pytestmark = SAME_LOOP

# Clocks of processes on one machine agree to that; Triton's time is told in milliseconds.
SLACK_SECONDS = 0.005
STAGES = ("endpointing", "recognise", "prefill", "first_token", "first_text_to_voice")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def turn(stack: Stack, collector: Collector) -> list[Taken]:
    """The spans of a turn that was spoken to the gateway and answered."""
    known = {span.span_id for span in collector.spans}
    frames = append_events(Recording.read(QUESTION))
    async with (
        ClientSession() as web,
        connect(stack.addresses["gateway"], web, max_output_tokens=12) as client,
    ):
        speaking = asyncio.create_task(client.speak(frames))
        await client.next("response.done")
        session_id = client.session_id

        def over(spans: list[Taken]) -> bool:
            new = {span.name for span in spans if span.span_id not in known}
            return {"turn", "play", "decode", "spoken"} <= new

        # The client stays until it has heard the answer.
        spans = await collector.wait_for(over)
        speaking.cancel()
    (root,) = [
        span
        for span in spans
        if span.name == "turn" and span.attributes["minmo.session_id"] == session_id
    ]
    return collector.trace(root.trace_id)


def named(spans: list[Taken], service: str, name: str) -> list[Taken]:
    return [span for span in spans if (span.service, span.name) == (service, name)]


def path_to(spans: list[Taken], span: Taken) -> list[str]:
    """The span and those that it is in, up to the root."""
    by_id = {other.span_id: other for other in spans}
    path = [f"{span.service}: {span.name}"]
    while span.parent_id:
        span = by_id[span.parent_id]
        path.append(f"{span.service}: {span.name}")
    return path


async def test_every_service_has_its_part_in_the_turn(turn: list[Taken]) -> None:
    assert {span.service for span in turn} == set(TRACED)


async def test_the_spans_are_one_tree_whose_root_is_the_turn(turn: list[Taken]) -> None:
    (root,) = [span for span in turn if not span.parent_id]
    assert (root.service, root.name) == ("orchestrator", "turn")
    for span in turn:
        assert path_to(turn, span)[-1] == "orchestrator: turn"
    assert Counter(span.span_id for span in turn).most_common(1)[0][1] == 1


async def test_a_service_works_within_what_the_orchestrator_waits_for(turn: list[Taken]) -> None:
    pairs = {
        "encoder: recognise": "orchestrator: encoder.recognise",
        "llm: prefill": "orchestrator: llm.prefill",
        "llm: generate": "orchestrator: llm.generate",
        "voice_decoder: decode": "orchestrator: voice_decoder.decode",
    }
    found = set()
    for span in turn:
        path = path_to(turn, span)
        if path[0] in pairs:
            found.add(path[0])
            assert path[1] == pairs[path[0]]
    assert found == pairs.keys()
    (engine, *_) = named(turn, "llm", "triton.generate")
    assert path_to(turn, engine)[1:3] == ["llm: generate", "orchestrator: llm.generate"]
    for name in ("wait", "compute"):
        (step, *_) = named(turn, "encoder", name)
        assert path_to(turn, step)[1] == "encoder: recognise"


async def test_the_turn_has_its_stages_one_after_the_other(turn: list[Taken]) -> None:
    (root,) = [span for span in turn if not span.parent_id]
    stages = []
    for name in STAGES:
        (stage,) = named(turn, "orchestrator", name)
        assert stage.parent_id == root.span_id
        stages.append(stage)
    (first_audio,) = [
        span
        for span in named(turn, "orchestrator", "first_audio")
        if span.parent_id == root.span_id
    ]
    (spoken,) = named(turn, "orchestrator", "spoken")
    endpointing, _, _, first_token, first_text = stages
    assert 0.4 < endpointing.seconds < 2
    assert endpointing.ended <= first_token.began
    assert first_token.ended <= first_text.ended + SLACK_SECONDS
    assert first_text.ended <= first_audio.began + SLACK_SECONDS
    assert first_audio.ended <= spoken.began + SLACK_SECONDS
    assert spoken.seconds > 0.5


async def test_no_span_is_outside_of_what_it_is_part_of(turn: list[Taken]) -> None:
    by_id = {span.span_id: span for span in turn}
    for span in turn:
        assert span.began <= span.ended
        if not span.parent_id:
            continue
        within = by_id[span.parent_id]
        assert within.began - SLACK_SECONDS <= span.began, (within.name, span.name)
        # The gateway hears of the end of a turn when it has ended.
        if span.service != "gateway":
            assert span.ended <= within.ended + SLACK_SECONDS, (within.name, span.name)


async def test_the_gateway_tells_when_the_answer_was_played(turn: list[Taken]) -> None:
    (play,) = named(turn, "gateway", "play")
    (spoken,) = named(turn, "orchestrator", "spoken")
    assert play.seconds == pytest.approx(spoken.seconds, abs=0.5)
    sent = {span.name for span in turn if span.service == "gateway"}
    assert sent >= {"send_user_turn_ended", "send_assistant_started"}


async def test_nothing_that_was_said_is_in_a_trace(turn: list[Taken]) -> None:
    allowed = {
        *("session_id", "mode", "outcome", "tokens", "audio_ms", "seconds", "cancelled", "why"),
    }
    for span in turn:
        assert {name.removeprefix("minmo.") for name in span.attributes} <= allowed, span


async def test_an_answer_that_is_stopped_says_so(target: Target, collector: Collector) -> None:
    async with Conversation(target, input_rate_hz=16_000, speed=4) as conversation:
        await conversation.send_text("Tell me a long story about a ship.")
        await collect(conversation, Happening.ASSISTANT_STARTED)
        await conversation.interrupt()
        await collect(conversation, TurnReport)
        session_id = conversation.session_id

    def of_session(spans: list[Taken]) -> list[Taken]:
        wanted = [span for span in spans if span.attributes.get("minmo.session_id") == session_id]
        return [span for span in wanted if span.name == "turn"]

    spans = await collector.wait_for(lambda spans: bool(of_session(spans)))
    (root,) = of_session(spans)
    assert root.attributes["minmo.outcome"] == "interrupted"
    trace = collector.trace(root.trace_id)
    (interrupted,) = named(trace, "orchestrator", "interrupted")
    assert interrupted.parent_id == root.span_id
    (decode,) = named(trace, "orchestrator", "voice_decoder.decode")
    assert decode.ended <= interrupted.ended
