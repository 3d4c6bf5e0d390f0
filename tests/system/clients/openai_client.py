"""OpenAI's SDK in a spoken conversation: asks, speaks over the answer, hears the next one out."""

from __future__ import annotations

import asyncio
import base64
from importlib.metadata import version

from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from sound import (
    DEADLINE_SECONDS,
    INSTRUCTIONS,
    LISTEN_SECONDS,
    RATE_HZ,
    Microphone,
    Report,
    Speaker,
    Task,
)

PCM = {"type": "audio/pcm", "rate": RATE_HZ}


class Talk:
    """One connection, and what is said over it."""

    def __init__(self, connection: AsyncRealtimeConnection, task: Task) -> None:
        self.report = Report(f"openai {version('openai')}")
        self._connection = connection
        self._task = task
        self._microphone = Microphone()
        self._speaker = Speaker()
        self._texts: dict[str, str] = {}
        self._items: list[str] = []
        self._cut: set[str] = set()
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Talks until the second answer was heard."""
        await self._connection.session.update(
            session={
                "type": "realtime",
                "instructions": INSTRUCTIONS,
                "output_modalities": ["audio"],
                "audio": {
                    "input": {
                        "format": PCM,
                        "turn_detection": {"type": "server_vad"},
                        "transcription": {"model": "whisper-1"},
                    },
                    "output": {"format": PCM},
                },
            }
        )
        self._start(self._listen())
        self._microphone.say(self._task.first)
        async for event in self._connection:
            match event.type:
                case "response.output_audio.delta":
                    self._play(event.item_id, base64.b64decode(event.delta))
                case "response.output_audio_transcript.done":
                    self._texts[event.item_id] = event.transcript
                case "input_audio_buffer.speech_started":
                    await self._fall_silent()
                case "conversation.item.input_audio_transcription.completed":
                    self.report.user_texts.append(event.transcript.strip())
                case "response.done" if event.response.status == "completed" and self._cut:
                    break
                case "error":
                    self.report.errors.append(event.error.message)
        await asyncio.sleep(self._speaker.left_seconds)
        # What is played to its end is heard to its end: the server gets time to see that.
        await asyncio.sleep(1.0)
        for background in self._background:
            background.cancel()
        for item in self._items:
            text, heard = self._texts.get(item, ""), self._speaker.played(item)
            self.report.add_answer(self._task.out, text, heard, interrupted=item in self._cut)

    async def _listen(self) -> None:
        async for frame in self._microphone.frames():
            await self._connection.input_audio_buffer.append(audio=base64.b64encode(frame).decode())

    def _play(self, item: str, data: bytes) -> None:
        if item in self._cut:
            return
        if item not in self._items:
            self._items.append(item)
            if len(self._items) == 1:
                self._start(self._speak_over())
        self._speaker.play(item, data)

    async def _speak_over(self) -> None:
        await asyncio.sleep(LISTEN_SECONDS)
        self._microphone.say(self._task.second)

    async def _fall_silent(self) -> None:
        stopped = self._speaker.stop()
        if stopped is None:
            return
        item, played_ms = stopped
        self._cut.add(item)
        await self._connection.conversation.item.truncate(
            item_id=item, content_index=0, audio_end_ms=played_ms
        )

    def _start(self, work: object) -> None:
        self._background.add(asyncio.create_task(work))  # type: ignore[arg-type]


async def main() -> None:
    task = Task.from_command_line()
    client = AsyncOpenAI(base_url=task.url.replace("ws", "http", 1), api_key=task.key)
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        client.realtime.connect(model="minmo") as connection,
    ):
        talk = Talk(connection, task)
        await talk.run()
    talk.report.print()


asyncio.run(main())
