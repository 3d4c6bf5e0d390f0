"""Full duplex: the predictor decides, not silence.

Listening has random weights, and the predictors were made by hand: each always says the same. So
nothing is said here about how good decisions are, only about who takes them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio

from minmo.client import Conversation, Recording, Target, ask, sessions
from minmo.client.events import Happening, StopPlayback, TurnEvent, TurnReport
from minmo.client.microphone import Microphone
from minmo.client.talk import TalkTurn
from minmo.stack.stack import Stack
from minmo.v1 import conversation_pb2
from tests.aligned import aligned_home
from tests.duplex import duplex_home, predictor_of
from tests.service.llm_processes import LlmProcess, TritonProcess
from tests.system.conftest import QUESTION, SAME_LOOP
from tests.system.test_aligned import service
from tests.system.test_conversation import collect

pytestmark = SAME_LOOP

SILENCE_MS, LONGEST_SILENCE_MS = 500, 4000
BRIEF = conversation_pb2.SessionSettings(max_answer_tokens=8)
STORY = conversation_pb2.SessionSettings(
    system_prompt="You tell long stories in many sentences.", max_answer_tokens=48
)


@dataclass
class Duplex:
    """An orchestrator in aligned mode in front of an LLM that has a predictor."""

    target: Target
    metrics: str

    async def count(self, name: str) -> float:
        """A figure of the orchestrator."""
        async with httpx.AsyncClient() as client:
            page = (await client.get(f"http://{self.metrics}/metrics")).text
        return sum(
            float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} ")
        )

    async def probes(self) -> dict[str, float]:
        """What became of the probes."""
        fates = ("answered", "replaced", "failed")
        return {fate: await self.count(f'minmo_probes_total{{outcome="{fate}"}}') for fate in fates}


@asynccontextmanager
async def duplex(
    stack: Stack, folder: Path, *, answer: float, stop: float
) -> AsyncIterator[Duplex]:
    """Processes beside the stack's; decisions of voice activity are hours away."""
    home = await asyncio.to_thread(aligned_home, folder / "home")
    await asyncio.to_thread(duplex_home, home, predictor_of(answer, stop))
    triton = TritonProcess(MINMO_HOME=str(home))
    llm = LlmProcess(folder, triton.grpc_port)
    async with AsyncExitStack() as processes:
        triton.start()
        processes.push_async_callback(asyncio.to_thread, triton.stop)
        listening = service(
            "encoder",
            folder / "encoder.json",
            "--preload=embeddings",
            environment={"MINMO_HOME": str(home)},
        )
        _, encoder_address = await processes.enter_async_context(listening)
        await asyncio.to_thread(triton.wait_ready)
        llm_address = await asyncio.to_thread(llm.start)
        processes.push_async_callback(asyncio.to_thread, llm.stop)
        ready = folder / "orchestrator.json"
        orchestrator = service(
            "orchestrator",
            ready,
            "--mode=aligned",
            f"--end-of-turn-silence-ms={SILENCE_MS}",
            f"--longest-silence-ms={LONGEST_SILENCE_MS}",
            "--predictor-late-ms=60000",
            f"--encoder-address={encoder_address}",
            f"--llm-address={llm_address}",
            f"--voice-decoder-address={stack.addresses['voice_decoder']}",
            f"--redis-url={stack.redis_url}",
        )
        _, address = await processes.enter_async_context(orchestrator)
        told = json.loads(await asyncio.to_thread(ready.read_text))
        yield Duplex(Target(address), told["metrics_address"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def answers_at_once(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Duplex]:
    """Its predictor wants to answer always, and to stop never."""
    folder = tmp_path_factory.mktemp("answers")
    async with duplex(stack, folder, answer=0.95, stop=0.05) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stops_at_once(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Duplex]:
    """Its predictor wants to stop always, and to answer never."""
    folder = tmp_path_factory.mktemp("stops")
    async with duplex(stack, folder, answer=0.05, stop=0.95) as made:
        yield made


def silence_before_ms(turn: TalkTurn) -> float:
    """From the end of the user's speech to the decision to answer."""
    return next(span.duration_ms for span in turn.waterfall if span.hop == "endpointing")


async def listen_to_a_story(conversation: Conversation) -> None:
    """Asks for one, and hears a second of it."""
    await conversation.send_text("Tell me a long story about a ship.")
    started = (await collect(conversation, Happening.ASSISTANT_STARTED))[-1]
    assert isinstance(started, TurnEvent)
    async with asyncio.timeout(30):
        while len(conversation.speaker.heard(started.utterance_id)) < 24_000:
            await asyncio.sleep(0.05)


async def test_an_answer_begins_when_the_predictor_says_so(answers_at_once: Duplex) -> None:
    target = answers_at_once.target
    async with Conversation(target, input_rate_hz=16_000, settings=BRIEF) as conversation:
        turns = await ask(conversation, Recording.read(QUESTION))
    assert all(turn.outcome == "completed" for turn in turns)
    # Without it, nothing would have been decided before the longest silence.
    assert all(silence_before_ms(turn) < LONGEST_SILENCE_MS for turn in turns)
    assert (await answers_at_once.probes())["answered"] > 0


async def test_silence_alone_brings_no_answer_before_it_is_too_long(
    stops_at_once: Duplex,
) -> None:
    target = stops_at_once.target
    async with Conversation(target, input_rate_hz=16_000, settings=BRIEF) as conversation:
        (turn,) = await ask(conversation, Recording.read(QUESTION))
    assert turn.outcome == "completed"
    assert silence_before_ms(turn) >= LONGEST_SILENCE_MS


async def test_where_the_session_wants_silence_to_decide_it_does(stops_at_once: Duplex) -> None:
    settings = conversation_pb2.SessionSettings(
        max_answer_tokens=8,
        turn_detection=conversation_pb2.TurnDetection(
            kind=conversation_pb2.TurnDetection.KIND_SILENCE
        ),
    )
    before = (await stops_at_once.probes())["answered"]
    async with Conversation(
        stops_at_once.target, input_rate_hz=16_000, settings=settings
    ) as conversation:
        turns = await ask(conversation, Recording.read(QUESTION))
    assert all(silence_before_ms(turn) >= SILENCE_MS for turn in turns)
    assert (await stops_at_once.probes())["answered"] == before


async def test_what_is_said_over_an_answer_stops_it_when_the_predictor_says_so(
    stops_at_once: Duplex,
) -> None:
    target, spoken = stops_at_once.target, Recording.read(QUESTION)
    # A machine that is slow has time to understand it.
    long = Recording(spoken.path, np.tile(spoken.samples, 4), spoken.rate_hz)
    async with Conversation(target, input_rate_hz=16_000, settings=STORY) as conversation:
        await listen_to_a_story(conversation)
        microphone = asyncio.create_task(Microphone(conversation, long, 1.0).run())
        await collect(conversation, StopPlayback)
        interrupted = (await collect(conversation, TurnReport))[-1]
        answered = (await collect(conversation, TurnReport))[-1]
        microphone.cancel()
        session = await sessions.get_session(target, conversation.session_id)
    assert isinstance(interrupted, TurnReport)
    assert isinstance(answered, TurnReport)
    assert interrupted.outcome == "interrupted"
    assert session.turns[1].outcome == conversation_pb2.TURN_OUTCOME_INTERRUPTED


async def test_what_is_said_over_an_answer_leaves_it_alone_when_the_predictor_says_so(
    answers_at_once: Duplex,
) -> None:
    target = answers_at_once.target
    spoken = Recording.read(QUESTION)
    aside = Recording(spoken.path, spoken.samples[: spoken.rate_hz], spoken.rate_hz)
    async with Conversation(target, input_rate_hz=16_000, settings=STORY) as conversation:
        await listen_to_a_story(conversation)
        microphone = asyncio.create_task(Microphone(conversation, aside, 1.0).run())
        events = await collect(conversation, TurnReport)
        microphone.cancel()
        session = await sessions.get_session(target, conversation.session_id)
    kinds = [event.kind for event in events if isinstance(event, TurnEvent)]
    assert Happening.USER_SPEECH_STARTED in kinds
    assert not any(isinstance(event, StopPlayback) for event in events)
    report = events[-1]
    assert isinstance(report, TurnReport)
    assert report.outcome == "completed"
    assert [turn.role for turn in session.turns] == [2, 3]
