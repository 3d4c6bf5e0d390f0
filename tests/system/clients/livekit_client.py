"""LiveKit's `AgentSession` on OpenAI's realtime model, between a microphone and a loudspeaker."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version

from livekit import rtc
from livekit.agents import (
    Agent,
    AgentSession,
    ConversationItemAddedEvent,
    UserInputTranscribedEvent,
)
from livekit.agents.voice import io
from livekit.plugins import openai
from openai.types.realtime import AudioTranscription
from openai.types.realtime.realtime_audio_input_turn_detection import ServerVad
from sound import (
    DEADLINE_SECONDS,
    FRAME_BYTES,
    INSTRUCTIONS,
    LISTEN_SECONDS,
    RATE_HZ,
    Microphone,
    Report,
    Speaker,
    Task,
)


class Ears(io.AudioInput):
    """The microphone, as LiveKit has it."""

    def __init__(self, microphone: Microphone) -> None:
        super().__init__(label="microphone")
        self._frames = microphone.frames()

    async def __anext__(self) -> rtc.AudioFrame:
        return rtc.AudioFrame(await anext(self._frames), RATE_HZ, 1, FRAME_BYTES // 2)


class Mouth(io.AudioOutput):
    """The loudspeaker, as LiveKit has it: one segment is one answer."""

    def __init__(self, speaker: Speaker) -> None:
        capabilities = io.AudioOutputCapabilities(pause=False)
        super().__init__(label="speaker", capabilities=capabilities, sample_rate=RATE_HZ)
        self.segments: list[tuple[str, bool]] = []
        self.began = asyncio.Event()
        self._speaker = speaker
        self._segment: str | None = None
        self._ending: asyncio.Task[None] | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if self._segment is None:
            self._segment = f"segment-{len(self.segments)}"
            self.on_playback_started(created_at=time.time())
            self.began.set()
        self._speaker.play(self._segment, bytes(frame.data))

    def flush(self) -> None:
        super().flush()
        if self._segment is not None and self._ending is None:
            self._ending = asyncio.create_task(self._play_out())

    def clear_buffer(self) -> None:
        if self._segment is None:
            return
        if self._ending is not None:
            self._ending.cancel()
        self._speaker.stop()
        self._finish(interrupted=True)

    async def _play_out(self) -> None:
        await asyncio.sleep(self._speaker.left_seconds)
        self._finish(interrupted=False)

    def _finish(self, *, interrupted: bool) -> None:
        assert self._segment is not None
        segment, self._segment, self._ending = self._segment, None, None
        self.segments.append((segment, interrupted))
        played = len(self._speaker.played(segment)) / 2 / RATE_HZ
        self.on_playback_finished(playback_position=played, interrupted=interrupted)


async def talk(task: Task) -> Report:
    report = Report(f"livekit-plugins-openai {version('livekit-plugins-openai')}")
    microphone, speaker = Microphone(), Speaker()
    model = openai.realtime.RealtimeModel(
        model="minmo",
        base_url=task.url,
        api_key=task.key,
        modalities=["audio"],
        turn_detection=ServerVad(type="server_vad", create_response=True, interrupt_response=True),
        input_audio_transcription=AudioTranscription(model="whisper-1"),
    )
    # Echo is no matter here: an answer may be spoken over from its first moment.
    session: AgentSession[None] = AgentSession(llm=model, vad=None, aec_warmup_duration=None)
    texts: list[str] = []
    answered = asyncio.Event()

    @session.on("user_input_transcribed")
    def transcribed(event: UserInputTranscribedEvent) -> None:
        if event.is_final:
            report.user_texts.append(event.transcript.strip())

    @session.on("conversation_item_added")
    def added(event: ConversationItemAddedEvent) -> None:
        if getattr(event.item, "role", "") == "assistant":
            texts.append(event.item.text_content or "")
            if len(texts) == 2:
                answered.set()

    @session.on("error")
    def failed(event: object) -> None:
        report.errors.append(str(event))

    mouth = Mouth(speaker)
    session.input.audio = Ears(microphone)
    session.output.audio = mouth
    await session.start(Agent(instructions=INSTRUCTIONS))
    microphone.say(task.first)
    await mouth.began.wait()
    await asyncio.sleep(LISTEN_SECONDS)
    microphone.say(task.second)
    await answered.wait()
    # What is played to its end is heard to its end: the server gets time to see that.
    await asyncio.sleep(1.0)
    await session.aclose()
    await model.aclose()
    for text, (segment, interrupted) in zip(texts, mouth.segments, strict=True):
        report.add_answer(task.out, text, speaker.played(segment), interrupted=interrupted)
    return report


async def main() -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        report = await talk(Task.from_command_line())
    report.print()


asyncio.run(main())
