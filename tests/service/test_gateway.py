"""The gateway's real process, between real WebSockets and a scripted orchestrator."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import pytest_asyncio
import trustme

from minmo.audio.opus import OpusDecoder, OpusEncoder
from minmo.rpc.errors import resource_exhausted
from minmo.v1 import common_pb2, conversation_pb2
from tests.unit.gateway_opus import OPUS, framed, unframed
from tests.unit.scripted_server import Script, serving, tone

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 20.0
FRAME = 480
LIMIT = 200_000
SAME_LOOP = pytest.mark.asyncio(loop_scope="module")

pytestmark = SAME_LOOP


class Orchestrator(Script):
    """Remembers what callers show, and has a session and a recogniser."""

    def __init__(self) -> None:
        super().__init__()
        self.port = 0
        self.stack = AsyncExitStack()
        self.tokens: list[str] = []
        self.streams: list[grpc.aio.ServicerContext] = []

    async def start(self) -> None:
        """Serves, on the port that it had before."""
        self.port = await self.stack.enter_async_context(serving(self, self.port))

    async def Converse(self, request_iterator, context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self.tokens.append(str(metadata.get("authorization", "")))
        self.streams.append(context)
        await super().Converse(request_iterator, context)

    async def GetSession(self, request, context) -> conversation_pb2.GetSessionResponse:
        turns = [
            conversation_pb2.Turn(index=0, role=common_pb2.ROLE_USER, text="Hello"),
            conversation_pb2.Turn(
                index=1, role=common_pb2.ROLE_ASSISTANT, text="Good day", audio_ms=700
            ),
        ]
        session = conversation_pb2.Session(session_id=request.session_id, turns=turns)
        session.settings.system_prompt = "Be kind."
        return conversation_pb2.GetSessionResponse(session=session)

    async def Transcribe(self, request, context) -> conversation_pb2.TranscribeResponse:
        return conversation_pb2.TranscribeResponse(text=f"{len(request.audio)} bytes")


class Gateway:
    """A gateway's process, whose log is read as it comes."""

    def __init__(self, folder: Path, orchestrator_port: int, *flags: str) -> None:
        self._ready_file = folder / "ready.json"
        self._command = [sys.executable, "-m", "services.gateway", "--port", "0", *flags]
        self._command += ["--ready-file", str(self._ready_file)]
        self._command += ["--orchestrator-address", f"127.0.0.1:{orchestrator_port}"]
        self._lines: list[str] = []
        self._grew = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when it is ready."""
        kept = {name: value for name, value in os.environ.items() if "MINMO_" not in name}
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=ROOT,
            env=kept,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._reader = asyncio.create_task(self._read())
        await self.logged("ready")
        report = json.loads(await asyncio.to_thread(self._ready_file.read_text))
        self.address: str = report["address"]
        self._metrics_address: str = report["metrics_address"]

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._grew:
                self._lines.append(line.decode())
                self._grew.notify_all()
        async with self._grew:
            self._lines.append("{}")
            self._grew.notify_all()

    async def logged(self, event: str, **fields: str) -> None:
        """Waits for a line of the log; also one that came already."""
        wanted = {"event": event, **fields}.items()

        def found() -> bool:
            assert "{}" not in self._lines, self.log()
            return any(wanted <= _fields(line).items() for line in self._lines)

        async with asyncio.timeout(DEADLINE_SECONDS), self._grew:
            await self._grew.wait_for(found)

    def log(self) -> str:
        return "".join(self._lines)

    async def metric(self, sample: str) -> float:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{self._metrics_address}/metrics") as answer,
        ):
            text = await answer.text()
        match = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
        return float(match[1]) if match else 0.0

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal; what the process ends with."""
        self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.process.wait()

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        if self._reader is not None:
            await self._reader


def _fields(line: str) -> dict[str, str]:
    """A line's fields that are text."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}  # a library's
    return {key: value for key, value in values.items() if isinstance(value, str)}


class Client:
    """A client of the protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send_str(json.dumps({"type": kind, **fields}))

    async def until(self, kind: str) -> dict[str, Any]:
        """Reads up to an event of a type."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                message = await self.socket.receive()
                assert message.type is aiohttp.WSMsgType.TEXT, (message, self.kinds())
                event = json.loads(message.data)
                self.events.append(event)
                if event["type"] == kind:
                    return event

    async def closed(self) -> int | None:
        """Reads to the end; the code of it."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for message in self.socket:
                self.events.append(json.loads(message.data))
        return self.socket.close_code

    async def error(self) -> dict[str, Any]:
        return (await self.until("error"))["error"]

    async def talk(self, seconds: float, level: int) -> None:
        frame = base64.b64encode(np.full(FRAME, level, "<i2").tobytes()).decode()
        for _ in range(round(seconds / 0.02)):
            await self.send("input_audio_buffer.append", audio=frame)

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events]


