"""Throws bad input at a gateway while somebody talks: `python -m tests.fuzz_gateway --minutes 10`.

It starts a whole stack. Several connections at a time send what no client should: events that are
none, real ones with values changed, real ones in an order that makes no sense, far too many, far
too large, and answers that nobody reads. Meanwhile one well-behaved session asks questions.

Ends with status 1 if a process died or failed inside, an error was none of the protocol's, or the
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
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from aiohttp import ClientError, ClientSession, ClientTimeout, ClientWebSocketResponse, WSMsgType

from minmo import weights
from minmo.bench.realtime import append_events, connect
from minmo.client import Recording
from minmo.client.errors import ClientError as TalkError
from minmo.stack.config import StackConfig
from minmo.stack.stack import Stack

QUESTION = Path("examples/question.wav")
MAX_STUTTER_MS = 100.0
MAX_GROWTH_BYTES = 200_000_000
_LISTEN_SECONDS = 0.3
_CLOSE_SECONDS = 15.0
_FRAME = base64.b64encode(bytes(960)).decode()

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


@dataclass
class Findings:
    """What was seen.

    Attributes:
        sent: events and attacks, by kind.
        codes: of the errors that came back.
        faults: what should not have been, each once, and how often it was.
        stutter_ms: of each answer of the well-behaved session.
    """

    sent: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    stutter_ms: list[float] = field(default_factory=list)

    def add(self, others: dict[str, dict[str, int]]) -> None:
        """Adds what the attackers have seen, from `to_json`."""
        self.sent.update(others["sent"])
        self.codes.update(others["codes"])
        self.faults.update(others["faults"])

    def to_json(self) -> dict[str, dict[str, int]]:
        """All but the stutter."""
        return {"sent": self.sent, "codes": self.codes, "faults": self.faults}

    def check_error(self, event: dict[str, Any], sent: str) -> None:
        """An error must be one of the protocol's, and no surprise to the server."""
        error = event.get("error")
        if not isinstance(error, dict) or error.keys() != {
            *("type", "code", "message", "param", "event_id")
        }:
            self.faults[f"an error event of another form: {event}"] += 1
            return
        self.codes[str(error["code"])] += 1
        if error["type"] == "server_error":
            self.faults[f"{error['code']}: {error['message']} after {sent[:300]}"] += 1


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
        self._last = ""

    async def run(self) -> None:
        """Attacks until it is cancelled."""
        attacks: tuple[tuple[int, Callable[[ClientWebSocketResponse], Awaitable[None]]], ...] = (
            (30, self._changed),
            (30, self._shuffled),
            (10, self._nonsense),
            (3, self._nested),
            (2, self._huge),
            (2, self._flood),
            (3, self._deaf),
            (5, self._vanish),
        )
        weights_ = [weight for weight, _ in attacks]
        while True:
            (_, attack) = self._chance.choices(attacks, weights_)[0]
            self._findings.sent[attack.__name__.strip("_")] += 1
            with contextlib.suppress(ClientError, ConnectionError, TimeoutError):
                if self._chance.random() < 0.05:
                    await self._bare()
                async with self._web.ws_connect(
                    self._url + self._chance.choice(("", "?minmo=1", "?model=x&session_id=s0")),
                    max_msg_size=0,
                ) as socket:
                    async with asyncio.timeout(60):
                        await attack(socket)

    # --- what is done on a connection

    async def _changed(self, socket: ClientWebSocketResponse) -> None:
        """A whole session, a value or two of each event changed."""
        for event in EVENTS:
            changed = json.loads(json.dumps(event))
            for _ in range(self._chance.choice((0, 1, 1, 2, 5))):
                self._change(changed)
            await self._say(socket, json.dumps(changed))
            await self._listen(socket, 0.02)
        await self._listen(socket, _LISTEN_SECONDS)

    async def _shuffled(self, socket: ClientWebSocketResponse) -> None:
        """Good events in an order that makes no sense."""
        for _ in range(self._chance.randrange(1, 40)):
            event = self._chance.choice(EVENTS)
            if "item_id" in event:
                number = self._chance.randrange(4)
                event = event | {"item_id": self._chance.choice((f"item_{number}", "msg_1"))}
            await self._say(socket, json.dumps(event))
            if self._chance.random() < 0.5:
                await self._listen(socket, self._chance.choice((0.0, 0.05, 0.5)))
        await self._listen(socket, _LISTEN_SECONDS)

    async def _nonsense(self, socket: ClientWebSocketResponse) -> None:
        """No events at all, or pieces of some."""
        for _ in range(20):
            whole = json.dumps(self._chance.choice(EVENTS))
            match self._chance.randrange(5):
                case 0:
                    await socket.send_bytes(self._chance.randbytes(self._chance.randrange(2000)))
                case 1:
                    await self._say(socket, whole[: self._chance.randrange(len(whole))])
                case 2:
                    letters = self._chance.choices(range(32, 0x2FF), k=200)
                    await self._say(socket, "".join(map(chr, letters)))
                case 3:
                    place = self._chance.randrange(len(whole))
                    wrong = chr(self._chance.randrange(1, 128))
                    await self._say(socket, whole[:place] + wrong + whole[place + 1 :])
                case _:
                    await self._say(socket, json.dumps(self._chance.choice(STRANGE)))
        await self._listen(socket, _LISTEN_SECONDS)

    async def _nested(self, socket: ClientWebSocketResponse) -> None:
        """Far too deep, and far too many small values."""
        depth = self._chance.choice((100, 10_000, 1_000_000))
        await self._say(socket, '{"type":"session.update","session":' + "[" * depth)
        await self._say(socket, '{"type":' * depth + "1" + "}" * depth)
        many = {f"key{number}": number for number in range(100_000)}
        await self._say(socket, json.dumps({"type": "session.update", "session": many}))
        await self._listen(socket, 1.0)

    async def _huge(self, socket: ClientWebSocketResponse) -> None:
        """Events of many megabytes."""
        size = self._chance.choice((1, 14, 20, 40)) * 1_000_000
        await self._say(
            socket, json.dumps({"type": "input_audio_buffer.append", "audio": "A" * size})
        )
        await self._listen(socket, 2.0)

    async def _flood(self, socket: ClientWebSocketResponse) -> None:
        """As many events as the connection takes, for some seconds."""
        until = time.monotonic() + 3
        text = json.dumps(self._chance.choice(EVENTS))
        while time.monotonic() < until and not socket.closed:
            for _ in range(200):
                await self._say(socket, text)
            await asyncio.sleep(0.02)

    async def _deaf(self, socket: ClientWebSocketResponse) -> None:
        """Asks for answers and reads none."""
        text = {"type": "input_text", "text": "Tell me a long story."}
        item = {"type": "message", "role": "user", "content": [text]}
        await self._say(socket, json.dumps({"type": "conversation.item.create", "item": item}))
        await self._say(socket, json.dumps({"type": "response.create"}))
        for _ in range(5):
            for _ in range(50):
                event = {"type": "conversation.item.retrieve", "item_id": "item_0"}
                await self._say(socket, json.dumps(event))
            await asyncio.sleep(1.0)

    async def _vanish(self, socket: ClientWebSocketResponse) -> None:
        """Is gone in the middle of something."""
        for event in self._chance.sample(EVENTS, k=4):
            await self._say(socket, json.dumps(event))
        connection = socket._conn  # a lost network says no goodbye
        if connection is not None and connection.transport is not None:
            connection.transport.abort()

    async def _bare(self) -> None:
        """What is no WebSocket at all."""
        base = self._url.replace("ws", "http", 1)
        for path in ("", "/../../etc/passwd", "?" + "a" * 8000, "?session_id=%00"):
            async with self._web.get(base + path) as answer:
                if answer.status >= 500 and answer.status != 503:
                    self._findings.faults[f"HTTP {answer.status} for {path[:50]}"] += 1

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
        return self._chance.choice(STRANGE)

    async def _say(self, socket: ClientWebSocketResponse, text: str) -> None:
        self._last = text
        await socket.send_str(text)

    async def _listen(self, socket: ClientWebSocketResponse, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for message in socket:
                    if message.type is WSMsgType.TEXT:
                        event = json.loads(message.data)
                        if event["type"] == "error":
                            self._findings.check_error(event, self._last)


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
                findings.faults[f"the attacker itself: {failure!r}"] += 1
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
            except TalkError as error:
                findings.faults[f"the well-behaved session: {error}"] += 1
                return
            finally:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)
            for item, answer in list(client.arrived.items())[asked:]:
                findings.stutter_ms.append(answer.stutter_ms())
                event = {"type": "minmo.playback", "item_id": item, "finished": True}
                await client.send(event | {"played_samples": answer.samples})
            await asyncio.sleep(0.5)


