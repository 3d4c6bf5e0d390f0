"""The embedding path: speech embeddings into the LLM, hidden states to the voice.

Weights are random, so what is heard is nonsense and nothing is said about what the answers mean;
everything else is as it is: streaming, the words that people read, forks, interruption,
cancellation, a killed Triton, a lost encoder, a rebuilt cache.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio as redis

from minmo.bench.latency import after_decision_ms
from minmo.client import Conversation, Recording, Target, ask, sessions
from minmo.client.events import Happening, StopPlayback, TurnEvent, TurnReport, UserText
from minmo.client.microphone import FAST, Microphone
from minmo.stack.ports import PortReservation
from minmo.stack.stack import Stack
from minmo.v1 import conversation_pb2
from tests.aligned import aligned_home
from tests.system.conftest import QUESTION, SAME_LOOP
from tests.system.test_client_turns import BY_CLIENT, stream
from tests.system.test_conversation import collect

pytestmark = SAME_LOOP

# What the LLM says to untrained embeddings would go on for as long as it may.
BRIEF = conversation_pb2.SessionSettings(max_answer_tokens=8)
STORY = conversation_pb2.SessionSettings(
    system_prompt="You tell long stories in many sentences.", max_answer_tokens=24
)


@asynccontextmanager
async def service(
    name: str, ready: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process of a service, and its address."""
    await asyncio.to_thread(ready.unlink, missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"services.{name}"),
        *(f"--ready-file={ready}", "--drain-seconds=1", *arguments),
        env={**os.environ, **(environment or {})},
    )
    try:
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(ready.exists):
                assert process.returncode is None, f"{name} ended while it started"
                await asyncio.sleep(0.05)
        yield process, json.loads(await asyncio.to_thread(ready.read_text))["address"]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@dataclass
class Aligned:
    """An orchestrator in aligned mode, and its encoder, in front of the stack's other services."""

    target: Target
    folder: Path
    encoder: asyncio.subprocess.Process
    encoder_address: str
    processes: AsyncExitStack

    async def replace_encoder(self) -> None:
        """Kills the encoder and starts another in its place."""
        self.encoder.kill()
        await self.encoder.wait()
        port = int(self.encoder_address.rpartition(":")[2])
        self.encoder, _ = await self.processes.enter_async_context(encoder(self.folder, port))


@asynccontextmanager
async def encoder(folder: Path, port: int) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    async with service(
        "encoder",
        folder / "encoder.json",
        "--preload=embeddings",
        f"--port={port}",
        environment={"MINMO_HOME": str(folder / "home")},
    ) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Aligned]:
    """A second encoder and a second orchestrator beside the stack's own."""
    folder = tmp_path_factory.mktemp("aligned")
    await asyncio.to_thread(aligned_home, folder / "home")
    reservation = PortReservation()
    async with AsyncExitStack() as processes:
        processes.callback(reservation.close)
        orchestrator = service(
            "orchestrator",
            folder / "orchestrator.json",
            "--mode=aligned",
            f"--encoder-address=127.0.0.1:{reservation.port}",
            "--encoder-deadline-seconds=60",
            f"--llm-address={stack.addresses['llm']}",
            f"--voice-decoder-address={stack.addresses['voice_decoder']}",
            f"--redis-url={stack.redis_url}",
        )
        (listening, encoder_address), (_, address) = await asyncio.gather(
            processes.enter_async_context(encoder(folder, reservation.port)),
            processes.enter_async_context(orchestrator),
        )
        yield Aligned(Target(address), folder, listening, encoder_address, processes)


@pytest.fixture
def aligned(whole: Aligned) -> Target:
    """Where to talk with it."""
    return whole.target


async def test_speech_goes_into_the_llm_while_it_is_spoken_and_an_answer_comes_out(
    aligned: Target,
) -> None:
    events: list[object] = []
    async with Conversation(aligned, input_rate_hz=16_000, settings=BRIEF) as conversation:
        assert conversation.mode == "aligned"
        (turn,) = await ask(conversation, Recording.read(QUESTION), listener=events.append)
        session = await sessions.get_session(aligned, conversation.session_id)
    hops = {span.hop: span for span in turn.waterfall}
    assert {"endpointing", "embed", "prefill", "first_token"} <= hops.keys()
    assert "recognise" not in hops
    assert after_decision_ms(turn) is not None
    # The LLM and people read while it is spoken, and the history keeps the words.
    over = next(
        place
        for place, event in enumerate(events)
        if isinstance(event, TurnEvent) and event.kind is Happening.USER_TURN_ENDED
    )
    assert any(isinstance(event, UserText) and event.text for event in events[:over])
    texts = [event for event in events if isinstance(event, UserText)]
    partial = [event.text for event in texts if not event.final]
    assert len(set(partial)) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(partial))
    (final,) = [event.text for event in texts if event.final]
    assert final == session.turns[0].text == turn.user_text == partial[-1]


async def test_embeddings_reach_the_store_and_are_forgotten_with_their_turn(
    aligned: Target, stack: Stack
) -> None:
    store = redis.Redis.from_url(stack.redis_url)
    async with Conversation(aligned, input_rate_hz=16_000, settings=BRIEF, speed=4) as conversation:
        key = f"minmo:session:{conversation.session_id}:embeddings"
        microphone = asyncio.create_task(
            Microphone(conversation, Recording.read(QUESTION), 1.0).run()
        )
        await collect(conversation, Happening.USER_SPEECH_STARTED)
        async with asyncio.timeout(10):
            while not await store.llen(key):  # type: ignore[misc]
                await asyncio.sleep(0.02)
        assert 0 < await store.ttl(key) <= 180
        await collect(conversation, TurnReport)
        assert not await store.exists(key)
        microphone.cancel()
    await store.aclose()


