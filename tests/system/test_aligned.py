"""The embedding path: speech embeddings into the LLM, hidden states to the voice.

The projector is not trained yet, so nothing is said about what the answers mean; everything else
is as it will be: streaming, forks, interruption, cancellation, a killed Triton, a rebuilt cache.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis.asyncio as redis

from minmo.client import Conversation, Recording, Target, ask, sessions
from minmo.client.events import Happening, StopPlayback, TurnEvent, TurnReport
from minmo.client.microphone import Microphone
from minmo.stack.stack import Stack
from minmo.v1 import conversation_pb2
from tests.system.conftest import QUESTION, QUESTION_TEXT, SAME_LOOP, word_error_rate
from tests.system.test_conversation import collect

pytestmark = SAME_LOOP

STORY = conversation_pb2.SessionSettings(
    system_prompt="You tell long stories in many sentences.", max_answer_tokens=40
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def aligned(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """A second orchestrator in front of the same services, in aligned mode."""
    ready = tmp_path_factory.mktemp("aligned") / "ready.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.orchestrator",
        "--mode=aligned",
        f"--encoder-address={stack.addresses['encoder']}",
        f"--llm-address={stack.addresses['llm']}",
        f"--voice-decoder-address={stack.addresses['voice_decoder']}",
        f"--redis-url={stack.redis_url}",
        f"--ready-file={ready}",
        "--drain-seconds=1",
    )
    async with asyncio.timeout(60):
        while not ready.exists():
            await asyncio.sleep(0.05)
    yield Target(json.loads(await asyncio.to_thread(ready.read_text))["address"])
    process.terminate()
    await process.wait()


async def test_speech_goes_into_the_llm_and_an_answer_comes_out(aligned: Target) -> None:
    async with Conversation(aligned, input_rate_hz=16_000, speed=4) as conversation:
        assert conversation.mode == "aligned"
        turns = await ask(conversation, Recording.read(QUESTION))
        session = await sessions.get_session(aligned, conversation.session_id)
    hops = {span.hop for span in turns[0].waterfall}
    assert {"endpointing", "embed", "prefill", "first_token"} <= hops
    # People read the user's words, which the recogniser wrote down beside.
    assert word_error_rate(QUESTION_TEXT, session.turns[0].text) <= 0.2


async def test_embeddings_reach_the_store_and_are_forgotten_with_their_turn(
    aligned: Target, stack: Stack
) -> None:
    store = redis.Redis.from_url(stack.redis_url)
    async with Conversation(aligned, input_rate_hz=16_000, speed=4) as conversation:
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


async def test_a_killed_triton_rebuilds_the_cache_from_the_embeddings(
    aligned: Target, stack: Stack
) -> None:
    question = Recording.read(QUESTION)
    async with Conversation(aligned, input_rate_hz=16_000, speed=4) as conversation:
        (first, *_) = await ask(conversation, question)
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