def failures_in(stack: Stack) -> list[str]:
    """Exceptions that processes logged as none of the caller's doing."""
    return [
        f"{name}: {line[:1500]}"
        for name in ("gateway", "orchestrator")
        for line in (stack.logs / f"{name}.log").read_text().splitlines()
        if '"exception"' in line or "Traceback" in line
    ]


async def fuzz(minutes: float, seed: int, count: int) -> Findings:
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
            if stack.pids != before:
                findings.faults[f"a process died: {before} became {stack.pids}"] += 1
        finally:
            if attackers.returncode is None:
                attackers.terminate()
            out, _ = await attackers.communicate()
        findings.add(json.loads(out))
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        await asyncio.sleep(_CLOSE_SECONDS)
        growth = process.memory_info().rss - memory if stack.pids == before else 0
        if growth > MAX_GROWTH_BYTES:
            findings.faults[f"the gateway grew by {growth / 1e6:.0f} MB"] += 1
        for line in failures_in(stack):
            findings.faults[line] += 1
    if max(findings.stutter_ms, default=1e9) > MAX_STUTTER_MS:
        longest = max(findings.stutter_ms, default=float("inf"))
        findings.faults[f"the well-behaved session stuttered by {longest:.0f} ms"] += 1
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
        print(
            json.dumps(
                asyncio.run(attack(options.attack, options.seed, options.attackers)).to_json()
            )
        )
        return 0
    print(f"seed {options.seed}")
    findings = asyncio.run(fuzz(options.minutes, options.seed, options.attackers))
    print("attacks:", dict(findings.sent.most_common()))
    print("errors that came back:", dict(findings.codes.most_common()))
    stutter = sorted(findings.stutter_ms)
    if stutter:
        middle = stutter[len(stutter) // 2]
        print(
            f"answers of the well-behaved session: {len(stutter)}, longest silence within one: "
            f"median {middle:.0f} ms, at worst {stutter[-1]:.0f} ms"
        )
    for fault, count in findings.faults.most_common(20):
        print(f"FAULT ({count} times): {fault}")
    print("failed" if findings.faults else "nothing found")
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())
