"""Two replicas of every service: whichever stops, dies or comes, conversations go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import urllib.request
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest
import pytest_asyncio
import redis.asyncio as redis

from minmo import weights
from minmo.client import Conversation, Recording, Target, sessions, speech
from minmo.client.events import (
    Disconnected,
    Event,
    Happening,
    Reconnected,
    TurnEvent,
    TurnReport,
    UserText,
)
from minmo.client.microphone import Microphone
from minmo.rpc import client
from minmo.stack.config import StackConfig
from minmo.stack.stack import Stack
from minmo.v1 import conversation_pb2, llm_pb2
from minmo.v1.llm_pb2_grpc import LlmServiceStub
from tests.system.conftest import QUESTION, QUESTION_TEXT, normal, word_error_rate

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICES = ("encoder", "llm", "voice_decoder", "orchestrator")
NOTICED = (Disconnected, Reconnected)
BRIEF = conversation_pb2.SessionSettings(max_answer_tokens=12)
DEADLINE_SECONDS = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    weights.ensure("mini")
    config = StackConfig(
        port=0,
        gateway=True,
        web_port=0,
        folder=tmp_path_factory.mktemp("home"),
        replicas=dict.fromkeys(SERVICES, 2),
        held_back=dict.fromkeys(SERVICES, 1),
        drain_seconds=20,
        # A connection ends soon, so that new streams find new replicas soon.
        variables={name: {"MINMO_MAX_CONNECTION_SECONDS": "2"} for name in SERVICES},
    )
    async with Stack(config, listener=print) as stack:
        yield stack


@pytest.fixture
def target(stack: Stack) -> Target:
    """All orchestrators."""
    return Target(stack.targets["orchestrator"])


class Talk:
    """A conversation whose microphone is always on, and all that its client has noticed."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.events: list[Event] = []
        self.reports: list[TurnReport] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def begun(cls, target: Target) -> AsyncIterator[Talk]:
        conversation = Conversation(target, input_rate_hz=16_000, settings=BRIEF, speed=4)
        async with conversation:
            yield cls(conversation)

    async def until(self, what: type | Happening) -> Event:
        """The next event of a kind."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for event in self.conversation.events:
                self.events.append(event)
                if isinstance(event, TurnReport):
                    self.reports.append(event)
                if isinstance(what, type) and isinstance(event, what):
                    return event
                if isinstance(event, TurnEvent) and event.kind is what:
                    return event
        raise AssertionError("the conversation ended")

    async def type(self, text: str) -> None:
        """A question, and its answer to the end."""
        await self.conversation.send_text(text)
        await self.until(TurnReport)

    @contextlib.asynccontextmanager
    async def speaking(self) -> AsyncIterator[None]:
        """The question is said aloud; then the microphone goes on with silence."""
        microphone = Microphone(self.conversation, Recording.read(QUESTION), 1.0)
        running = asyncio.create_task(microphone.run())
        try:
            yield
        finally:
            running.cancel()

    @property
    def words(self) -> str:
        """What the user has said last."""
        said = [event for event in self.events if isinstance(event, UserText) and event.final]
        return said[-1].text

    def noticed(self) -> list[Event]:
        """What tells the client of replicas."""
        troubles = (Happening.RECOVERING, Happening.RECOVERED)
        return [
            event
            for event in self.events
            if isinstance(event, NOTICED)
            or (isinstance(event, TurnEvent) and event.kind in troubles)
        ]

    async def check_history(self, target: Target) -> None:
        """Every answer was heard to its end, and the history is what was said and heard."""
        session = await sessions.get_session(target, self.conversation.session_id)
        heard = [turn.text for turn in session.turns if turn.role == 3]
        assert [turn.role for turn in session.turns] == [2, 3] * len(self.reports)
        assert heard == [report.heard_text for report in self.reports]
        assert {report.outcome for report in self.reports} == {"completed"}
        for report in self.reports:
            assert normal(report.heard_text) == normal(report.generated_text)


class RealtimeTalk:
    """A client of OpenAI's protocol, which writes and reads."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self.types: list[str] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def begun(cls, stack: Stack) -> AsyncIterator[RealtimeTalk]:
        url = f"ws://{stack.addresses['gateway']}/v1/realtime?model=minmo"
        async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
            yield cls(socket)

    async def ask(self, text: str) -> str:
        """The answer."""
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content}
        await self._socket.send_json({"type": "conversation.item.create", "item": item})
        wishes = {"output_modalities": ["text"], "max_output_tokens": 12}
        await self._socket.send_json({"type": "response.create", "response": wishes})
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                event = await self._socket.receive_json()
                self.types.append(event["type"])
                if event["type"] == "response.done":
                    assert event["response"]["status"] in ("completed", "incomplete")
                    return str(event["response"]["output"][0]["content"][0]["text"])


async def caches_left(stack: Stack, talks: Sequence[Talk]) -> list[str]:
    """Which replica of the LLM had each conversation's cache when its stream was moved."""
    async with redis.Redis.from_url(stack.redis_url) as store:
        keys = [f"minmo:session:{talk.conversation.session_id}" for talk in talks]
        return [str(json.loads(await store.hget(key, "cache"))["replica_id"]) for key in keys]