@asynccontextmanager
async def connected(
    gateway: Gateway, query: str = "?model=minmo", **options: Any
) -> AsyncIterator[Client]:
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://{gateway.address}/v1/realtime{query}", **options) as socket,
    ):
        yield Client(socket)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def orchestrator() -> AsyncIterator[Orchestrator]:
    script = Orchestrator()
    await script.start()
    yield script
    await script.stack.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    orchestrator: Orchestrator, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway]:
    gateway = Gateway(
        tmp_path_factory.mktemp("gateway"),
        orchestrator.port,
        *("--max-message-bytes", str(LIMIT), "--flood-seconds", "0.5"),
        *("--read-deadline-seconds", "1"),
    )
    try:
        await gateway.start()
        yield gateway
        assert await gateway.end() == 0, gateway.log()
    finally:
        await gateway.close()


async def test_a_conversation_goes_both_ways(gateway: Gateway, orchestrator: Orchestrator) -> None:
    async with connected(gateway, "?model=mine&minmo=1") as client:
        created = await client.until("session.created")
        assert created["session"]["model"] == "mine"
        settings = {"type": "realtime", "instructions": "Be brief."}
        await client.send("session.update", session=settings)
        ready = await client.until("minmo.ready")
        assert ready["mode"] == "cascade"
        orchestrator.audio.clear()
        await client.talk(0.4, 5000)
        await client.talk(0.4, 0)
        done = await client.until("response.done")
        assert done["response"]["output"][0]["content"][0]["transcript"] == "It is this."
        # Virtual playback reaches the end, and only then is the turn over.
        report = await client.until("minmo.turn_report")
        assert report["outcome"] == "completed"
    sent = np.concatenate(orchestrator.audio)
    assert np.count_nonzero(sent == 5000) == 20 * FRAME
    config = orchestrator.configs[-1]
    assert config.settings.system_prompt == "Be brief."
    assert (config.input_format.sample_rate_hz, config.reports_playback) == (24_000, True)
    heard = b"".join(
        base64.b64decode(event["delta"])
        for event in client.events
        if event["type"] == "response.output_audio.delta"
    )
    assert heard == np.full(7200, 8000, "<i2").tobytes()
    assert all(event["event_id"] for event in client.events)
    assert await gateway.metric("minmo_gateway_connections") == 0
    assert await gateway.metric('minmo_gateway_added_seconds_count{direction="out"}') > 0


async def test_telephony_goes_through_at_its_own_rate(
    gateway: Gateway, orchestrator: Orchestrator
) -> None:
    async with connected(gateway) as client:
        audio_format = {"format": {"type": "audio/pcmu"}}
        audio = {"input": audio_format, "output": audio_format}
        await client.send("session.update", session={"audio": audio})
        await client.until("session.updated")
        frame = base64.b64encode(b"\x80" * 160).decode()
        orchestrator.audio.clear()
        for _ in range(20):
            await client.send("input_audio_buffer.append", audio=frame)
        quiet = base64.b64encode(b"\xff" * 160).decode()
        for _ in range(20):
            await client.send("input_audio_buffer.append", audio=quiet)
        await client.until("response.done")
    assert orchestrator.configs[-1].input_format.sample_rate_hz == 8000
    assert orchestrator.configs[-1].output_format.sample_rate_hz == 8000
    assert np.concatenate(orchestrator.audio)[:3200].tolist() == [32124] * 3200
    deltas = [event for event in client.events if event["type"] == "response.output_audio.delta"]
    # 0.3 s, a byte a sample.
    assert sum(len(base64.b64decode(event["delta"])) for event in deltas) == 2400