async def test_an_interruption_forks_the_cache_and_the_fork_becomes_the_conversation(
    aligned: Target,
) -> None:
    question = Recording.read(QUESTION)
    async with Conversation(aligned, input_rate_hz=16_000, settings=STORY) as conversation:
        await conversation.send_text("Tell me a long story about a ship.")
        await collect(conversation, Happening.ASSISTANT_STARTED)
        await asyncio.sleep(1.5)  # somebody listens for a while, then interrupts
        microphone = asyncio.create_task(Microphone(conversation, question, 1.0).run())
        await collect(conversation, StopPlayback)
        interrupted = (await collect(conversation, TurnReport))[-1]
        answered = (await collect(conversation, TurnReport))[-1]
        microphone.cancel()
        session = await sessions.get_session(aligned, conversation.session_id)
    assert isinstance(interrupted, TurnReport)
    assert isinstance(answered, TurnReport)
    assert interrupted.outcome == "interrupted"
    assert session.turns[1].text == interrupted.heard_text
    assert session.turns[1].outcome == conversation_pb2.TURN_OUTCOME_INTERRUPTED
    assert [turn.role for turn in session.turns[:3]] == [2, 3, 2]


async def test_a_lost_encoder_is_replaced_in_the_middle_of_a_turn(whole: Aligned) -> None:
    question = Recording.read(QUESTION)
    async with Conversation(
        whole.target, input_rate_hz=16_000, settings=BRIEF, speed=4
    ) as conversation:
        (first, *_) = await ask(conversation, question)
    async with Conversation(
        whole.target, input_rate_hz=16_000, settings=BRIEF, speed=4
    ) as conversation:
        microphone = asyncio.create_task(Microphone(conversation, question, 1.0).run())
        await collect(conversation, UserText)
        await whole.replace_encoder()
        events = await collect(conversation, TurnReport, 60)
        microphone.cancel()
        session = await sessions.get_session(whole.target, conversation.session_id)
    happened = [event.kind for event in events if isinstance(event, TurnEvent)]
    assert Happening.RECOVERED in happened
    # Nothing twice and nothing lost. How much of the silence behind was listened to may differ, and
    # untrained weights hear something in it.
    shorter, longer = sorted((session.turns[0].text, first.user_text), key=len)
    assert len(shorter) > len(longer) / 2
    assert longer.startswith(shorter)


async def test_a_killed_triton_rebuilds_the_cache_from_the_embeddings(
    aligned: Target, stack: Stack
) -> None:
    question = Recording.read(QUESTION)
    async with Conversation(aligned, input_rate_hz=16_000, settings=BRIEF, speed=4) as conversation:
        (first, *_) = await ask(conversation, question, speed=FAST)
        microphone = asyncio.create_task(Microphone(conversation, question, 1.0).run())
        events = await collect(conversation, Happening.USER_SPEECH_STARTED)
        await stack.kill("triton")
        events += await collect(conversation, TurnReport, 90)
        microphone.cancel()
        await stack.wait_ready("triton")
        session = await sessions.get_session(aligned, conversation.session_id)
    report = events[-1]
    assert isinstance(report, TurnReport)
    assert report.outcome == "completed"
    happened = [event.kind for event in events if isinstance(event, TurnEvent)]
    assert Happening.RECOVERED in happened
    assert session.turns[0].text == first.user_text
    assert [turn.role for turn in session.turns] == [2, 3] * 2


async def test_the_client_may_end_turns_and_ask_for_answers(aligned: Target) -> None:
    settings = conversation_pb2.SessionSettings(turn_detection=BY_CLIENT, max_answer_tokens=8)
    brief = conversation_pb2.CreateResponse(max_answer_tokens=2, text_only=True)
    async with stream(aligned, settings) as talk:
        await talk.say(Recording.read(QUESTION))
        await talk.send(commit_input=conversation_pb2.CommitInput(), request_id="commit")
        ended = await talk.event(conversation_pb2.TURN_EVENT_KIND_USER_TURN_ENDED)
        assert ended.request_id == "commit"
        while not (said := await talk.next("user_text")).user_text.final:
            pass
        assert said.request_id == "commit"
        create = conversation_pb2.CreateResponse()
        answer = (await talk.ask("report", create_response=create)).report
        assert answer.user_turn_index == said.user_text.turn_index
        assert answer.heard_text == answer.generated_text
        # Speech was read as embeddings: there is more of it than of its words.
        assert answer.read_count > len(said.user_text.text.split()) + 20
        alone = conversation_pb2.CreateResponse(
            instructions="Be kind.", max_answer_tokens=2, text_only=True
        )
        assert (await talk.ask("report", create_response=alone)).report.token_count == 2
        last = (await talk.ask("report", create_response=brief)).report
        assert last.read_count > answer.read_count
        session = await sessions.get_session(aligned, talk.session_id)
    assert [turn.role for turn in session.turns] == [2, 3, 3, 3]
    assert session.turns[0].text == said.user_text.text != ""
