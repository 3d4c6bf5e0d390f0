"""The model on Triton, as seen from this service.

Raw stubs, not `tritonclient`'s own client: on a stream that lives long that one hides where a
response ends, and builds objects for every token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from minmo.rpc import metrics
from minmo.rpc.errors import StatusError, parse, unavailable
from minmo.triton import codec
from minmo.v1 import llm_pb2

_CHECK_SECONDS = 5.0


class TritonModel:
    """A connection to Triton; it comes back by itself.

    Args:
        address: Triton's gRPC address.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(
            address,
            options=[
                # Triton is ours, and what it sends was limited on the way in.
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 1000),
                ("grpc.max_reconnect_backoff_ms", 2000),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Ends the connection and all that runs over it."""
        await self._channel.close()

    async def problem(self) -> str:
        """Why the model cannot be used now; "" if it can."""
        request = service_pb2.ModelReadyRequest(name=codec.MODEL)
        try:
            with metrics.timed(metrics.HOP_TRITON.labels("ready")):
                answer = await self._stub.ModelReady(request, timeout=_CHECK_SECONDS)
        except grpc.aio.AioRpcError as error:
            metrics.count_hop_error("triton", error.code())
            return f"Triton at {self.address} does not answer ({error.code().name})"
        return "" if answer.ready else f"Triton at {self.address} has not loaded the model"

    async def describe(self) -> llm_pb2.GetModelResponse:
        """What runs there.

        Raises:
            StatusError: UNAVAILABLE, Triton or the model is not there.
        """
        began = time.monotonic()
        stream = TritonStream(self._stub.ModelStreamInfer(timeout=_CHECK_SECONDS))
        try:
            await stream.send(0, llm_pb2.RunRequest(operation_id="model"))
            async for _, data in stream:
                if isinstance(data, bytes):
                    metrics.HOP_TRITON.labels("describe").observe(time.monotonic() - began)
                    return llm_pb2.GetModelResponse.FromString(data)
                raise unavailable(f"Triton cannot say which model runs: {data}", reason="UPSTREAM")
        except grpc.aio.AioRpcError as error:
            metrics.count_hop_error("triton", error.code())
            raise unavailable(describe_loss(error), reason="UPSTREAM") from None
        finally:
            stream.cancel()
        raise unavailable("Triton ended the stream", reason="UPSTREAM")

    def open(self) -> TritonStream:
        """A stream of requests; what is sent over it is cancelled when it ends."""
        return TritonStream(self._stub.ModelStreamInfer())


class TritonStream:
    """Requests under numbers of the caller's choice, and their responses."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, number: int, request: llm_pb2.RunRequest) -> None:
        """Sends a request.

        Raises:
            grpc.aio.AioRpcError: the stream has ended with an error.
            StreamEndedError: it has ended otherwise.
        """
        data = request.SerializeToString()
        message = service_pb2.ModelInferRequest(
            model_name=codec.MODEL, id=str(number), raw_input_contents=[data]
        )
        message.inputs.add(name=codec.INPUT, datatype="UINT8", shape=[len(data)])
        try:
            await self._call.write(message)
        except asyncio.InvalidStateError as error:
            raise StreamEndedError from error
        except asyncio.CancelledError:
            # gRPC says the same to who is cancelled and to who writes to a call that was.
            if self._call.cancelled():
                raise StreamEndedError from None
            raise

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes | str]]:
        """Each request's number with a response, or with what Triton says went wrong.

        Raises:
            grpc.aio.AioRpcError: the stream has ended.
        """
        async for reply in self._call:
            response = reply.infer_response
            number = int(response.id or 0)
            if reply.error_message:
                yield number, str(reply.error_message)
            elif response.raw_output_contents:
                yield number, response.raw_output_contents[0]

    def cancel(self) -> None:
        """Ends the stream; Triton cancels what runs."""
        self._call.cancel()


class StreamEndedError(Exception):
    """A request could not be sent: the stream had ended before."""


def describe_loss(error: grpc.aio.AioRpcError) -> str:
    """A sentence on how the connection to Triton was lost."""
    status: StatusError = parse(error)
    return f"Triton is gone ({status.code.name}); what ran there is lost, try again"