async def test_opus_goes_through_and_what_is_none_is_refused(
    gateway: Gateway, orchestrator: Orchestrator
) -> None:
    async with connected(gateway) as client:
        await client.send("session.update", session=OPUS)
        updated = await client.until("session.updated")
        assert updated["session"]["audio"]["output"]["format"] == {"type": "audio/opus"}
        encoder = OpusEncoder(48_000)
        speech = encoder.encode(tone(600, 0.4, 48_000))
        orchestrator.audio.clear()
        await client.send("input_audio_buffer.append", audio=framed(speech[:10]))
        await client.send("input_audio_buffer.append", audio=framed([b"\xff"]), event_id="e1")
        error = await client.error()
        assert (error["code"], error["event_id"]) == ("invalid_value", "e1")
        await client.send("input_audio_buffer.append", audio=framed(speech[10:]))
        for packet in encoder.encode(np.zeros(19_200, np.float32)):
            await client.send("input_audio_buffer.append", audio=framed([packet]))
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        item = done["response"]["output"][0]["id"]
        # Three tenths of a second, filled up to whole packets.
        await client.send(
            "conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=310
        )
        await client.until("conversation.item.truncated")
    assert orchestrator.configs[-1].input_format.sample_rate_hz == 48_000
    heard = np.concatenate(orchestrator.audio)[: 20 * 960].astype(np.float32)
    assert np.corrcoef(heard[312:], tone(600, 0.4, 48_000)[:-312])[0, 1] > 0.9
    deltas = [event for event in client.events if event["type"] == "response.output_audio.delta"]
    decoder = OpusDecoder(24_000)
    packets = [packet for one in deltas for packet in unframed(base64.b64decode(one["delta"]))]
    assert sum(len(decoder.decode(packet)) for packet in packets) == 16 * 480


async def test_a_voice_that_is_none_is_refused_and_the_default_one_speaks(
    gateway: Gateway, orchestrator: Orchestrator
) -> None:
    async with connected(gateway, "?minmo=1") as client:
        audio = {"output": {"voice": "nobody"}}
        await client.send("session.update", session={"audio": audio, "instructions": "Be brief."})
        error = await client.error()
        assert error["param"] == "session.audio.output.voice"
        assert "there are: default" in error["message"]
        ready = await client.until("minmo.ready")
        assert (ready["voices"], ready["recording"]) == (["default"], False)
    updates = [event for event in client.events if event["type"] == "session.updated"]
    assert updates[-1]["session"]["audio"]["output"]["voice"] == "default"
    settings = orchestrator.configs[-1].settings
    assert (settings.voice, settings.system_prompt) == ("", "Be brief.")


async def test_items_are_added_and_recordings_recognised(gateway: Gateway) -> None:
    async with connected(gateway) as client:
        part = {"type": "input_audio", "audio": base64.b64encode(bytes(960)).decode()}
        item = {"id": "mine", "type": "message", "role": "user", "content": [part]}
        await client.send("conversation.item.create", item=item)
        done = await client.until("conversation.item.done")
        assert done["item"]["id"] == "mine"
        assert done["item"]["content"][0]["transcript"] == "960 bytes"


async def test_bad_input_gets_an_error_and_the_connection_goes_on(gateway: Gateway) -> None:
    async with connected(gateway) as client:
        await client.socket.send_str("{none")
        assert (await client.error())["code"] == "invalid_json"
        await client.socket.send_bytes(b"{}")
        assert (await client.error())["code"] == "invalid_json"
        await client.send("no.such", event_id="e1")
        error = await client.error()
        assert (error["code"], error["param"], error["event_id"]) == ("invalid_value", "type", "e1")
        await client.send("input_audio_buffer.append", audio="not base64!")
        assert (await client.error())["param"] == "audio"
        await client.send("input_audio_buffer.append", audio=base64.b64encode(b"odd").decode())
        assert (await client.error())["param"] == "audio"
        await client.send("input_audio_buffer.append", audio="A" * LIMIT)
        assert (await client.error())["code"] == "event_too_large"
        await client.send("session.update", session={})
        await client.until("session.updated")
    assert await gateway.metric('minmo_gateway_errors_total{code="event_too_large"}') == 1


async def test_a_message_of_twice_the_size_ends_the_connection(gateway: Gateway) -> None:
    # Of the message only how long it will be: what is not read when a connection ends resets it.
    header = b"\x81\xff" + (2 * LIMIT + 1).to_bytes(8, "big") + bytes(4)
    async with opened(gateway) as raw:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, header)
        received = b""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while piece := await loop.sock_recv(raw, 65_536):
                received += piece
    assert received.endswith(b"\x88\x02" + aiohttp.WSCloseCode.MESSAGE_TOO_BIG.to_bytes(2, "big"))


