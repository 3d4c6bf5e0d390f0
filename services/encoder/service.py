"""The encoder service: its start, its streams, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial

import grpc

from minmo.rpc.health import Readiness
from minmo.rpc.stuck import watch_compute
from minmo.settings import EncoderSettings
from minmo.v1 import encoder_pb2, encoder_pb2_grpc
from services.encoder.compute import ComputeQueue
from services.encoder.models import ListeningModels
from services.encoder.stream import EncodeStream
from services.loading import load_weights

# Recognitions and embedding steps of one stream that may wait.
_MAX_JOBS_PER_STREAM = 16


class EncoderService:
    """What the encoder's process runs; see `minmo.rpc.server`."""

    name = "encoder"

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self.readiness = Readiness()
        self._compute = ComputeQueue(settings.threads, _MAX_JOBS_PER_STREAM)
        self._listening = ThreadPoolExecutor(1, "listening")
        self._servicer = EncoderServicer(settings, self._compute, self._listening, self.readiness)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the models and runs each once."""
        settings = self._settings
        self._compute.start()
        models = await load_weights(
            partial(ListeningModels.load, settings.preset, settings.preload),
            settings.preset,
            self.readiness,
            wait=settings.wait_for_weights,
        )
        await self._compute.run(self, models.warm_up)
        self._servicer.models = models
        self._watching = asyncio.create_task(
            watch_compute(
                self.readiness, lambda: self._compute.running_seconds, settings.max_compute_seconds
            )
        )

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the servicer."""
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(self._servicer, server)
        return [encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name]

    async def stop(self) -> None:
        """Ends the threads."""
        if self._watching is not None:
            self._watching.cancel()
        await self._compute.stop()
        self._listening.shutdown(wait=False, cancel_futures=True)


class EncoderServicer(encoder_pb2_grpc.EncoderServiceServicer):
    """Makes an `EncodeStream` of each call."""

    models: ListeningModels
    """Set before the first call is let in."""

    def __init__(
        self,
        settings: EncoderSettings,
        compute: ComputeQueue,
        listening: ThreadPoolExecutor,
        readiness: Readiness,
    ) -> None:
        self._settings = settings
        self._compute = compute
        self._listening = listening
        self._readiness = readiness

    async def Encode(  # noqa: N802
        self,
        request_iterator: AsyncIterator[encoder_pb2.EncodeRequest],
        context: grpc.aio.ServicerContext[encoder_pb2.EncodeRequest, encoder_pb2.EncodeResponse],
    ) -> AsyncIterator[encoder_pb2.EncodeResponse]:
        """Listens to one audio stream; the proto says how."""
        stream = EncodeStream(
            self._settings, self.models, self._compute, self._listening, self._readiness
        )
        async with aclosing(stream.serve(request_iterator)) as answers:
            async for answer in answers:
                yield answer
