"""The encoder service: its start, its streams, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import grpc

from minmo.presets import PresetError
from minmo.rpc.process import StartError
from minmo.settings import EncoderSettings
from minmo.v1 import encoder_pb2, encoder_pb2_grpc
from minmo.weights.errors import WeightsError
from services.encoder.compute import ComputeQueue
from services.encoder.models import ListeningModels
from services.encoder.stream import EncodeStream

# Recognitions and embedding steps of one stream that may wait.
_MAX_JOBS_PER_STREAM = 16


class EncoderService:
    """What the encoder's process runs; see `minmo.rpc.server`."""

    name = "encoder"

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._compute = ComputeQueue(settings.threads, _MAX_JOBS_PER_STREAM)
        self._listening = ThreadPoolExecutor(1, "listening")
        self._servicer = EncoderServicer(settings, self._compute, self._listening)

    async def start(self) -> None:
        """Loads the models and runs each once."""
        settings = self._settings
        self._compute.start()
        try:
            models = await asyncio.to_thread(
                ListeningModels.load, settings.preset, settings.preload
            )
        except (WeightsError, PresetError) as error:
            raise StartError(str(error)) from error
        await self._compute.run(self, models.warm_up)
        self._servicer.models = models

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the servicer."""
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(self._servicer, server)
        return [encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name]

    async def stop(self) -> None:
        """Ends the threads."""
        await self._compute.stop()
        self._listening.shutdown(wait=False, cancel_futures=True)


class EncoderServicer(encoder_pb2_grpc.EncoderServiceServicer):
    """Makes an `EncodeStream` of each call."""

    models: ListeningModels
    """Set before the first call is let in."""

    def __init__(
        self, settings: EncoderSettings, compute: ComputeQueue, listening: ThreadPoolExecutor
    ) -> None:
        self._settings = settings
        self._compute = compute
        self._listening = listening

    async def Encode(  # noqa: N802
        self,
        request_iterator: AsyncIterator[encoder_pb2.EncodeRequest],
        context: grpc.aio.ServicerContext[encoder_pb2.EncodeRequest, encoder_pb2.EncodeResponse],
    ) -> AsyncIterator[encoder_pb2.EncodeResponse]:
        """Listens to one audio stream; the proto says how."""
        stream = EncodeStream(self._settings, self.models, self._compute, self._listening)
        async with aclosing(stream.serve(request_iterator)) as answers:
            async for answer in answers:
                yield answer
