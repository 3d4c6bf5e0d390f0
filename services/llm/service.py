"""The LLM service: its start, its calls, its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial

import grpc

from minmo.engine.prompt import ChatFormat
from minmo.rpc.errors import StatusError
from minmo.rpc.following import keep_running
from minmo.rpc.health import Readiness
from minmo.settings import LlmSettings
from minmo.v1 import llm_pb2, llm_pb2_grpc
from minmo.weights.errors import WeightsError
from minmo.weights.load import read_config, weights_folder
from minmo.weights.parts import preset_name
from services.llm.caller import CallerStream
from services.llm.prompt import PromptReader
from services.llm.triton import TritonModel
from services.loading import load_weights

_CHECK_INTERVAL_SECONDS = 0.5
_MODEL_CHECK_SECONDS = 10.0


class LlmService:
    """What the LLM's process runs; see `minmo.rpc.server`."""

    name = "llm"

    def __init__(self, settings: LlmSettings) -> None:
        self._settings = settings
        self.readiness = Readiness()
        self._triton = TritonModel(settings.triton_address)
        self._servicer = LlmServicer(settings, self._triton, self.readiness)
        self._checked_at = -_MODEL_CHECK_SECONDS
        self._follower: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the tokenizer, and from then on is as ready as Triton's model is."""
        settings = self._settings
        self._servicer.reader = await load_weights(
            partial(_load_reader, settings),
            settings.preset,
            self.readiness,
            wait=settings.wait_for_weights,
        )
        await self._check()
        self._follower = asyncio.create_task(keep_running(self._follow))

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
        now = time.monotonic()
        if problem:
            # Whatever comes back may be another model.
            self._checked_at = -_MODEL_CHECK_SECONDS
        elif now - self._checked_at > _MODEL_CHECK_SECONDS:
            problem = await self._misfit()
            if not problem:
                self._checked_at = now
        if problem:
            self.readiness.set_not_ready(problem, "triton")
        else:
            self.readiness.set_ready("triton")

    async def _misfit(self) -> str:
        """Why what runs on Triton is not what this service writes prompts for; "" if it is."""
        try:
            model = await self._triton.describe()
        except StatusError as error:
            return f"Triton at {self._triton.address}: {error.message}"
        ours, width = preset_name(self._settings.preset), self._servicer.reader.width
        if preset_name(model.preset) != ours:
            return (
                f"Triton at {self._triton.address} hosts the LLM of preset {model.preset!r}, "
                f"this service has --preset {ours!r}"
            )
        if model.width != width:
            return (
                f"Triton at {self._triton.address} hosts an LLM of width {model.width}, the "
                f"weights of preset {ours!r} here have {width}"
            )
        return ""


class LlmServicer(llm_pb2_grpc.LlmServiceServicer):
    """Makes a `CallerStream` of each call."""

    reader: PromptReader
    """Set before the first call is let in."""

    def __init__(self, settings: LlmSettings, triton: TritonModel, readiness: Readiness) -> None:
        self._settings = settings
        self._triton = triton
        self._readiness = readiness

    async def Run(  # noqa: N802
        self,
        request_iterator: AsyncIterator[llm_pb2.RunRequest],
        context: grpc.aio.ServicerContext[llm_pb2.RunRequest, llm_pb2.RunResponse],
    ) -> AsyncIterator[llm_pb2.RunResponse]:
        """Carries out operations; the proto says how."""
        settings = self._settings
        caller = CallerStream(
            self._triton,
            self.reader,
            settings.max_operations,
            settings.request_deadline_seconds,
            self._readiness,
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
    """Raises WeightsError."""
    folder = weights_folder(settings.preset, "llm")
    config = read_config(folder)
    try:
        chat = ChatFormat.from_folder(folder)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return PromptReader(
        chat=chat,
        width=int(config["hidden_size"]),
        max_text_characters=settings.max_text_characters,
        max_message_bytes=settings.max_message_bytes,
    )
