"""Throws bad input at a gateway while somebody talks: `python -m tests.fuzz_gateway --minutes 10`.

It starts a whole stack. Several connections at a time send what no client should: events that are
none, real ones with values changed, real ones in an order that makes no sense, far too many, far
too large, and answers that nobody reads. Meanwhile one well-behaved session asks questions.

Nobody waits for a guess of time: whether the server still follows is asked with an event whose
answer carries its id. Ends with status 1 if a process died or failed inside (a crash), such an
event was not answered (a hang), an event was not what the protocol says (a violation), or the
well-behaved session got no answer or a silence of more than 100 ms within one. `--seed` repeats the
choices of a run.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from aiohttp import (
    ClientError,
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    WSMsgType,
)

from minmo import weights
from minmo.bench.realtime import append_events, connect
from minmo.client import Recording
from minmo.client.errors import ClientError as TalkError
from minmo.stack.config import StackConfig
from minmo.stack.stack import Stack
from tests.realtime_protocol import Protocol

QUESTION = Path("examples/question.wav")
MAX_STUTTER_MS = 100.0
MAX_GROWTH_BYTES = 200_000_000
ANSWER_SECONDS = 30.0
"""Longest time in which the server answers an event, or ends the connection."""
CUT_OFF_SECONDS = 60.0
"""Longest time until one who goes on in spite of that is cut off."""
MOST_EVENTS_A_SECOND = 250
"""That the gateway reads of one connection by default."""
CLOSE_SECONDS = 30.0
_FRAME = base64.b64encode(bytes(960)).decode()
_LARGE = {
    "type": "session.update",
    "session": {
        "tools": [
            {"type": "function", "name": f"t{number}", "description": "x" * 1000}
            for number in range(64)
        ]
    },
}

# A session as real clients have one: what is changed below, and what is shuffled.
EVENTS: tuple[dict[str, Any], ...] = (
    {
        "type": "session.update",
        "event_id": "event_1",
        "session": {
            "type": "realtime",
            "model": "minmo",
            "instructions": "Be brief.",
            "output_modalities": ["audio"],
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24000},
                    "noise_reduction": {"type": "near_field"},
                    "transcription": {"model": "whisper-1", "language": "en"},
                    "turn_detection": {
                        "type": "server_vad",
                        "threshold": 0.5,
                        "prefix_padding_ms": 300,
                        "silence_duration_ms": 500,
                        "create_response": True,
                        "interrupt_response": True,
                    },
                },
                "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"},
            },
            "tools": [
                {
                    "type": "function",
                    "name": "get_weather",
                    "description": "The weather at a place.",
                    "parameters": {
                        "type": "object",
                        "properties": {"place": {"type": "string"}},
                        "required": ["place"],
                    },
                }
            ],
            "tool_choice": "auto",
            "max_output_tokens": 16,
        },
    },
    {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}},
    {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}},
    {
        "type": "session.update",
        "session": {"audio": {"output": {"format": {"type": "audio/opus"}}}},
    },
    {"type": "input_audio_buffer.append", "audio": _FRAME * 8},
    {"type": "input_audio_buffer.append", "audio": _FRAME * 8},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {
        "type": "conversation.item.create",
        "previous_item_id": None,
        "item": {
            "id": "msg_1",
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "What is the capital of France?"}],
        },
    },
    {
        "type": "conversation.item.create",
        "item": {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Paris."}],
        },
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
    },
    {"type": "conversation.item.retrieve", "item_id": "item_0"},
    {
        "type": "conversation.item.truncate",
        "item_id": "item_1",
        "content_index": 0,
        "audio_end_ms": 700,
    },
    {"type": "conversation.item.delete", "item_id": "msg_1"},
    {
        "type": "response.create",
        "response": {
            "instructions": "Say hello.",
            "output_modalities": ["audio"],
            "max_output_tokens": 8,
            "metadata": {"topic": "greeting"},
            "tool_choice": "none",
        },
    },
    {"type": "response.create"},
    {"type": "response.cancel"},
    {"type": "output_audio_buffer.clear"},
    {"type": "minmo.playback", "item_id": "item_1", "played_samples": 24000, "finished": False},
)
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**63, 2**64, -(2**63), 10**40),
    *(
        "",
        " ",
        "\0",
        "\ud83d\ude00" * 50,
        "a" * 5000,
        "\u202e\u0000\uffff",
        "NaN",
        "null",
        "item_0",
    ),
    *([], {}, [[]], [None], {"": ""}, {"type": "realtime"}, ["audio", "audio", "text"], "____"),
    *("not base64!", "QQ=", _FRAME[:-1], base64.b64encode(b"abc").decode(), "../../etc/passwd"),
)
_OPUS = {"audio": {"input": {"format": {"type": "audio/opus"}}}}


@dataclass
class Findings:
    """What was seen.

    Attributes:
        sent: attacks, by kind.
        codes: of the errors that came back.
        crashes: of processes and of code, each once, and how often it was; so are the next two.
        hangs: what was not answered.
        violations: what is against the protocol.
        stutter_ms: of each answer of the well-behaved session.
    """

    sent: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    hangs: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    stutter_ms: list[float] = field(default_factory=list)

    @property
    def counters(self) -> dict[str, Counter[str]]:
        """All but the stutter."""
        names = ("sent", "codes", "crashes", "hangs", "violations")
        return {name: getattr(self, name) for name in names}

    def add(self, others: dict[str, dict[str, int]]) -> None:
        """Adds what the attackers have seen, from `counters`."""
        for name, counter in self.counters.items():
            counter.update(others[name])

    @property
    def worst_stutter_ms(self) -> float:
        """Of all answers; infinite if there was none."""
        return max(self.stutter_ms, default=float("inf"))

    @property
    def bad(self) -> bool:
        """Whether anything was found."""
        found = bool(self.crashes or self.hangs or self.violations)
        return found or self.worst_stutter_ms > MAX_STUTTER_MS


class Line:
    """A connection whose events are read as they come, and held against the protocol.

    Args:
        socket: open.
        findings: is told what came back.
        attack: name of what is done on it.
    """

    def __init__(self, socket: ClientWebSocketResponse, findings: Findings, attack: str) -> None:
        self.socket = socket
        self._findings = findings
        self._attack = attack
        self._protocol = Protocol()
        self._last = ""
        self._probes = 0
        self._answered: set[str] = set()
        self._codes: set[str] = set()
        self._news = asyncio.Condition()
        self._over = False

    async def read(self) -> None:
        """Reads to the end."""
        try:
            async for message in self.socket:
                if message.type is WSMsgType.TEXT:
                    self._take(json.loads(message.data))
                    async with self._news:
                        self._news.notify_all()
        finally:
            self._over = True
            async with self._news:
                self._news.notify_all()

    def _take(self, event: dict[str, Any]) -> None:
        for wrong in self._protocol.take(event):
            self._findings.violations[f"{wrong} ({self._attack})"] += 1
        error = event.get("error")
        if event["type"] != "error" or not isinstance(error, dict):
            return
        self._codes.add(str(error.get("code")))
        self._findings.codes[str(error.get("code"))] += 1
        event_id = str(error.get("event_id"))
        if event_id.startswith("probe-"):
            self._answered.add(event_id)
        elif error.get("type") == "server_error":
            told = f"{error['code']}: {error['message']} after {self._last[:300]}"
            self._findings.crashes[f"{told} ({self._attack})"] += 1

    async def say(self, text: str) -> None:
        """Sends a message."""
        self._last = text
        await self.socket.send_str(text)

    async def follows(self) -> None:
        """Waits until the server has answered all that was sent, or has ended the connection."""
        self._probes += 1
        event_id = f"probe-{self._probes}"
        probe = {"type": "conversation.item.retrieve", "event_id": event_id, "item_id": "none"}
        await self.socket.send_str(json.dumps(probe))
        if not await self._until(lambda: event_id in self._answered, ANSWER_SECONDS):
            self._findings.hangs[f"no answer after {self._last[:300]} ({self._attack})"] += 1

    def told(self, code: str) -> bool:
        """Whether an error of this code has come."""
        return code in self._codes

    @property
    def over(self) -> bool:
        """Whether the server has ended the connection."""
        return self._over

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether something happened in time, or the connection ended."""
        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(lambda: condition() or self._over)
        except TimeoutError:
            return False
        return True


