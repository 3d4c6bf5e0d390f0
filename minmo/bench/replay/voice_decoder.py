"""A voice decoder that says what a real one said: the tokens name the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc

from minmo.bench.arrivals import RATE_HZ
from minmo.bench.replay.recording import Piece, Question, Recording, token_place
from minmo.bench.replay.settings import VoiceDecoderSettings
from minmo.rpc.errors import invalid_argument
from minmo.v1 import common_pb2, voice_decoder_pb2, voice_decoder_pb2_grpc

VOICE = "replayed"


class ReplayedVoiceDecoder:
    """The voice decoder, for `minmo.rpc.server.serve`."""

    name = "voice_decoder"

    def __init__(self, settings: VoiceDecoderSettings) -> None:
        self._servicer = _Servicer(settings)

    async def start(self) -> None:
        """Reads the recording."""
        await asyncio.to_thread(self._servicer.load)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the servicer."""
        voice_decoder_pb2_grpc.add_VoiceDecoderServiceServicer_to_server(self._servicer, server)
        return [voice_decoder_pb2.DESCRIPTOR.services_by_name["VoiceDecoderService"].full_name]

    async def stop(self) -> None:
        """Has nothing to release."""


class _Servicer(voice_decoder_pb2_grpc.VoiceDecoderServiceServicer):
    def __init__(self, settings: VoiceDecoderSettings) -> None:
        self._settings = settings
        self._recording: Recording | None = None

    def load(self) -> None:
        """Reads the recording."""
        self._recording = Recording.read(self._settings.recording)

    async def ListVoices(  # noqa: N802
        self,
        request: voice_decoder_pb2.ListVoicesRequest,
        context: grpc.aio.ServicerContext[
            voice_decoder_pb2.ListVoicesRequest, voice_decoder_pb2.ListVoicesResponse
        ],
    ) -> voice_decoder_pb2.ListVoicesResponse:
        """There is one."""
        return voice_decoder_pb2.ListVoicesResponse(names=[VOICE])

    async def Decode(  # noqa: N802
        self,
        request_iterator: AsyncIterator[voice_decoder_pb2.DecodeRequest],
        context: grpc.aio.ServicerContext[
            voice_decoder_pb2.DecodeRequest, voice_decoder_pb2.DecodeResponse
        ],
    ) -> AsyncIterator[voice_decoder_pb2.DecodeResponse]:
        """Speaks one utterance; the proto says how."""
        assert self._recording is not None, "calls are let in after the start"
        config = (await anext(request_iterator)).config
        if config.format.sample_rate_hz != RATE_HZ:
            raise invalid_argument("config.format", f"the recording is of {RATE_HZ} Hz")
        ready = voice_decoder_pb2.DecodeReady(voice=VOICE)
        yield voice_decoder_pb2.DecodeResponse(ready=ready)
        text = _Text(self._recording, config.first_token)
        reading = asyncio.create_task(text.read(request_iterator))
        try:
            question = await text.question()
            end = config.first_sample
            for piece in question.pieces if question is not None else ():
                if piece.first_sample < config.first_sample:
                    continue
                if not await text.wait_for(piece):
                    break
                end = piece.first_sample + len(piece.data) // 2
                yield voice_decoder_pb2.DecodeResponse(audio=_audio(piece))
            await text.ended.wait()
            if question is not None:
                await asyncio.sleep(question.done_seconds)
            yield voice_decoder_pb2.DecodeResponse(
                done=voice_decoder_pb2.DecodeDone(
                    sample_count=end,
                    token_count=text.count,
                    compute_ms=0.0 if question is None else question.compute_ms,
                )
            )
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


class _Text:
    """The tokens of an utterance, as they come.

    Attributes:
        count: tokens of the utterance so far, those before this stream included.
        ended: set once no more will come.
    """

    def __init__(self, recording: Recording, first_token: int) -> None:
        self.count = first_token
        self.ended = asyncio.Event()
        self._recording = recording
        self._number: int | None = None
        self._grew = asyncio.Condition()
        self._came: list[tuple[int, float]] = []
        self._failure: Exception | None = None

    async def read(self, requests: AsyncIterator[voice_decoder_pb2.DecodeRequest]) -> None:
        """Takes tokens until their end."""
        loop = asyncio.get_running_loop()
        try:
            async for request in requests:
                tokens = request.tokens.tokens
                async with self._grew:
                    if tokens and self._number is None:
                        self._number = self._named(tokens[0].id)
                    self.count += len(tokens)
                    self._came.append((self.count, loop.time()))
                    if request.HasField("end"):
                        self.ended.set()
                    self._grew.notify_all()
        except Exception as failure:
            async with self._grew:
                self._failure = failure
                self._grew.notify_all()

    def _named(self, token_id: int) -> int:
        place = token_place(token_id)
        if place is None or place[0] >= len(self._recording.questions):
            raise invalid_argument("tokens", f"{token_id} is of no answer in the recording")
        return place[0]

    async def question(self) -> Question | None:
        """The question that is answered; None if the text has ended without a token."""
        async with self._grew:
            await self._grew.wait_for(
                lambda: self._number is not None or self.ended.is_set() or self._failure
            )
        if self._failure is not None:
            raise self._failure
        return None if self._number is None else self._recording.questions[self._number]

    async def wait_for(self, piece: Piece) -> bool:
        """Waits until a piece is due; False if the text has ended before its words."""
        async with self._grew:
            await self._grew.wait_for(
                lambda: self._has(piece) or self.ended.is_set() or self._failure
            )
        if self._failure is not None:
            raise self._failure
        if not self._has(piece):
            return False
        loop = asyncio.get_running_loop()
        ready = next((at for count, at in self._came if count >= piece.tokens), self._came[-1][1])
        if piece.ended:
            ready = max(ready, self._came[-1][1])
        await asyncio.sleep(max(0.0, ready + piece.seconds - loop.time()))
        return True

    def _has(self, piece: Piece) -> bool:
        return self.count >= piece.tokens and (self.ended.is_set() or not piece.ended)


def _audio(piece: Piece) -> voice_decoder_pb2.DecodedAudio:
    return voice_decoder_pb2.DecodedAudio(
        first_sample=piece.first_sample,
        data=piece.data,
        marks=[common_pb2.Mark(token_count=count, sample=sample) for count, sample in piece.marks],
    )
