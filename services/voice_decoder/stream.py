"""One call of Decode: tokens go in as they come, a phrase of audio comes out at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor

from minmo.audio.pcm import PcmFormat
from minmo.engine.voice import (
    Piece,
    SpeakingError,
    TextToken,
    TokenError,
    Utterance,
    Voice,
    VoiceBusyError,
)
from minmo.rpc import metrics, tracing
from minmo.rpc.errors import deadline_exceeded, internal, invalid_argument
from minmo.rpc.writing import write_within
from minmo.settings import VoiceDecoderSettings
from minmo.v1 import voice_decoder_pb2
from services.voice_decoder import checks
from services.voice_decoder.output import AudioOutput

Requests = AsyncIterator[voice_decoder_pb2.DecodeRequest]
Write = Callable[[voice_decoder_pb2.DecodeResponse], Awaitable[None]]


class DecodeStream:
    """Speaks one utterance.

    The voice works on the next phrase only once the one before is written: a caller that does not
    read stops it.

    Args:
        settings: limits and deadlines.
        voices: by name, the default first.
        executor: where voices compute.
        write: sends an answer; waits while the caller does not read.
    """

    def __init__(
        self,
        settings: VoiceDecoderSettings,
        voices: Mapping[str, Voice],
        executor: Executor,
        write: Write,
    ) -> None:
        self._settings = settings
        self._voices = voices
        self._executor = executor
        self._write_response = write
        self._grew = asyncio.Event()
        self._ended = False
        self._token_count = 0
        self._characters = 0
        self._first_token_time: float | None = None
        self._has_spoken = False
        self._compute_seconds = 0.0

    async def run(self, requests: Requests) -> None:
        """Serves the call to its end.

        Raises:
            StatusError: what is wrong with a request, or that the caller neither sends nor reads.
        """
        config = await self._read_config(requests)
        audio_format = checks.audio_format(config.format)
        voice = checks.voice_named(config.voice, self._voices)
        metrics.VOICE_UTTERANCES.inc()
        utterance = checks.opened(voice, config)
        try:
            await self._serve(requests, config, audio_format, voice, utterance)
        finally:
            # Whatever has happened: what is still computed for it stops.
            utterance.close()

    async def _serve(
        self,
        requests: Requests,
        config: voice_decoder_pb2.DecodeConfig,
        audio_format: PcmFormat,
        voice: Voice,
        utterance: Utterance,
    ) -> None:
        output = AudioOutput(
            voice.sample_rate_hz, audio_format, config.first_token, config.first_sample
        )
        self._token_count = config.first_token
        await self._write(
            ready=voice_decoder_pb2.DecodeReady(
                voice=voice.name,
                reads_hidden_states=voice.reads_hidden_states,
                hidden_width=voice.hidden_width,
            )
        )
        reading = asyncio.create_task(self._read(requests, voice, utterance))
        speaking = asyncio.create_task(self._speak(utterance, voice.sample_rate_hz, output))
        try:
            await asyncio.wait({reading, speaking}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            await speaking
        finally:
            reading.cancel()
            speaking.cancel()
            await asyncio.gather(reading, speaking, return_exceptions=True)

    async def _read_config(self, requests: Requests) -> voice_decoder_pb2.DecodeConfig:
        deadline = self._settings.config_deadline_seconds
        request = await _next(requests, deadline, "its configuration")
        if request is None or not request.HasField("config"):
            given = "nothing" if request is None else request.WhichOneof("message") or "nothing"
            raise invalid_argument("config", f"the first message of a stream, was {given}")
        return request.config

    async def _read(self, requests: Requests, voice: Voice, utterance: Utterance) -> None:
        """Hands tokens to the utterance until the caller sends no more."""
        while True:
            deadline = None if self._ended else self._settings.text_deadline_seconds
            request = await _next(requests, deadline, "tokens or their end")
            if request is None:
                break
            kind = request.WhichOneof("message")
            if self._ended:
                raise invalid_argument(kind or "message", "came after `end`, the last message")
            match kind:
                case "tokens":
                    self._take(request.tokens, voice, utterance)
                case "end":
                    self._ended = True
                    utterance.end()
                case "config":
                    raise invalid_argument("config", "came twice; it is the first message only")
                case _:
                    raise invalid_argument("message", "is empty; send tokens or end")
            self._grew.set()
        if not self._ended:
            raise invalid_argument("end", "is missing: the caller closed the stream without it")

    def _take(
        self, message: voice_decoder_pb2.TextTokens, voice: Voice, utterance: Utterance
    ) -> None:
        # A token without text counts as well: nothing that a caller sends is unbounded.
        self._characters += sum(max(1, len(token.text)) for token in message.tokens)
        limit = self._settings.max_text_characters
        if self._characters > limit:
            raise invalid_argument(
                "tokens",
                f"the text of the utterance has {self._characters} characters or more; "
                "speak it as several utterances",
                limit=f"{limit} characters",
                reason="TEXT_TOO_LONG",
            )
        hidden_states = checks.token_hidden_states(message, voice)
        if self._first_token_time is None:
            self._first_token_time = time.monotonic()
        self._token_count += len(message.tokens)
        try:
            utterance.push(
                [TextToken(token.id, token.text) for token in message.tokens], hidden_states
            )
        except TokenError as error:
            raise invalid_argument("tokens", str(error)) from None

    async def _speak(self, utterance: Utterance, rate_hz: int, output: AudioOutput) -> None:
        """Writes audio as it is made, then `done`."""
        while True:
            complete = self._ended
            self._grew.clear()
            piece = await self._step(utterance, rate_hz)
            if piece is not None:
                for audio in output.add(piece):
                    if not self._has_spoken:
                        audio.token2wav_ms = piece.token2wav_seconds * 1000
                    await self._write(audio=audio)
            elif complete:
                break
            else:
                # `_read` has the deadline of this wait, and sees the end of the stream.
                await self._grew.wait()
        for audio in output.finish():
            await self._write(audio=audio)
        await self._write(
            done=voice_decoder_pb2.DecodeDone(
                sample_count=output.sample_count,
                token_count=self._token_count,
                compute_ms=self._compute_seconds * 1000,
                unspoken_reason=utterance.unspoken_reason,
            )
        )

    async def _step(self, utterance: Utterance, rate_hz: int) -> Piece | None:
        loop, began = asyncio.get_running_loop(), time.monotonic()
        try:
            piece, seconds = await loop.run_in_executor(self._executor, _timed_step, utterance)
        except VoiceBusyError as error:
            raise checks.busy(error) from None
        except SpeakingError as error:
            metrics.VOICE_FAILED.inc()
            raise internal(str(error)) from None
        self._compute_seconds += seconds
        if piece is not None and len(piece.samples):
            audio_seconds = len(piece.samples) / rate_hz
            metrics.VOICE_AUDIO.inc(audio_seconds)
            metrics.VOICE_REAL_TIME.observe(seconds / audio_seconds)
            tracing.begin("piece", began=began, audio_ms=1000 * audio_seconds).end()
        return piece

    async def _write(
        self,
        *,
        ready: voice_decoder_pb2.DecodeReady | None = None,
        audio: voice_decoder_pb2.DecodedAudio | None = None,
        done: voice_decoder_pb2.DecodeDone | None = None,
    ) -> None:
        if audio is not None and self._first_token_time is not None and not self._has_spoken:
            metrics.VOICE_FIRST_AUDIO.observe(time.monotonic() - self._first_token_time)
            tracing.begin("first_audio", began=self._first_token_time).end()
            self._has_spoken = True
        response = voice_decoder_pb2.DecodeResponse(ready=ready, audio=audio, done=done)
        await write_within(self._settings.read_deadline_seconds, self._write_response, response)


def _timed_step(utterance: Utterance) -> tuple[Piece | None, float]:
    began = time.perf_counter()
    piece = utterance.step()
    return piece, time.perf_counter() - began


async def _next(
    requests: Requests, deadline_seconds: float | None, awaited: str
) -> voice_decoder_pb2.DecodeRequest | None:
    """The caller's next message; None if it has closed its side.

    Raises:
        StatusError: DEADLINE_EXCEEDED, none came in time.
    """
    try:
        async with asyncio.timeout(deadline_seconds):
            return await anext(requests, None)
    except TimeoutError:
        raise deadline_exceeded(
            f"the caller has not sent {awaited} for {deadline_seconds:g} s",
            limit=f"{deadline_seconds:g} s",
        ) from None
