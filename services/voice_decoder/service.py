"""The voice decoder service: its start, its streams, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc

from minmo.engine.voice import Voice
from minmo.rpc import tracing
from minmo.rpc.catalogue import FiguresCollector
from minmo.rpc.health import Readiness
from minmo.rpc.stuck import watch_compute
from minmo.settings import VoiceDecoderSettings
from minmo.v1 import voice_decoder_pb2, voice_decoder_pb2_grpc
from services.loading import load_weights
from services.voice_decoder import checks
from services.voice_decoder.stream import DecodeStream
from services.voice_decoder.voices import Voices, load_voices
from services.voice_decoder.workload import ENGINE, WORKLOAD, CountingExecutor


class VoiceDecoderService:
    """What the voice decoder's process runs; see `minmo.rpc.server`."""

    name = "voice_decoder"

    def __init__(self, settings: VoiceDecoderSettings) -> None:
        self._settings = settings
        self.readiness = Readiness()
        self._servicer = VoiceDecoderServicer(settings)
        self._voices = Voices({})
        self._executor: ThreadPoolExecutor | None = None
        self._collector: FiguresCollector | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the voices and lets each say something once."""
        settings = self._settings
        self._voices = await load_weights(
            partial(load_voices, settings),
            settings.preset,
            self.readiness,
            wait=settings.wait_for_weights,
        )
        # Pico's steps wait in the order in which they came, so streams take turns phrase by phrase.
        # The neural voice's steps only wait for its engine, which says whose turn it is.
        engine = self._voices.engine
        threads = self._settings.threads if engine is None else self._settings.max_streams
        executor = self._executor = CountingExecutor(threads, "voice")
        self._servicer.voices, self._servicer.executor = self._voices.by_name, self._executor
        await asyncio.to_thread(self._voices.warm_up)
        if engine is not None:
            self._collector = FiguresCollector(engine.snapshot, ENGINE)
            # Pico's steps have a deadline of their own.
            self._watching = asyncio.create_task(
                watch_compute(
                    self.readiness, lambda: engine.step_seconds, settings.max_compute_seconds
                )
            )
        else:
            self._collector = FiguresCollector(lambda: executor, WORKLOAD)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the servicer."""
        voice_decoder_pb2_grpc.add_VoiceDecoderServiceServicer_to_server(self._servicer, server)
        return [voice_decoder_pb2.DESCRIPTOR.services_by_name["VoiceDecoderService"].full_name]

    async def stop(self) -> None:
        """Ends the threads and the voices."""
        if self._watching is not None:
            self._watching.cancel()
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

    async def ListVoices(  # noqa: N802
        self,
        request: voice_decoder_pb2.ListVoicesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> voice_decoder_pb2.ListVoicesResponse:
        """Says which voices there are, and what they read."""
        voices = self.voices.values()
        return voice_decoder_pb2.ListVoicesResponse(
            names=self.voices,
            reads_hidden_states=any(voice.reads_hidden_states for voice in voices),
            max_query_positions=min(
                checks.max_query_positions(voice, self._settings.max_message_bytes)
                for voice in voices
            ),
        )

    # The stub knows generators only; a coroutine that writes can put a deadline on its writes.
    async def Decode(  # type: ignore[override]  # noqa: N802
        self,
        request_iterator: AsyncIterator[voice_decoder_pb2.DecodeRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Speaks one utterance; the proto says how."""
        stream = DecodeStream(self._settings, self.voices, self.executor, context.write)
        parent = tracing.traceparent_of(context.invocation_metadata())
        with tracing.span("decode", parent=parent, kind="server"):
            await stream.run(request_iterator)
