"""The voice decoder service: its start, its streams, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from minmo.engine.voice import Voice
from minmo.rpc import metrics
from minmo.settings import VoiceDecoderSettings
from minmo.v1 import voice_decoder_pb2, voice_decoder_pb2_grpc
from services.voice_decoder.stream import DecodeStream
from services.voice_decoder.voices import Voices, load_voices


class VoiceDecoderService:
    """What the voice decoder's process runs; see `minmo.rpc.server`."""

    name = "voice_decoder"

    def __init__(self, settings: VoiceDecoderSettings) -> None:
        self._settings = settings
        self._servicer = VoiceDecoderServicer(settings)
        self._voices = Voices({})
        self._executor: ThreadPoolExecutor | None = None
        self._collector: metrics.FiguresCollector | None = None

    async def start(self) -> None:
        """Starts the voices and lets each say something once."""
        self._voices = await asyncio.to_thread(load_voices, self._settings)
        # Pico's steps wait in the order in which they came, so streams take turns phrase by phrase.
        # The neural voice's steps only wait for its engine, which says whose turn it is.
        is_neural = self._voices.engine is not None
        threads = self._settings.max_streams if is_neural else self._settings.threads
        self._executor = ThreadPoolExecutor(threads, "voice")
        self._servicer.voices, self._servicer.executor = self._voices.by_name, self._executor
        await asyncio.to_thread(self._voices.warm_up)
        if self._voices.engine is not None:
            self._collector = metrics.FiguresCollector(
                self._voices.engine.snapshot,
                metrics.VOICE_ENGINE_GAUGES,
                metrics.VOICE_ENGINE_COUNTERS,
            )

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the servicer."""
        voice_decoder_pb2_grpc.add_VoiceDecoderServiceServicer_to_server(self._servicer, server)
        return [voice_decoder_pb2.DESCRIPTOR.services_by_name["VoiceDecoderService"].full_name]

    async def stop(self) -> None:
        """Ends the threads and the voices."""
        # Closing the voices first ends a step that is stuck.
        await asyncio.to_thread(self._voices.close)
        if self._collector is not None:
            self._collector.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


class VoiceDecoderServicer(voice_decoder_pb2_grpc.VoiceDecoderServiceServicer):
    """Makes a `DecodeStream` of each call."""

    executor: ThreadPoolExecutor
    """Where voices compute; set before the first call is let in."""

    def __init__(self, settings: VoiceDecoderSettings) -> None:
        self.voices: dict[str, Voice] = {}
        """By name, the default first; set before the first call is let in."""
        self._settings = settings

    # The stub knows generators only; a coroutine that writes can put a deadline on its writes.
    async def Decode(  # type: ignore[override]  # noqa: N802
        self,
        request_iterator: AsyncIterator[voice_decoder_pb2.DecodeRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Speaks one utterance; the proto says how."""
        stream = DecodeStream(self._settings, self.voices, self.executor, context.write)
        await stream.run(request_iterator)