@asynccontextmanager
async def opened(gateway: Gateway, receive_bytes: int = 65_536) -> AsyncIterator[socket.socket]:
    """A socket that has just become a WebSocket, but for the server's answer."""
    host, port = gateway.address.rsplit(":", 1)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.connect((host, int(port)))
        raw.setblocking(False)
        request = (
            f"GET /v1/realtime HTTP/1.1\r\nHost: {gateway.address}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await asyncio.get_running_loop().sock_sendall(raw, request.encode())
        yield raw


async def test_a_flood_is_slowed_down_then_cut_off_and_nobody_else_stutters(
    gateway: Gateway,
) -> None:
    async def flood(client: Client) -> None:
        # The server may close at any moment.
        while not client.socket.closed:
            try:
                for _ in range(20):
                    await client.send("no.such")
            except (ConnectionError, aiohttp.ClientError):
                return
            await asyncio.sleep(0.02)

    async with connected(gateway) as flooding, connected(gateway) as other:
        await other.until("session.created")
        task = asyncio.create_task(flood(flooding))
        ended = asyncio.create_task(flooding.closed())
        waits = []
        while not ended.done():
            began = time.monotonic()
            await other.send("session.update", session={})
            await other.until("session.updated")
            waits.append(time.monotonic() - began)
            await asyncio.wait({ended}, timeout=0.02)
        assert ended.result() == aiohttp.WSCloseCode.POLICY_VIOLATION
        task.cancel()
    codes = {event["error"]["code"] for event in flooding.events if event["type"] == "error"}
    assert "rate_limit_exceeded" in codes
    assert await gateway.metric('minmo_gateway_closed_total{reason="flood"}') == 1
    assert sorted(waits)[len(waits) // 2] < 0.1, waits


async def test_a_client_that_does_not_read_is_closed(gateway: Gateway) -> None:
    tools = [
        {"type": "function", "name": f"t{number}", "description": "x" * 1000}
        for number in range(64)
    ]
    async with opened(gateway, receive_bytes=4096) as raw:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, frame({"tools": tools}))
        closed = asyncio.create_task(gateway.logged("closed", reason="slow reader"))
        while not closed.done():
            # Each is small and its answer is large.
            with contextlib.suppress(OSError):
                await loop.sock_sendall(raw, frame({}) * 10)
            await asyncio.wait({closed}, timeout=0.1)
        closed.result()


def frame(settings: dict[str, Any]) -> bytes:
    """A WebSocket's frame with a session.update."""
    text = json.dumps({"type": "session.update", "session": settings}).encode()
    return b"\x81\xff" + len(text).to_bytes(8, "big") + bytes(4) + text


async def test_a_lost_orchestrator_is_found_again_and_the_session_goes_on(
    gateway: Gateway, orchestrator: Orchestrator
) -> None:
    async with connected(gateway, "?minmo=1") as client:
        ready = await client.until("minmo.ready")
        await orchestrator.stack.aclose()
        await gateway.logged("the orchestrator is lost")
        await orchestrator.start()
        again = await client.until("minmo.ready")
        assert (again["session_id"], again["resumed"]) == (ready["session_id"], True)
        assert orchestrator.configs[-1].take_over
        await client.talk(0.4, 5000)
        await client.talk(0.4, 0)
        await client.until("response.done")
        # Positions go on where they were, and do not begin anew.
        assert client.socket.close_code is None


async def test_a_session_is_taken_up_with_its_items_and_settings(
    gateway: Gateway, orchestrator: Orchestrator
) -> None:
    async with connected(gateway, "?session_id=s1&minmo=1") as client:
        created = await client.until("session.created")
        assert created["session"]["instructions"] == "Be kind."
        ready = await client.until("minmo.ready")
        assert (ready["session_id"], ready["resumed"]) == ("s1", True)
    items = [event["item"] for event in client.events if event["type"] == "conversation.item.done"]
    assert [item["id"] for item in items] == ["item_0", "item_1"]
    assert items[1]["content"] == [{"type": "output_audio", "transcript": "Good day"}]
    config = orchestrator.configs[-1]
    assert (config.session_id, config.take_over) == ("s1", True)
    assert not config.HasField("settings")


async def test_a_refusal_of_the_orchestrator_is_told_and_ends_the_connection(
    gateway: Gateway, orchestrator: Orchestrator
) -> None:
    orchestrator.refusal = resource_exhausted("64 streams are open", limit="64")
    try:
        async with connected(gateway) as client:
            assert (await client.error())["code"] == "server_overloaded"
            assert await client.closed() == aiohttp.WSCloseCode.TRY_AGAIN_LATER
    finally:
        orchestrator.refusal = None


async def test_the_page_comes_with_headers_that_keep_it_safe(gateway: Gateway) -> None:
    base = f"http://{gateway.address}"
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{base}/") as page:
            assert page.status == 200
            assert page.content_type == "text/html"
            assert "default-src 'none'" in page.headers["Content-Security-Policy"]
            assert page.headers["X-Content-Type-Options"] == "nosniff"
            tag = page.headers["ETag"]
        async with http.get(f"{base}/index.html", headers={"If-None-Match": tag}) as page:
            assert page.status == 304
        for path in ("/none.html", "/../auth.py", "/%2e%2e/auth.py", "/__init__.py"):
            async with http.get(base + path) as page:
                assert page.status == 404
        async with http.get(f"{base}/healthz") as answer:
            assert answer.status == 200
        # The orchestrator may have just come back.
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (why := await text_of(http, f"{base}/readyz")) != "ready\n":
            assert time.monotonic() < deadline, why
            await asyncio.sleep(0.1)
        async with http.get(f"{base}/v1/realtime") as answer:
            assert answer.status == 426


async def text_of(http: aiohttp.ClientSession, url: str) -> str:
    async with http.get(url) as answer:
        return await answer.text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(
    orchestrator: Orchestrator, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Gateway, ssl.SSLContext]]:
    folder = tmp_path_factory.mktemp("guarded")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    keys = folder / "keys"
    keys.write_text("very-secret-key\n")
    gateway = Gateway(
        folder,
        orchestrator.port,
        *("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")),
        *("--api-keys-file", str(keys), "--allowed-origins", "https://friend.example"),
        *("--max-sessions-per-key", "2", "--max-session-seconds", "2.5", "--idle-seconds", "1.5"),
        *("--audio-seconds-per-hour", "2", "--drain-seconds", "1"),
    )
    try:
        await gateway.start()
        yield gateway, context
    finally:
        await gateway.close()


