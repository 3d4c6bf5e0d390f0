"""One utterance of the assistant, from its first token to its last sample heard.

The LLM's tokens go to the voice decoder as they come, its audio to the client as it comes. A voice
decoder that is lost is replaced: the next one goes on after the last mark whose audio was sent.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeAlias

import grpc
import structlog

from minmo.rpc import metrics, tracing
from minmo.rpc.errors import DRAINING, StatusError, parse, status_of, unavailable
from minmo.rpc.metadata import call_metadata
from minmo.v1 import common_pb2, llm_pb2, voice_decoder_pb2
from minmo.v1.voice_decoder_pb2_grpc import VoiceDecoderServiceStub
from services.orchestrator.delivery import Delivery
from services.orchestrator.mind import Context, Sampling
from services.orchestrator.query import Query
from services.orchestrator.retry import LOST, Outage
from services.orchestrator.tool_calls import CallParser, Found
from services.orchestrator.waterfall import Waterfall

if TYPE_CHECKING:
    from minmo.v1.voice_decoder_pb2_grpc import VoiceDecoderServiceAsyncStub

log = structlog.get_logger()

FIRST_TEXT_TOKENS = 5
"""Text tokens of a group (paper, section 3.1): the latency model waits for so many."""
_TOKENS_A_MESSAGE = 64
_Call: TypeAlias = (
    "grpc.aio.StreamStreamCall[voice_decoder_pb2.DecodeRequest, voice_decoder_pb2.DecodeResponse]"
)
_LATE_PLAYBACK_SECONDS = 2.0


class UtteranceState(Enum):
    """The life of an utterance."""

    THINKING = auto()
    """No audio yet."""
    SPEAKING = auto()
    """Audio is being sent."""
    SENT = auto()
    """All audio was sent; it is being played."""
    HEARD = auto()
    """Played to its end."""
    STOPPED = auto()
    """Interrupted, or it failed."""


@dataclass(frozen=True)
class Voice:
    """How to speak, and where.

    Attributes:
        channel: to the voice decoder.
        audio_format: of what it is to send.
        name: of the voice; empty is the default one.
        instruct: how to speak, in words.
        deadline_seconds: longest wait for its next audio.
        reads_hidden_states: whether it needs the LLM's.
        query_positions: positions of the user's words that it reads first; 0 for none.
    """

    channel: grpc.aio.Channel
    audio_format: common_pb2.AudioFormat
    name: str
    instruct: str
    deadline_seconds: float
    reads_hidden_states: bool
    query_positions: int = 0


@dataclass(frozen=True)
class Audio:
    """A piece of the utterance's audio; `first_sample` counts from its start."""

    first_sample: int
    data: bytes
    marks: list[common_pb2.Mark]
    final: bool = False