class Attacker:
    """One who opens connection after connection and does something else wrong on each.

    Args:
        url: of the WebSocket.
        web: makes connections.
        chance: decides everything.
        findings: is told what came back.
    """

    def __init__(
        self, url: str, web: ClientSession, chance: random.Random, findings: Findings
    ) -> None:
        self._url = url
        self._web = web
        self._chance = chance
        self._findings = findings

    async def run(self) -> None:
        """Attacks until it is cancelled."""
        attacks: tuple[tuple[int, Callable[[Line], Awaitable[None]]], ...] = (
            (30, self._changed),
            (30, self._shuffled),
            (10, self._nonsense),
            (3, self._nested),
            (2, self._huge),
            (2, self._flood),
            (2, self._deaf),
            (5, self._vanish),
        )
        weights_ = [weight for weight, _ in attacks]
        while True:
            (_, attack) = self._chance.choices(attacks, weights_)[0]
            name = attack.__name__.strip("_")
            self._findings.sent[name] += 1
            # Who is cut off is told by whatever it does next.
            with contextlib.suppress(ClientError, ConnectionError):
                if self._chance.random() < 0.05:
                    await self._bare()
                async with self._line(name) as line:
                    await attack(line)

    @asynccontextmanager
    async def _line(self, name: str) -> AsyncIterator[Line]:
        query = self._chance.choice(("", "?minmo=1", "?model=x&session_id=s0"))
        async with self._web.ws_connect(self._url + query, max_msg_size=0) as socket:
            line = Line(socket, self._findings, name)
            # One who is deaf reads nothing.
            reading = None if name == "deaf" else asyncio.create_task(line.read())
            try:
                yield line
            finally:
                if reading is not None:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)

    # --- what is done on a connection

    async def _changed(self, line: Line) -> None:
        """A whole session, a value or two of each event changed."""
        for event in EVENTS:
            changed = json.loads(json.dumps(event))
            for _ in range(self._chance.choice((0, 1, 1, 2, 5))):
                self._change(changed)
            await line.say(json.dumps(changed))
            if self._chance.random() < 0.3:
                await line.follows()
        await line.follows()

    async def _shuffled(self, line: Line) -> None:
        """Good events in an order that makes no sense."""
        for _ in range(self._chance.randrange(1, 40)):
            event = self._chance.choice(EVENTS)
            if "item_id" in event:
                number = self._chance.randrange(4)
                event = event | {"item_id": self._chance.choice((f"item_{number}", "msg_1"))}
            await line.say(json.dumps(event))
            if self._chance.random() < 0.5:
                await line.follows()
        await line.follows()

    async def _nonsense(self, line: Line) -> None:
        """No events at all, or pieces of some."""
        for _ in range(20):
            whole = json.dumps(self._chance.choice(EVENTS))
            match self._chance.randrange(5):
                case 0:
                    noise = self._chance.randbytes(self._chance.randrange(2000))
                    await line.socket.send_bytes(noise)
                case 1:
                    await line.say(whole[: self._chance.randrange(len(whole))])
                case 2:
                    letters = self._chance.choices(range(32, 0x2FF), k=200)
                    await line.say("".join(map(chr, letters)))
                case 3:
                    place = self._chance.randrange(len(whole))
                    wrong = chr(self._chance.randrange(1, 128))
                    await line.say(whole[:place] + wrong + whole[place + 1 :])
                case _:
                    await line.say(json.dumps(self._chance.choice(STRANGE)))
        await line.follows()

    async def _nested(self, line: Line) -> None:
        """Far too deep, and far too many small values."""
        depth = self._chance.choice((100, 10_000, 1_000_000))
        await line.say('{"type":"session.update","session":' + "[" * depth)
        await line.say('{"type":' * depth + "1" + "}" * depth)
        many = {f"key{number}": number for number in range(100_000)}
        await line.say(json.dumps({"type": "session.update", "session": many}))
        await line.follows()

    async def _huge(self, line: Line) -> None:
        """Events of many megabytes."""
        size = self._chance.choice((1, 14, 20, 40)) * 1_000_000
        append = {"type": "input_audio_buffer.append", "audio": "A" * size}
        if self._chance.random() < 0.3:
            await line.say(json.dumps({"type": "session.update", "session": _OPUS}))
        await line.say(json.dumps(append))
        await line.follows()

    async def _flood(self, line: Line) -> None:
        """As many events as the connection takes, until the server says that these are too many."""
        text = json.dumps(self._chance.choice(EVENTS))
        began, sent = time.monotonic(), 0
        while not (line.over or line.told("rate_limit_exceeded")):
            seconds = time.monotonic() - began
            if seconds > CUT_OFF_SECONDS:
                # Audio that the orchestrator takes more slowly than that is no flood any more.
                if sent / seconds > MOST_EVENTS_A_SECOND:
                    self._findings.hangs[f"a flood of {text[:200]} was not noticed"] += 1
                return
            for _ in range(100):
                await line.say(text)
            sent += 100
            await asyncio.sleep(0)  # what has come is read

    async def _deaf(self, line: Line) -> None:
        """Asks for answers and reads none, until it is cut off."""
        text = {"type": "input_text", "text": "Tell me a long story."}
        item = {"type": "message", "role": "user", "content": [text]}
        await line.say(json.dumps({"type": "conversation.item.create", "item": item}))
        await line.say(json.dumps({"type": "response.create"}))
        try:
            async with asyncio.timeout(CUT_OFF_SECONDS):
                while True:
                    await line.say(json.dumps(_LARGE))
        except TimeoutError:
            self._findings.hangs["a client that reads nothing was not cut off"] += 1

    async def _vanish(self, line: Line) -> None:
        """Is gone in the middle of something."""
        for event in self._chance.sample(EVENTS, k=4):
            await line.say(json.dumps(event))
        connection = line.socket._conn  # a lost network says no goodbye
        if connection is not None and connection.transport is not None:
            connection.transport.abort()

    async def _bare(self) -> None:
        """What is no WebSocket at all."""
        base = self._url.replace("ws", "http", 1)
        for path in ("", "/../../etc/passwd", "?" + "a" * 8000, "?session_id=%00"):
            async with self._web.get(base + path) as answer:
                if answer.status >= 500 and answer.status != 503:
                    self._findings.crashes[f"HTTP {answer.status} for {path[:50]}"] += 1

    # --- how

    def _change(self, event: dict[str, Any]) -> None:
        places: list[tuple[Any, Any]] = []

        def walk(value: Any) -> None:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, below in items:
                places.append((value, key))
                if isinstance(below, dict | list):
                    walk(below)

        walk(event)
        if not places:
            return
        where, key = self._chance.choice(places)
        match self._chance.randrange(4):
            case 0 if isinstance(where, dict):
                del where[key]
            case 1 if isinstance(where, dict):
                where[self._chance.choice(("extra", "", "type", "id"))] = self._strange()
            case _:
                where[key] = self._strange()

    def _strange(self) -> Any:
        # A copy: the same list in two places could come to hold itself.
        return json.loads(json.dumps(self._chance.choice(STRANGE)))


