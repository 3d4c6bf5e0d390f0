"""Opus over the Realtime protocol: in, out, and cut where it was heard."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np

from minmo.audio.opus import OpusDecoder, OpusEncoder
from minmo.client import Recording, Target
from minmo.stack.stack import Stack
from tests.system.conftest import (
    QUESTION,
    QUESTION_TEXT,
    SAME_LOOP,
    normal,
    recognise,
    word_error_rate,
)
from tests.unit.gateway_opus import OPUS, framed, unframed

pytestmark = SAME_LOOP

RATE_HZ = 24_000
DEADLINE_SECONDS = 60.0


class Client:
    """A client of the protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self.audio: list[bytes] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self._socket.send_str(json.dumps({"type": kind, **fields}))

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of a type; the audio before it is kept."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                event: dict[str, Any] = await self._socket.receive_json()
                if event["type"] == "response.output_audio.delta":
                    self.audio += unframed(base64.b64decode(event["delta"]))
                if event["type"] == kind:
                    return event


@asynccontextmanager
async def connected(stack: Stack) -> AsyncIterator[Client]:
    url = f"ws://{stack.addresses['gateway']}/v1/realtime?minmo=1"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        yield Client(socket)


async def test_a_question_in_opus_is_understood_and_its_answer_heard(
    stack: Stack, target: Target
) -> None:
    question = Recording.read(QUESTION).at_rate(RATE_HZ).samples
    encoder = OpusEncoder(RATE_HZ)
    packets = encoder.encode(np.concatenate([question, np.zeros(RATE_HZ, np.float32)]))
    async with connected(stack) as client:
        await client.send("session.update", session={**OPUS, "max_output_tokens": 12})
        await client.until("session.updated")
        await client.send("input_audio_buffer.append", audio=framed([b"\xff"]))
        assert (await client.until("error"))["error"]["code"] == "invalid_value"
        for first in range(0, len(packets), 10):
            part = framed(packets[first : first + 10])
            await client.send("input_audio_buffer.append", audio=part)
        asked = await client.until("conversation.item.input_audio_transcription.completed")
        assert word_error_rate(QUESTION_TEXT, asked["transcript"]) <= 0.3
        done = (await client.until("response.done"))["response"]
        (item,) = done["output"]
        decoder = OpusDecoder(RATE_HZ)
        heard = np.concatenate([decoder.decode(packet) for packet in client.audio])
        # It is played half, and the client says so at once.
        half_ms = len(heard) * 500 // RATE_HZ
        await client.send(
            "conversation.item.truncate",
            item_id=item["id"],
            content_index=0,
            audio_end_ms=half_ms,
        )
        report = await client.until("minmo.turn_report")
        assert report["outcome"] == "interrupted"
        said = item["content"][0]["transcript"]
        assert word_error_rate(said, await recognise(target, heard, RATE_HZ)) <= 0.3
        half = await recognise(target, heard[: len(heard) // 2], RATE_HZ)
        assert abs(len(normal(half).split()) - len(normal(report["heard_text"]).split())) <= 4
