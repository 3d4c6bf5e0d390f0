"""One-shot speech and listening: a text to audio, a recording to its words."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable

import grpc

from minmo.rpc import metrics
from minmo.rpc.errors import StatusError, deadline_exceeded, invalid_argument, parse, unavailable
from minmo.v1 import common_pb2, conversation_pb2, encoder_pb2, voice_decoder_pb2
from minmo.v1.encoder_pb2_grpc import EncoderServiceStub
from minmo.v1.voice_decoder_pb2_grpc import VoiceDecoderServiceStub
from services.orchestrator import checks
from services.orchestrator.query import NOTHING
from services.orchestrator.reading_aloud import Reader
from services.orchestrator.turn_taking import SAMPLE_RATE_HZ, milliseconds, samples
from services.orchestrator.voices import Voices

_WORDS = re.compile(r"\s*\S+|\s+")
_TOKENS_A_MESSAGE = 64
_STEP_SECONDS = 0.25
_PAUSE_MS = 350.0
_LONGEST_MS = 20_000.0
_MARGIN_MS = 200.0


async def say(
    channel: grpc.aio.Channel,
    request: conversation_pb2.SayRequest,
    *,
    voices: Voices,
    reader: Reader,
    max_characters: int,
    deadline_seconds: float,
) -> conversation_pb2.SayResponse:
    """Speaks a text. Where the voice reads the LLM, the LLM reads text and instruction before it.

    Args:
        channel: to the voice decoder.
        request: what to say, and how.
        voices: what the voices are.
        reader: the LLM.
        max_characters: longest text.
        deadline_seconds: longest time for all of it.

    Raises:
        StatusError: INVALID_ARGUMENT, the text is empty, too long, or nothing in it can be said;
            DEADLINE_EXCEEDED, it took too long.
    """
    _check_say(request, max_characters)
    known = await voices.known()
    try:
        async with asyncio.timeout(deadline_seconds):
            query, tokens, instruct = NOTHING, _written(request.text), request.instruct
            if known.reads_hidden_states:
                query, tokens = await reader.read(
                    request.text, request.instruct, known.query_positions
                )
                instruct = ""
            config = voice_decoder_pb2.DecodeConfig(
                format=request.format,
                voice=request.voice,
                instruct=instruct,
                query_embeddings=query.embeddings,
                query_hidden_states=query.hidden_states,
            )
            audio, done = await _spoken(channel, config, tokens)
    except TimeoutError:
        raise deadline_exceeded(
            f"the text was not spoken within {deadline_seconds:g} s",
            limit=f"{deadline_seconds:g} s",
        ) from None
    if not audio:
        reason = done.unspoken_reason or "nothing in it can be said"
        raise invalid_argument("text", reason, reason="TEXT_UNSPEAKABLE")
    frames = len(audio) // checks.frame_bytes(request.format)
    return conversation_pb2.SayResponse(
        format=request.format,
        audio=bytes(audio),
        audio_ms=round(frames * 1000 / request.format.sample_rate_hz),
        compute_ms=done.compute_ms,
    )


def _check_say(request: conversation_pb2.SayRequest, max_characters: int) -> None:
    """Refuses what cannot be spoken."""
    if not request.text.strip():
        raise invalid_argument("text", "is empty")
    if len(request.text) > max_characters:
        raise invalid_argument(
            "text",
            f"has {len(request.text)} characters; send it in parts",
            limit=f"{max_characters} characters",
            reason="TEXT_TOO_LONG",
        )
    checks.instruct(request.instruct, "instruct")
    checks.audio_format(request.format, "format", channels=1)


def _written(text: str) -> list[voice_decoder_pb2.TextTokens]:
    """A text as a voice reads it that reads text only."""
    words = [voice_decoder_pb2.TextToken(text=word) for word in _WORDS.findall(text)]
    return [
        voice_decoder_pb2.TextTokens(tokens=words[first : first + _TOKENS_A_MESSAGE])
        for first in range(0, len(words), _TOKENS_A_MESSAGE)
    ]


async def _spoken(
    channel: grpc.aio.Channel,
    config: voice_decoder_pb2.DecodeConfig,
    tokens: Iterable[voice_decoder_pb2.TextTokens],
) -> tuple[bytearray, voice_decoder_pb2.DecodeDone]:
    """The audio of tokens, and what the voice says at its end."""

    async def requests() -> AsyncIterator[voice_decoder_pb2.DecodeRequest]:
        yield voice_decoder_pb2.DecodeRequest(config=config)
        for some in tokens:
            yield voice_decoder_pb2.DecodeRequest(tokens=some)
        yield voice_decoder_pb2.DecodeRequest(end=voice_decoder_pb2.DecodeEnd())

    audio, done = bytearray(), voice_decoder_pb2.DecodeDone()
    call = VoiceDecoderServiceStub(channel).Decode(requests())
    try:
        async for response in call:
            audio += response.audio.data
            if response.HasField("done"):
                done = response.done
    except grpc.RpcError as failure:
        status = parse(failure)
        metrics.count_hop_error("voice_decoder", status.code)
        raise status from None
    finally:
        call.cancel()
    return audio, done


async def transcribe(
    channel: grpc.aio.Channel,
    request: conversation_pb2.TranscribeRequest,
    *,
    max_seconds: float,
    deadline_seconds: float,
) -> conversation_pb2.TranscribeResponse:
    """Writes down a recording, stretch of speech by stretch.

    Args:
        channel: to the encoder service.
        request: the recording.
        max_seconds: longest recording.
        deadline_seconds: longest wait for the encoder's next answer.

    Raises:
        StatusError: INVALID_ARGUMENT, the audio is empty, too long, or in a bad format.
    """
    began = time.monotonic()
    checks.audio_format(request.format, "format", channels=2)
    frame = checks.frame_bytes(request.format)
    if not request.audio:
        raise invalid_argument("audio", "is empty")
    if len(request.audio) % frame:
        raise invalid_argument(
            "audio",
            f"has {len(request.audio)} bytes, which is no whole number of frames of {frame} bytes",
        )
    seconds = len(request.audio) / frame / request.format.sample_rate_hz
    if seconds > max_seconds:
        raise invalid_argument(
            "audio",
            f"is {seconds:.1f} s long; send it in parts",
            limit=f"{max_seconds:g} s",
            reason="AUDIO_TOO_LONG",
        )
    recording = _Recording(channel, request, deadline_seconds)
    try:
        segments = await recording.segments()
    except grpc.RpcError as failure:
        status = parse(failure)
        metrics.count_hop_error("encoder", status.code)
        raise status from None
    return conversation_pb2.TranscribeResponse(
        text=" ".join(segment.text for segment in segments),
        segments=segments,
        audio_ms=round(seconds * 1000),
        elapsed_ms=(time.monotonic() - began) * 1000,
    )


class _Recording:
    """A recording on its way through the encoder: a step of audio, its activity, its words."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        request: conversation_pb2.TranscribeRequest,
        deadline_seconds: float,
    ) -> None:
        self._request = request
        self._deadline = deadline_seconds
        self._call = EncoderServiceStub(channel).Encode()
        self._segments: list[conversation_pb2.TranscriptSegment] = []
        self._open: int | None = None
        self._done_until = 0

    async def segments(self) -> list[conversation_pb2.TranscriptSegment]:
        """All stretches of speech with their words."""
        audio_format = self._request.format
        step = round(_STEP_SECONDS * audio_format.sample_rate_hz) * checks.frame_bytes(audio_format)
        activity = encoder_pb2.VoiceActivity()
        try:
            config = encoder_pb2.EncodeConfig(format=audio_format)
            with metrics.timed(metrics.HOP_ENCODER.labels("open")):
                await self._call.write(encoder_pb2.EncodeRequest(config=config))
                await self._answer("ready")
            for sequence, first in enumerate(range(0, len(self._request.audio), step)):
                chunk = common_pb2.AudioChunk(
                    sequence=sequence, data=self._request.audio[first : first + step]
                )
                with metrics.timed(metrics.HOP_ENCODER.labels("frame")):
                    await self._call.write(encoder_pb2.EncodeRequest(audio=chunk))
                    activity = (await self._answer("activity")).activity
                await self._follow(activity)
            if self._open is not None:
                await self._recognise(self._open, activity.end_sample)
        finally:
            self._call.cancel()
        return self._segments

    async def _follow(self, activity: encoder_pb2.VoiceActivity) -> None:
        if self._open is None and activity.speech_end_sample > self._done_until:
            self._open = max(activity.speech_start_sample, self._done_until)
        if self._open is None:
            return
        silence = milliseconds(activity.end_sample - activity.speech_end_sample)
        length = milliseconds(activity.end_sample - self._open)
        if (not activity.speaking and silence >= _PAUSE_MS) or length >= _LONGEST_MS:
            end = activity.end_sample if activity.speaking else activity.speech_end_sample
            await self._recognise(self._open, end)
            self._open = activity.end_sample if activity.speaking else None

    async def _recognise(self, start: int, end: int) -> None:
        margin = samples(_MARGIN_MS)
        first = max(start - margin, self._done_until)
        question = encoder_pb2.Recognize(
            segment_id=len(self._segments) + 1, start_sample=first, end_sample=end
        )
        with metrics.timed(metrics.HOP_ENCODER.labels("transcript")):
            await self._call.write(encoder_pb2.EncodeRequest(recognize=question))
            transcript = (await self._answer("transcript")).transcript
        self._done_until = end
        if transcript.text.strip():
            self._segments.append(
                conversation_pb2.TranscriptSegment(
                    start_ms=start * 1000 // SAMPLE_RATE_HZ,
                    end_ms=end * 1000 // SAMPLE_RATE_HZ,
                    text=transcript.text.strip(),
                )
            )

    async def _answer(self, kind: str) -> encoder_pb2.EncodeResponse:
        try:
            response = await asyncio.wait_for(self._call.read(), self._deadline)
        except TimeoutError:
            raise unavailable(f"the encoder has not answered for {self._deadline:g} s") from None
        if not isinstance(response, encoder_pb2.EncodeResponse):
            raise StatusError(await self._call.code(), await self._call.details() or "")
        if response.WhichOneof("message") != kind:
            raise unavailable(f"the encoder answered {response.WhichOneof('message')}, not {kind}")
        return response