async def attack(url: str, seed: int, count: int) -> Findings:
    """Attacks until SIGTERM; in a process of its own, which may take the time that it wants."""
    findings = Findings()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with ClientSession(timeout=ClientTimeout(30)) as web:
        attacking = [
            asyncio.create_task(Attacker(url, web, random.Random(seed + number), findings).run())
            for number in range(count)
        ]
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait([waiting, *attacking], return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, *attacking):
            task.cancel()
        for failure in await asyncio.gather(*attacking, return_exceptions=True):
            if isinstance(failure, Exception):
                findings.crashes[f"the attacker itself: {failure!r}"] += 1
    return findings


async def behave(address: str, web: ClientSession, findings: Findings) -> None:
    """Asks the same question again and again in one session, until it is cancelled."""
    frames = append_events(Recording.read(QUESTION))
    async with connect(address, web, token="well-behaved") as client:
        while True:
            asked = len(client.arrived)
            speaking = asyncio.create_task(client.speak(frames))
            try:
                await client.next("response.done", 60)
                for item, answer in list(client.arrived.items())[asked:]:
                    findings.stutter_ms.append(answer.stutter_ms())
                    event = {"type": "minmo.playback", "item_id": item, "finished": True}
                    await client.send(event | {"played_samples": answer.samples})
                await client.next("minmo.turn_report")
            except TalkError as error:
                findings.hangs[f"the well-behaved session: {error}"] += 1
                return
            finally:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)


