"""A Pipecat pipeline with its OpenAI realtime service, between a microphone and a loudspeaker."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from loguru import logger
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMFullResponseStartFrame,
    OutputAudioRawFrame,
    StartFrame,
    TTSStartedFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner
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

_BUFFERED_SECONDS = 0.1


class Ears(BaseInputTransport):
    """The microphone, as Pipecat has it."""

    def __init__(self, microphone: Microphone, params: TransportParams) -> None:
        super().__init__(params)
        self._microphone = microphone
        self._sending: asyncio.Task[None] | None = None

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)
        self._sending = self.create_task(self._send())

    async def stop(self, frame: EndFrame) -> None:
        await self._close()
        await super().stop(frame)

    async def cancel(self, frame: CancelFrame) -> None:
        await self._close()
        await super().cancel(frame)

    async def _close(self) -> None:
        if self._sending is not None:
            await self.cancel_task(self._sending)
            self._sending = None

    async def _send(self) -> None:
        async for data in self._microphone.frames():
            await self.push_audio_frame(InputAudioRawFrame(data, RATE_HZ, 1))


class Mouth(BaseOutputTransport):
    """The loudspeaker, as Pipecat has it: takes what it will play within `_BUFFERED_SECONDS`."""

    def __init__(self, speaker: Speaker, params: TransportParams) -> None:
        super().__init__(params)
        self.answer = -1
        self._speaker = speaker

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, TTSStartedFrame):
            self.answer += 1
        elif isinstance(frame, InterruptionFrame):
            self._speaker.stop()
        await super().process_frame(frame, direction)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self._speaker.play(str(self.answer), frame.audio)
        await asyncio.sleep(max(0.0, self._speaker.left_seconds - _BUFFERED_SECONDS))
        return True


class Witness(FrameProcessor):
    """Sees what goes by behind the realtime service: what was said, and by whom it was stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.interrupted: set[int] = set()
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self._speaking = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        match frame:
            case LLMFullResponseStartFrame():
                self.texts.append("")
            case TTSTextFrame() if self.texts:
                self.texts[-1] += frame.text
            case BotStartedSpeakingFrame():
                self._speaking = True
                self.began.set()
            case InterruptionFrame() if self._speaking:
                self.interrupted.add(len(self.texts) - 1)
            case BotStoppedSpeakingFrame():
                self._speaking = False
                if len(self.texts) == 2:
                    self.ended.set()
        await self.push_frame(frame, direction)


async def talk(task: Task) -> Report:
    report = Report(f"pipecat-ai {version('pipecat-ai')}")
    microphone, speaker, witness = Microphone(), Speaker(), Witness()
    params = TransportParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        audio_in_sample_rate=RATE_HZ,
        audio_out_sample_rate=RATE_HZ,
    )
    mouth = Mouth(speaker, params)
    service = OpenAIRealtimeLLMService(
        api_key=task.key,
        base_url=f"{task.url}/realtime",
        settings=OpenAIRealtimeLLMService.Settings(
            model="minmo",
            system_instruction=INSTRUCTIONS,
            session_properties=events.SessionProperties(
                audio=events.AudioConfiguration(
                    input=events.AudioInput(
                        transcription=events.InputAudioTranscription(model="whisper-1"),
                        turn_detection=events.TurnDetection(),
                    )
                )
            ),
        ),
    )
    context = LLMContext()
    sides = LLMContextAggregatorPair(context)
    steps = [Ears(microphone, params), sides.user(), service, witness, mouth, sides.assistant()]
    worker = PipelineWorker(Pipeline(steps), params=PipelineParams(), idle_timeout_secs=None)

    @worker.event_handler("on_pipeline_error")
    async def failed(_: PipelineWorker, frame: ErrorFrame) -> None:
        report.errors.append(frame.error)

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    microphone.say(task.first)
    await witness.began.wait()
    await asyncio.sleep(LISTEN_SECONDS)
    microphone.say(task.second)
    await witness.ended.wait()
    # What is played to its end is heard to its end: the server gets time to see that.
    await asyncio.sleep(1.0)
    await worker.cancel()
    await running
    report.user_texts += [
        str(message.get("content", ""))
        for message in context.get_messages()
        if isinstance(message, dict) and message.get("role") == "user"
    ]
    for number, text in enumerate(witness.texts):
        heard = speaker.played(str(number))
        report.add_answer(task.out, text.strip(), heard, interrupted=number in witness.interrupted)
    return report


async def main() -> None:
    logger.remove()
    async with asyncio.timeout(DEADLINE_SECONDS):
        report = await talk(Task.from_command_line())
    report.print()


asyncio.run(main())
