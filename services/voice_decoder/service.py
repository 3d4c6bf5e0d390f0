"""The voice decoder service: its start, its streams, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from minmo.engine.pico import PicoVoice
from minmo.engine.voice import Voice
from minmo.settings import VoiceDecoderSettings
from minmo.v1 import voice_decoder_pb2, voice_decoder_pb2_grpc
from services.voice_decoder.stream import DecodeStream


class VoiceDecoderService:
    """What the voice decoder's process runs; see `minmo.rpc.server`."""

    name = "voice_decoder"

    def __init__(self, settings: VoiceDecoderSettings) -> None:
        # Steps wait in the order in which they came, so streams take turns phrase by phrase.
        self._executor = ThreadPoolExecutor(settings.threads, "voice")
        self._settings = settings
        self._servicer = VoiceDecoderServicer(settings, self._executor)

    async def start(self) -> None:
        """Starts the voices and lets each say something once."""
        voice: Voice = await asyncio.to_thread(PicoVoice, self._settings.threads)
        self._servicer.voices = {voice.name: voice}
        await asyncio.to_thread(voice.warm_up)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the servicer."""
        voice_decoder_pb2_grpc.add_VoiceDecoderServiceServicer_to_server(self._servicer, server)
        return [voice_decoder_pb2.DESCRIPTOR.services_by_name["VoiceDecoderService"].full_name]

    async def stop(self) -> None:
        """Ends the threads and the voices."""
        # Closing the voices first ends a step that is stuck.
        for voice in self._servicer.voices.values():
            await asyncio.to_thread(voice.close)
        self._executor.shutdown(wait=False, cancel_futures=True)


class VoiceDecoderServicer(voice_decoder_pb2_grpc.VoiceDecoderServiceServicer):
    """Makes a `DecodeStream` of each call."""

    def __init__(self, settings: VoiceDecoderSettings, executor: ThreadPoolExecutor) -> None:
        self.voices: dict[str, Voice] = {}
        """By name, the default first; set before the first call is let in."""
        self._settings = settings
        self._executor = executor

    # The stub knows generators only; a coroutine that writes can put a deadline on its writes.
    async def Decode(  # type: ignore[override]  # noqa: N802
        self,
        request_iterator: AsyncIterator[voice_decoder_pb2.DecodeRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Speaks one utterance; the proto says how."""
        stream = DecodeStream(self._settings, self.voices, self._executor, context.write)
        await stream.run(request_iterator)