def failures_in(stack: Stack) -> list[str]:
    """Exceptions that processes logged as none of the caller's doing."""
    return [
        f"{name}: {line[:1500]}"
        for name in ("gateway", "orchestrator")
        for line in (stack.logs / f"{name}.log").read_text().splitlines()
        if '"exception"' in line or "Traceback" in line
    ]


async def connections(metrics_url: str, web: ClientSession) -> float:
    """Connections that the gateway has."""
    async with web.get(metrics_url) as answer:
        text = await answer.text()
    found = re.search(r"^minmo_gateway_connections (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else -1.0


async def all_closed(metrics_url: str, web: ClientSession) -> bool:
    """Whether the gateway lets go of all connections in time."""
    until = time.monotonic() + CLOSE_SECONDS
    while await connections(metrics_url, web):
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.5)
    return True


async def fuzz(minutes: float, seed: int, count: int) -> Findings:
    """Attacks a stack of its own for some minutes."""
    findings = Findings()
    weights.ensure("mini")
    folder = Path(tempfile.mkdtemp(prefix="minmo-fuzz-"))
    config = StackConfig(port=0, gateway=True, web_port=0, folder=folder)
    async with Stack(config) as stack, ClientSession(timeout=ClientTimeout(30)) as web:
        address, before = stack.addresses["gateway"], stack.pids
        process = psutil.Process(before["gateway"])
        talking = asyncio.create_task(behave(address, web, findings))
        attackers = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.fuzz_gateway", "--seed", str(seed)),
            *("--attack", f"ws://{address}/v1/realtime", "--attackers", str(count)),
            stdout=asyncio.subprocess.PIPE,
        )
        memory = 0
        until = time.monotonic() + 60 * minutes
        try:
            while time.monotonic() < until and not talking.done() and stack.pids == before:
                await asyncio.wait({talking}, timeout=5)
                memory = memory or process.memory_info().rss
                left = max(0.0, until - time.monotonic())
                answers = len(findings.stutter_ms)
                print(f"\r{left:4.0f} s left, {answers} answers", end="", flush=True)
            print()
        finally:
            if attackers.returncode is None:
                attackers.terminate()
            out, _ = await attackers.communicate()
        findings.add(json.loads(out))
        talking.cancel()
        for failure in await asyncio.gather(talking, return_exceptions=True):
            if isinstance(failure, Exception):
                findings.crashes[f"the well-behaved session: {failure!r}"] += 1
        if stack.pids != before:
            findings.crashes[f"a process died: {before} became {stack.pids}"] += 1
        else:
            if not await all_closed(stack.metrics_urls["gateway"], web):
                findings.hangs["connections that are gone are still served"] += 1
            growth = process.memory_info().rss - memory
            if growth > MAX_GROWTH_BYTES:
                findings.crashes[f"the gateway grew by {growth / 1e6:.0f} MB"] += 1
        for line in failures_in(stack):
            findings.crashes[line] += 1
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description="Throw bad input at a gateway.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument(
        "--attackers", type=int, default=4, help="0 to see what the session is like undisturbed"
    )
    parser.add_argument("--attack", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        findings = asyncio.run(attack(options.attack, options.seed, options.attackers))
        print(json.dumps(findings.counters))
        return 0
    print(f"seed {options.seed}")
    findings = asyncio.run(fuzz(options.minutes, options.seed, options.attackers))
    print("attacks:", dict(findings.sent.most_common()))
    print("errors that came back:", dict(findings.codes.most_common()))
    for name in ("crashes", "hangs", "violations"):
        counter = findings.counters[name]
        print(f"{name}: {counter.total()}")
        for what, times in counter.most_common(20):
            print(f"  {times} times: {what}")
    stutter = sorted(findings.stutter_ms)
    median = stutter[len(stutter) // 2] if stutter else float("inf")
    print(
        f"answers of the well-behaved session: {len(stutter)}, longest silence within one: median "
        f"{median:.0f} ms, at worst {findings.worst_stutter_ms:.0f} ms (limit "
        f"{MAX_STUTTER_MS:.0f} ms)"
    )
    print("failed" if findings.bad else "nothing found")
    return 1 if findings.bad else 0


if __name__ == "__main__":
    sys.exit(main())
