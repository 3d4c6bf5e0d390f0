"""A conversation server that follows a simple script, in the process of the test."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from grpc_health.v1 import health_pb2_grpc

from minmo.audio.opus import OpusDecoder, OpusEncoder
from minmo.audio.pcm import to_s16
from minmo.rpc.errors import DETAILS_KEY, StatusError, invalid_argument
from minmo.rpc.health import HealthServicer, Readiness
from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, ConverseResponse
from minmo.v1.conversation_pb2_grpc import (
    ConversationServiceServicer,
    add_ConversationServiceServicer_to_server,
)

ANSWER_SECONDS = 0.3
SILENCE_SECONDS = 0.2


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray:
    """Something that Opus keeps, unlike a constant."""
    phase = np.arange(round(seconds * rate)) * (2 * np.pi * hertz / rate)
    return (0.5 * np.sin(phase)).astype(np.float32)


@dataclass
class Script(ConversationServiceServicer):
    """Takes what is loud for speech, and answers after a silence; carries out what is asked."""

    answer: bool = True
    words: bool = True
    refusal: StatusError | None = None
    voices: tuple[str, ...] = ("default",)
    skip_a_number: bool = False
    configs: list[conversation_pb2.ConverseConfig] = field(default_factory=list)
    playbacks: list[conversation_pb2.Playback] = field(default_factory=list)
    audio: list[np.ndarray] = field(default_factory=list)
    requests: list[ConverseRequest] = field(default_factory=list)
    answers: int = 0

    async def Converse(
        self,
        request_iterator: AsyncIterator[ConverseRequest],
        context: grpc.aio.ServicerContext,
    ) -> None:
        stream = _Stream(self, context)
        async for request in request_iterator:
            match request.WhichOneof("message"):
                case "config":
                    refusal = self.refusal or self._no_voice(request.config.settings.voice)
                    if refusal is not None:
                        status = refusal.to_status().SerializeToString()
                        context.set_trailing_metadata(((DETAILS_KEY, status),))
                        await context.abort(refusal.code, refusal.message)
                    await stream.begin(request.config)
                case "audio":
                    await stream.hear(request.audio)
                case "playback":
                    self.playbacks.append(request.playback)
                    await stream.played(request.playback)
                case _:
                    self.requests.append(request)
                    await stream.obey(request)

    def _no_voice(self, name: str) -> StatusError | None:
        if name in ("", *self.voices):
            return None
        known = ", ".join(self.voices)
        problem = f"there is no voice {name!r}; there are: {known}"
        return invalid_argument("settings.voice", problem, reason="VOICE_NOT_FOUND")


class _Stream:
    def __init__(self, script: Script, context: grpc.aio.ServicerContext) -> None:
        self._script = script
        self._context = context
        self._sequence = 0
        self._samples = 0
        self._speech_end: int | None = None
        self._rate = 0
        self._output_rate = 0
        self._utterance = ""
        self._decoder: OpusDecoder | None = None
        self._opus_out = False

    async def begin(self, config: conversation_pb2.ConverseConfig) -> None:
        self._script.configs.append(config)
        self._rate = config.input_format.sample_rate_hz
        self._output_rate = config.output_format.sample_rate_hz
        if config.input_format.encoding == common_pb2.AUDIO_ENCODING_OPUS:
            self._decoder = OpusDecoder(self._rate)
        self._opus_out = config.output_format.encoding == common_pb2.AUDIO_ENCODING_OPUS
        session_id = config.session_id or f"session-{len(self._script.configs)}"
        await self._send(
            ready=conversation_pb2.ConverseReady(
                session_id=session_id,
                resumed=bool(config.session_id),
                mode="cascade",
                voices=self._script.voices,
            )
        )

    async def hear(self, chunk) -> None:
        if self._decoder is None:
            samples = np.frombuffer(chunk.data, dtype="<i2")
        else:
            samples = to_s16(self._decoder.decode(chunk.data))
        self._script.audio.append(samples)
        self._samples += len(samples)
        if np.abs(samples).max() > 1000:
            if self._speech_end is None:
                await self._event(conversation_pb2.TURN_EVENT_KIND_USER_SPEECH_STARTED)
            self._speech_end = self._samples
        elif (
            self._speech_end is not None
            and self._samples - self._speech_end >= SILENCE_SECONDS * self._rate
        ):
            await self._turn_ended()

    async def _turn_ended(self) -> None:
        await self._event(conversation_pb2.TURN_EVENT_KIND_USER_TURN_ENDED)
        if not self._script.words:
            await self._event(conversation_pb2.TURN_EVENT_KIND_NOTHING_SAID)
        elif self._script.answer:
            await self._answer()
        self._speech_end = None

    async def _answer(self) -> None:
        index = 2 * self._script.answers
        self._script.answers += 1
        self._utterance = f"utterance-{index}"
        text = conversation_pb2.UserText(turn_index=index, text="What is it?", final=True)
        await self._send(user_text=text)
        for token, word in enumerate(("It", " is", " this.")):
            await self._send(
                assistant_text=conversation_pb2.AssistantText(
                    utterance_id=self._utterance, token_index=token, text=word
                )
            )
        count = int(ANSWER_SECONDS * self._output_rate)
        half = count // 2
        sound = np.full(count, 8000, dtype="<i2")
        if self._opus_out:
            await self._send_packets(tone(600, ANSWER_SECONDS, self._output_rate))
            return
        for first, piece, final in ((0, sound[:half], False), (half, sound[half:], True)):
            await self._send(
                audio=conversation_pb2.AudioOutput(
                    utterance_id=self._utterance,
                    first_sample=first,
                    data=piece.tobytes(),
                    final=final,
                )
            )

    async def _send_packets(self, samples: np.ndarray) -> None:
        encoder = OpusEncoder(self._output_rate)
        packets = encoder.encode(samples, last=True)
        for place, packet in enumerate(packets):
            await self._send(
                audio=conversation_pb2.AudioOutput(
                    utterance_id=self._utterance,
                    first_sample=place * encoder.packet_samples,
                    data=packet,
                    final=place == len(packets) - 1,
                )
            )

    async def obey(self, request: ConverseRequest) -> None:
        """Carries out the one turn 7 that it knows, refuses the others; calls a tool if asked."""
        answer: dict[str, object] = {}
        match request.WhichOneof("message"):
            case "update_settings":
                answer["settings_updated"] = conversation_pb2.SettingsUpdated(
                    settings=request.update_settings.settings
                )
            case "add_turn":
                turn = conversation_pb2.Turn(
                    index=7, role=request.add_turn.role, text=request.add_turn.text
                )
                answer["turn_added"] = conversation_pb2.TurnAdded(turn=turn)
            case "tool_result":
                turn = conversation_pb2.Turn(
                    index=9, role=common_pb2.ROLE_TOOL, text=request.tool_result.output
                )
                answer["turn_added"] = conversation_pb2.TurnAdded(turn=turn)
            case "delete_turn" if request.delete_turn.turn_index == 7:
                answer["turn_deleted"] = conversation_pb2.TurnDeleted(turn_index=7)
            case "create_response":
                answer["tool_call"] = conversation_pb2.ToolCall(
                    call_id="call-1", name="clock", arguments_json='{"city": "Rome"}', turn_index=8
                )
            case "clear_input":
                answer["event"] = conversation_pb2.TurnEvent(
                    kind=conversation_pb2.TURN_EVENT_KIND_INPUT_CLEARED
                )
            case kind:
                answer["refused"] = conversation_pb2.Refused(
                    reason="NO_TURN", message="there is no such turn", field=kind
                )
        await self._send(request_id=request.request_id, **answer)

    async def played(self, playback: conversation_pb2.Playback) -> None:
        if not playback.finished or playback.utterance_id != self._utterance:
            return
        report = conversation_pb2.TurnReport(
            utterance_id=self._utterance,
            user_turn_index=2 * (self._script.answers - 1),
            outcome=conversation_pb2.TURN_OUTCOME_COMPLETED,
            heard_text="It is this.",
            generated_text="It is this.",
            first_audio_ms=SILENCE_SECONDS * 1000,
            token_count=3,
            generate_ms=100,
            audio_ms=int(ANSWER_SECONDS * 1000),
            token2wav_ms=70,
            waterfall=[conversation_pb2.Span(hop="endpointing", duration_ms=200)],
        )
        self._utterance = ""
        await self._send(report=report)

    async def _event(self, kind: conversation_pb2.TurnEventKind.ValueType) -> None:
        position = self._speech_end if self._speech_end is not None else self._samples
        audio_ms = position * 1000 // self._rate
        await self._send(event=conversation_pb2.TurnEvent(kind=kind, audio_ms=audio_ms))

    async def _send(self, **message) -> None:
        await self._context.write(ConverseResponse(sequence=self._sequence, **message))
        self._sequence += 2 if self._script.skip_a_number else 1


@asynccontextmanager
async def serving(script: Script, port: int = 0) -> AsyncIterator[int]:
    """Serves on a port (0: a free one), which it gives."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_ConversationServiceServicer_to_server(script, server)
    readiness = Readiness()
    readiness.mark_started()
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(readiness, []), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        readiness.mark_stopping()
        await server.stop(0)
        # gRPC's server object must not outlive the event loop.
        del server
        gc.collect()
        await asyncio.sleep(0)