async def homes_of(stack: Stack, ids: Sequence[str]) -> list[str]:
    """Which replica of the LLM a client finds for each session."""
    async with client.channel(stack.targets["llm"], balancing="by_session") as channel:
        stub = LlmServiceStub(channel)
        asked = [
            stub.GetModel(llm_pb2.GetModelRequest(), timeout=10, metadata=client.call_metadata(id))
            for id in ids
        ]
        return [(await answer).replica_id for answer in asked]


async def has_worked(stack: Stack, name: str) -> bool:
    """Whether a replica has, or has had, a call."""

    def read() -> str:
        with urllib.request.urlopen(stack.metrics_urls[name], timeout=5) as answer:
            return str(answer.read().decode())

    pattern = r"^minmo_(?:streams|rpc_handled_total\{.*\}) (\S+)$"
    found = re.findall(pattern, await asyncio.to_thread(read), re.MULTILINE)
    return sum(map(float, found)) > 0


def half(second: bool) -> list[str]:
    """One replica of each service."""
    return [f"{name}-2" if second else name for name in SERVICES]


@contextlib.asynccontextmanager
async def replacing(stack: Stack, names: Sequence[str]) -> AsyncIterator[None]:
    """Waits in the end until other processes have the places of these."""
    before = stack.pids
    yield
    async with asyncio.timeout(DEADLINE_SECONDS):
        for name in names:
            while stack.pids.get(name) in (before[name], None):
                await asyncio.sleep(0.05)
            await stack.wait_ready(name)


async def test_nobody_notices_that_every_service_is_replaced(stack: Stack, target: Target) -> None:
    async with contextlib.AsyncExitStack() as open_talks:
        talks = [await open_talks.enter_async_context(Talk.begun(target)) for _ in range(3)]
        realtime = await open_talks.enter_async_context(RealtimeTalk.begun(stack))
        assert "Paris" in await realtime.ask("What is the capital of France?")
        await asyncio.gather(*(talk.type("What is the capital of France?") for talk in talks))
        for second in (False, True):
            async with replacing(stack, half(second)):
                for name in half(second):
                    stack.signal(name, signal.SIGTERM)
                # One of them speaks while half of all processes stop.
                async with talks[0].speaking():
                    await talks[0].until(TurnReport)
                assert word_error_rate(QUESTION_TEXT, talks[0].words) <= 0.2
                await talks[1].type("What is the capital of Italy?")
                assert "Rome" in await realtime.ask("What is the capital of Italy?")
        await talks[2].type("And of Spain?")
        assert "error" not in realtime.types
        for talk in talks:
            assert talk.noticed() == []
            await talk.check_history(target)


async def test_conversations_survive_the_death_of_any_replica(stack: Stack, target: Target) -> None:
    async with Talk.begun(target) as talk:
        await talk.type("What is the capital of France?")
        for killed in (
            ("encoder", "voice_decoder", "llm"),
            # Triton takes long to come back: nobody waits for it.
            ("encoder-2", "voice_decoder-2", "triton-2"),
        ):
            async with replacing(stack, killed[:2]), talk.speaking():
                await talk.until(Happening.USER_TURN_ENDED)
                for name in killed:
                    await stack.kill(name)
                await talk.until(TurnReport)
            assert word_error_rate(QUESTION_TEXT, talk.words) <= 0.2
        await talk.check_history(target)
        for name in ("orchestrator", "orchestrator-2"):
            await stack.kill(name)
        await talk.until(Reconnected)
        await talk.type("What is the capital of Italy?")
        await talk.check_history(target)


async def test_sessions_stay_with_their_cache_and_new_replicas_get_work(
    stack: Stack, target: Target
) -> None:
    await stack.wait_ready("triton-2")
    strangers = [f"session-{number}" for number in range(40)]
    async with asyncio.timeout(DEADLINE_SECONDS):
        # Its front says a little later that it is there.
        while len(set(await homes_of(stack, strangers))) < 2:
            await asyncio.sleep(0.2)
    async with contextlib.AsyncExitStack() as open_talks:
        talks = [await open_talks.enter_async_context(Talk.begun(target)) for _ in range(4)]
        await asyncio.gather(*(talk.type("Hello!") for talk in talks))
        # Whichever orchestrator has a session, its cache is found again.
        for name in ("orchestrator", "orchestrator-2"):
            async with replacing(stack, [name]):
                stack.signal(name, signal.SIGTERM)
                await asyncio.gather(*(talk.type("Really?") for talk in talks))
        ids = [talk.conversation.session_id for talk in talks]
        assert await caches_left(stack, talks) == await homes_of(stack, ids)
        added = await asyncio.gather(*(stack.add(service) for service in SERVICES))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not all([await has_worked(stack, name) for name in added]):
                await speech.say(target, "Hello!")
                await speech.transcribe(target, Recording.read(QUESTION))
                homes = await homes_of(stack, strangers)
        assert len(set(homes)) == 3
        await asyncio.gather(*(talk.type("Hello again!") for talk in talks))
        for talk in talks:
            assert talk.noticed() == []
            await talk.check_history(target)