class Utterance:
    """An answer that is being made, sent and heard.

    Args:
        utterance_id: names it to the client.
        session_id: for the logs of the other services.
        voice: how to speak.
        reports_playback: whether the client tells how far it has played.
        on_token: gets every token's number and text.
        on_audio: gets every piece of audio.
        on_outage: told True when the voice decoder was lost, False when it is back.
        waterfall: gets the stages of this utterance.
        calls: finds calls of tools in what the LLM writes; None if there are no tools.
        on_call: gets every call that was found, as it was written.
        only_calls: nothing is said: the answer ends with its first call.
        text_only: it is written, not spoken: what was made counts as heard.
    """

    def __init__(
        self,
        utterance_id: str,
        session_id: str,
        voice: Voice,
        *,
        reports_playback: bool,
        on_token: Callable[[int, str], Awaitable[None]],
        on_audio: Callable[[Audio], Awaitable[None]],
        on_outage: Callable[[bool], Awaitable[None]],
        waterfall: Waterfall,
        calls: CallParser | None = None,
        on_call: Callable[[str], Awaitable[None]] | None = None,
        only_calls: bool = False,
        text_only: bool = False,
    ) -> None:
        self.utterance_id = utterance_id
        self.state = UtteranceState.THINKING
        self.waterfall = waterfall
        self.voice_compute_ms = 0.0
        self.token2wav_ms = 0.0
        """Of the first audio, as the voice tells."""
        self.unspoken_reason = ""
        self.generate_seconds = 0.0
        self.made_count = 0
        """Tokens that the LLM made, those of calls included."""
        self._calls = calls
        self._on_call = on_call
        self._only_calls = only_calls
        self._text_only = text_only
        self._held: deque[llm_pb2.Token] = deque()
        self._session_id = session_id
        self._voice = voice
        self._reports_playback = reports_playback
        self._on_token = on_token
        self._on_audio = on_audio
        self._outage = Outage(voice.deadline_seconds, lambda problem: on_outage(bool(problem)))
        self._stub: VoiceDecoderServiceAsyncStub = VoiceDecoderServiceStub(voice.channel)
        width = 4 if voice.audio_format.encoding == common_pb2.AUDIO_ENCODING_PCM_F32LE else 2
        self._frame_bytes = width
        self._texts: list[str] = []
        self._ids: list[int] = []
        self._hidden: list[bytes] = []
        self._marks: list[tuple[int, int]] = []
        self._samples = 0
        self._played = 0
        self._thought = False
        self._grew = asyncio.Condition()
        self._playback_over = asyncio.Event()
        self._progress = time.monotonic()
        self._tokens_sent: float | None = None
        self._delivery = Delivery(voice.audio_format.sample_rate_hz)

    # --- what is known of it

    @property
    def token_count(self) -> int:
        """Tokens that the LLM made to be said."""
        return len(self._texts)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    @property
    def sample_count(self) -> int:
        """Samples sent so far."""
        return self._samples

    @property
    def played_samples(self) -> int:
        """Samples that were heard, as far as is known."""
        return self._heard_samples()

    @property
    def audio_ms(self) -> int:
        """Audio that was heard, in milliseconds."""
        return round(self._heard_samples() * 1000 / self._voice.audio_format.sample_rate_hz)

    @property
    def audible(self) -> bool:
        """Whether some of its audio was sent."""
        return self.state is not UtteranceState.THINKING and not self._text_only

    def heard_tokens(self) -> int:
        """Tokens that the user has heard, or read."""
        if self.state is UtteranceState.HEARD or self._text_only:
            return self.token_count
        heard = self._heard_samples()
        place = bisect_right(self._marks, heard, key=lambda mark: mark[0])
        return self._marks[place - 1][1] if place else 0

    @property
    def heard_text(self) -> str:
        """What the user has heard."""
        return "".join(self._texts[: self.heard_tokens()])

    def played(self, samples: int, *, finished: bool) -> None:
        """The client has played so many samples; `finished` if it will play no more."""
        self._played = max(self._played, min(samples, self._samples))
        if not finished and self.state is UtteranceState.SPEAKING:
            self._delivery.played(samples, time.monotonic())
        if finished or (self.state is UtteranceState.SENT and self._played >= self._samples):
            self._playback_over.set()

    def cut(self, samples: int) -> None:
        """So many samples of it were heard, whatever it seemed."""
        self.state = UtteranceState.STOPPED
        self._reports_playback = True
        self._played = min(samples, self._samples)

    def assume_played(self) -> None:
        """What was sent counts as heard: the client can report no more."""
        self._reports_playback = False
        self._played = self._samples
        self._playback_over.set()

    async def wait_playback_stopped(self, seconds: float) -> None:
        """Waits until the client has told how far it played, at most `seconds`."""
        if self._reports_playback and self._samples:
            try:
                async with asyncio.timeout(seconds):
                    await self._playback_over.wait()
            except TimeoutError:
                log.info("no playback report", utterance=self.utterance_id)

    def _heard_samples(self) -> int:
        if self._reports_playback or self.waterfall.first_audio is None:
            return self._played
        elapsed = time.monotonic() - self.waterfall.first_audio
        estimate = round(elapsed * self._voice.audio_format.sample_rate_hz)
        return max(self._played, min(estimate, self._samples))

    # --- its life

    async def run(
        self, context: Context, max_tokens: int, sampling: Sampling, query: Query
    ) -> None:
        """Thinks, speaks, and waits until all was heard.

        Cancelling it stops LLM and voice within one step.

        Args:
            context: what the LLM has read; it stands where the answer begins.
            max_tokens: of the answer.
            sampling: how they are chosen.
            query: what the voice reads first; one that takes a lost one's place reads it too.

        Raises:
            StatusError: the LLM or the voice could not be had in time.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._think(context, max_tokens, sampling))
                if not (self._text_only or self._only_calls):
                    group.create_task(self._speak(query))
        except ExceptionGroup as failures:
            self.state = UtteranceState.STOPPED
            raise _first(failures) from None
        except BaseException:
            self.state = UtteranceState.STOPPED
            raise
        self.state = UtteranceState.SENT
        try:
            await self._wait_heard()
        except BaseException:
            self.state = UtteranceState.STOPPED
            raise
        self.state = UtteranceState.HEARD

    async def _think(self, context: Context, max_tokens: int, sampling: Sampling) -> None:
        began = time.monotonic()
        first: float | None = None
        tokens = context.generate(
            max_tokens, sampling, hidden_states=self._voice.reads_hidden_states
        )
        try:
            async for token in tokens:
                now = time.monotonic()
                if first is None:
                    first = now
                    self.waterfall.add("first_token", began, now)
                if await self._take(token):
                    break
                if self.token_count == FIRST_TEXT_TOKENS:
                    self.waterfall.add("first_text_to_voice", first, now)
        finally:
            await tokens.aclose()
        if self._calls is not None:
            await self._took(self._calls.end())
        if first is not None:
            self.generate_seconds = time.monotonic() - first
            if self.waterfall.ended("first_text_to_voice") is None:
                self.waterfall.add("first_text_to_voice", first)
        async with self._grew:
            self._thought = True
            self._grew.notify_all()

    async def _take(self, token: llm_pb2.Token) -> bool:
        """Says a token, or holds it back where it may be of a call; whether that was the last."""
        self.made_count += 1
        self._progress = time.monotonic()
        self._held.append(token)
        if self._calls is None:
            return await self._took(Found(self.made_count))
        return await self._took(self._calls.add(token.text))

    async def _took(self, found: Found) -> bool:
        while self._held and self.token_count < found.said and not self._only_calls:
            token = self._held.popleft()
            async with self._grew:
                self._ids.append(token.id)
                self._texts.append(token.text)
                if self._voice.reads_hidden_states:
                    self._hidden.append(token.hidden_state)
                self._grew.notify_all()
            await self._on_token(self.token_count - 1, token.text)
        for call in found.calls[:1] if self._only_calls else found.calls:
            if self._on_call is not None:
                await self._on_call(call)
        return found.over or (self._only_calls and bool(found.calls))

    async def _speak(self, query: Query) -> None:
        while True:
            try:
                await self._speak_once(query)
                return
            except grpc.RpcError as failure:
                status = parse(failure)
            except StatusError as error:
                status = error
            if status.reason != DRAINING:
                metrics.count_hop_error("voice_decoder", status.code)
            if status.code not in LOST:
                raise status
            log.info("the voice decoder is left", reason=status.reason, error=str(status))
            if not await self._outage.wait(str(status)):
                raise unavailable(
                    f"the voice could not be had within {self._voice.deadline_seconds:g} s: "
                    f"{status}",
                    reason="VOICE_UNAVAILABLE",
                )

    async def _speak_once(self, query: Query) -> None:
        place = bisect_right(self._marks, self._samples, key=lambda mark: mark[0])
        first_token = self._marks[place - 1][1] if place else 0
        config = voice_decoder_pb2.DecodeConfig(
            format=self._voice.audio_format,
            voice=self._voice.name,
            # A voice that reads the LLM finds the instruction in the query.
            instruct="" if self._voice.reads_hidden_states else self._voice.instruct,
            query_embeddings=query.embeddings,
            query_hidden_states=query.hidden_states,
            first_token=first_token,
            first_sample=self._samples,
        )
        began, self._tokens_sent = time.monotonic(), None
        with tracing.span("voice_decoder.decode", kind="client"):
            # Within the span, so that the call carries it.
            call = self._stub.Decode(
                self._requests(config, first_token), metadata=call_metadata(self._session_id)
            )
            await self._hear(call, began)

    async def _hear(self, call: _Call, began: float) -> None:
        """Passes on what the voice says, to its end."""
        try:
            while True:
                response = await self._next(call)
                kind = response.WhichOneof("message")
                if kind == "ready":
                    _observe("open", began)
                elif kind == "audio":
                    self._progress = time.monotonic()
                    await self._outage.over()
                    if self._tokens_sent is not None:
                        _observe("first_audio", self._tokens_sent)
                        self._tokens_sent = None
                    await self._send(response.audio)
                elif kind == "done":
                    await self._outage.over()
                    self.voice_compute_ms += response.done.compute_ms
                    self.unspoken_reason = response.done.unspoken_reason
                    await self._on_audio(Audio(self._samples, b"", [], final=True))
                    return
        finally:
            call.cancel()

    async def _next(
        self,
        call: _Call,
    ) -> voice_decoder_pb2.DecodeResponse:
        """The voice's next answer; UNAVAILABLE if it is silent too long after its last token."""
        read = asyncio.ensure_future(call.read())
        try:
            while True:
                done, _ = await asyncio.wait([read], timeout=self._voice.deadline_seconds)
                if done:
                    break
                if time.monotonic() - self._progress > self._voice.deadline_seconds:
                    raise unavailable(
                        f"the voice has not answered for {self._voice.deadline_seconds:g} s"
                    )
        finally:
            read.cancel()
        response = read.result()
        if not isinstance(response, voice_decoder_pb2.DecodeResponse):
            status = await status_of(call)
            if status.code is grpc.StatusCode.OK:
                status = unavailable("the voice ended early")
            raise status from None
        return response

    async def _requests(
        self, config: voice_decoder_pb2.DecodeConfig, first_token: int
    ) -> AsyncIterator[voice_decoder_pb2.DecodeRequest]:
        yield voice_decoder_pb2.DecodeRequest(config=config)
        sent = first_token
        while True:
            async with self._grew:
                while not (self.token_count > sent or self._thought):
                    await self._grew.wait()
            upto = min(self.token_count, sent + _TOKENS_A_MESSAGE)
            if upto > sent:
                if sent == first_token:
                    self._tokens_sent = time.monotonic()
                yield voice_decoder_pb2.DecodeRequest(tokens=self._tokens(sent, upto))
                sent = upto
            elif self._thought:
                yield voice_decoder_pb2.DecodeRequest(end=voice_decoder_pb2.DecodeEnd())
                return

    def _tokens(self, first: int, upto: int) -> voice_decoder_pb2.TextTokens:
        hidden = self._hidden[first:upto]
        return voice_decoder_pb2.TextTokens(
            tokens=[
                voice_decoder_pb2.TextToken(id=self._ids[place], text=self._texts[place])
                for place in range(first, upto)
            ],
            hidden_states=common_pb2.FloatMatrix(
                data=b"".join(hidden), rows=len(hidden), columns=len(hidden[0]) // 4
            )
            if hidden
            else None,
        )

    async def _send(self, audio: voice_decoder_pb2.DecodedAudio) -> None:
        if self.waterfall.first_audio is None and audio.data:
            self.state = UtteranceState.SPEAKING
            self.waterfall.first_audio = time.monotonic()
            self.token2wav_ms = audio.token2wav_ms
            began = self.waterfall.ended("first_text_to_voice")
            if began is None:
                began = self.waterfall.ended("first_token")
            if began is not None:
                self.waterfall.add("first_audio", began)
        self._marks += [(mark.sample, mark.token_count) for mark in audio.marks]
        count = len(audio.data) // self._frame_bytes
        if count:
            self._delivery.sends(audio.first_sample, count, time.monotonic())
        self._samples = audio.first_sample + count
        await self._on_audio(Audio(audio.first_sample, audio.data, list(audio.marks)))

    async def _wait_heard(self) -> None:
        if not self._samples or self.waterfall.first_audio is None:
            return
        if self._played >= self._samples:
            return
        rate = self._voice.audio_format.sample_rate_hz
        remaining = self.waterfall.first_audio + self._samples / rate - time.monotonic()
        late = _LATE_PLAYBACK_SECONDS if self._reports_playback else 0.0
        try:
            async with asyncio.timeout(max(0.0, remaining) + late):
                await self._playback_over.wait()
        except TimeoutError:
            self._played = self._samples


def _observe(call: metrics.VoiceDecoderCall, since: float) -> None:
    metrics.HOP_VOICE_DECODER.labels(call).observe(time.monotonic() - since)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure in a group of (groups of) failures."""
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