@asynccontextmanager
async def admitted(
    guarded: tuple[Gateway, ssl.SSLContext], **options: Any
) -> AsyncIterator[Client]:
    gateway, context = guarded
    options.setdefault("headers", {"Authorization": "Bearer very-secret-key"})
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"https://{gateway.address}/v1/realtime", ssl=context, **options) as socket,
    ):
        yield Client(socket)


async def test_only_who_shows_a_key_is_let_in_and_the_key_is_passed_on(
    guarded: tuple[Gateway, ssl.SSLContext], orchestrator: Orchestrator
) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            async with admitted(guarded, headers=headers):
                pass
        assert raised.value.status == 401
        # A page sees it only without the upgrade.
        url = f"https://{guarded[0].address}/v1/realtime"
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.get(url, ssl=guarded[1]) as answer,
        ):
            assert answer.status == 401
    protocols = ("realtime", "openai-insecure-api-key.very-secret-key")
    async with admitted(guarded, headers={}, protocols=protocols) as client:
        assert client.socket.protocol == "realtime"
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
    assert orchestrator.tokens[-1] == "Bearer very-secret-key"


async def test_pages_of_strangers_may_not_connect(
    guarded: tuple[Gateway, ssl.SSLContext],
) -> None:
    address = guarded[0].address
    for origin, allowed in (
        ("https://evil.example", False),
        ("null", False),
        ("https://friend.example", True),
        (f"https://{address}", True),
    ):
        headers = {"Authorization": "Bearer very-secret-key", "Origin": origin}
        try:
            async with admitted(guarded, headers=headers):
                assert allowed
        except aiohttp.WSServerHandshakeError as error:
            assert error.status == 403
            assert not allowed


async def test_a_key_has_so_many_connections_and_so_much_audio(
    guarded: tuple[Gateway, ssl.SSLContext],
) -> None:
    async with admitted(guarded) as client, admitted(guarded):
        with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            async with admitted(guarded):
                pass
        assert raised.value.status == 429
        await client.talk(2.5, 0)
        error = await client.error()
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")


async def test_time_is_limited_in_all_and_without_a_word(
    guarded: tuple[Gateway, ssl.SSLContext],
) -> None:
    async def busy(client: Client) -> None:
        while not client.socket.closed:
            await client.send("input_audio_buffer.clear")
            await asyncio.sleep(0.3)

    async with admitted(guarded) as silent, admitted(guarded) as talking:
        task = asyncio.create_task(busy(talking))
        assert await silent.closed() == aiohttp.WSCloseCode.OK
        assert silent.events[-1]["error"]["code"] == "session_idle"
        assert await talking.closed() == aiohttp.WSCloseCode.OK
        assert talking.events[-1]["error"]["code"] == "session_expired"
        task.cancel()


async def test_a_stop_tells_the_clients_and_leaks_no_secret(
    guarded: tuple[Gateway, ssl.SSLContext],
) -> None:
    gateway = guarded[0]
    async with admitted(guarded) as client:
        await client.until("session.created")
        ending = asyncio.create_task(gateway.end())
        assert await client.closed() == aiohttp.WSCloseCode.SERVICE_RESTART
    assert await ending == 0, gateway.log()
    assert "very-secret" not in gateway.log()
