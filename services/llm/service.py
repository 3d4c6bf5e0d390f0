"""The LLM service: its start, its calls, its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import grpc
import structlog

from minmo.engine.prompt import ChatFormat
from minmo.rpc.health import Readiness
from minmo.rpc.process import StartError
from minmo.settings import LlmSettings
from minmo.v1 import llm_pb2, llm_pb2_grpc
from minmo.weights.errors import WeightsError
from minmo.weights.load import read_config, weights_folder
from services.llm.caller import CallerStream
from services.llm.prompt import PromptReader
from services.llm.triton import TritonModel

log = structlog.get_logger(__name__)

_CHECK_INTERVAL_SECONDS = 0.5


class LlmService:
    """What the LLM's process runs; see `minmo.rpc.server`."""

    name = "llm"

    def __init__(self, settings: LlmSettings) -> None:
        self._settings = settings
        self.readiness = Readiness()
        self._triton = TritonModel(settings.triton_address)
        self._servicer = LlmServicer(settings, self._triton)
        self._follower: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the tokenizer, and from then on is as ready as Triton's model is."""
        self._servicer.reader = await asyncio.to_thread(_load_reader, self._settings)
        await self._check()
        self._follower = asyncio.create_task(self._follow())

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the servicer."""
        llm_pb2_grpc.add_LlmServiceServicer_to_server(self._servicer, server)
        return [llm_pb2.DESCRIPTOR.services_by_name["LlmService"].full_name]

    async def stop(self) -> None:
        """Ends the connection to Triton."""
        if self._follower is not None:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
        await self._triton.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_SECONDS)
            await self._check()

    async def _check(self) -> None:
        problem = await self._triton.problem()
        if not problem:
            self.readiness.set_ready()
        elif self.readiness.reason != problem:
            log.warning("not ready", reason=problem)
            self.readiness.set_not_ready(problem)


class LlmServicer(llm_pb2_grpc.LlmServiceServicer):
    """Makes a `CallerStream` of each call."""

    reader: PromptReader
    """Set before the first call is let in."""

    def __init__(self, settings: LlmSettings, triton: TritonModel) -> None:
        self._settings = settings
        self._triton = triton

    async def Run(  # noqa: N802
        self,
        request_iterator: AsyncIterator[llm_pb2.RunRequest],
        context: grpc.aio.ServicerContext[llm_pb2.RunRequest, llm_pb2.RunResponse],
    ) -> AsyncIterator[llm_pb2.RunResponse]:
        """Carries out operations; the proto says how."""
        settings = self._settings
        caller = CallerStream(
            self._triton, self.reader, settings.max_operations, settings.request_deadline_seconds
        )
        async with aclosing(caller.run(request_iterator)) as responses:
            async for response in responses:
                yield response

    async def GetModel(  # noqa: N802
        self,
        request: llm_pb2.GetModelRequest,
        context: grpc.aio.ServicerContext[llm_pb2.GetModelRequest, llm_pb2.GetModelResponse],
    ) -> llm_pb2.GetModelResponse:
        """Says what runs on Triton now."""
        return await self._triton.describe()


def _load_reader(settings: LlmSettings) -> PromptReader:
    try:
        folder = weights_folder(settings.preset, "llm")
        config = read_config(folder)
        chat = ChatFormat.from_folder(folder)
    except (WeightsError, ValueError) as error:
        raise StartError(str(error)) from error
    return PromptReader(
        chat=chat,
        width=int(config["hidden_size"]),
        max_text_characters=settings.max_text_characters,
        max_message_bytes=settings.max_message_bytes,
    )
