"""The LLM as a model of Triton: hands operations to the engine, and its events back.

Tensors come and go through PyTorch's DLPack: Triton's own conversions from and to NumPy give
garbage where NumPy is 2, and NumPy's DLPack complains about every tensor that Triton lets go of.
"""

import os
import sys
from functools import partial
from typing import Any

# Triton ignores PYTHONPATH: a source tree that isn't installed is found by this.
if source := os.environ.get("MINMO_SOURCE"):
    sys.path.append(source)

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack, to_dlpack

from minmo.engine.operations import Failed, Reason
from minmo.settings import LlmModelSettings
from minmo.triton import codec
from minmo.triton.host import build_engine, description_of
from minmo.triton.metrics import EngineMetrics
from minmo.triton.parent import end_with_parent
from minmo.triton.responder import Responder
from minmo.v1.llm_pb2 import RunRequest

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """Triton makes one, and calls it on a thread of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads and warms up; the model becomes ready when it returns."""
        end_with_parent()
        settings = LlmModelSettings()
        self._engine = build_engine(settings)
        self._engine.start()
        self._responder = Responder(self._engine.replica_id)
        self._metrics = EngineMetrics(self._engine, pb_utils.MetricFamily)
        self._description = description_of(self._engine, settings.preset).SerializeToString()

    def execute(self, requests: list[Any]) -> None:
        """Takes requests; the responses come from a thread of ours."""
        for request in requests:
            self._accept(request)

    def finalize(self) -> None:
        """Ends what runs."""
        self._metrics.stop()
        self._engine.stop()
        self._responder.stop()

    def _accept(self, request: Any) -> None:
        sender = request.get_response_sender()
        tensor = pb_utils.get_input_tensor_by_name(request, codec.INPUT)
        message = RunRequest.FromString(from_dlpack(tensor.to_dlpack()).numpy().tobytes())
        if message.WhichOneof("operation") is None:
            send(sender, self._description, last=True)
            return
        reply = self._responder.open(message, partial(send, sender), sender.is_cancelled)
        try:
            operation = codec.operation_of(message)
        except ValueError as error:
            reply.on_event(Failed(Reason.BAD_CONTENT, str(error)))
            return
        self._engine.submit(operation, reply.on_event, reply.is_cancelled)


def send(sender: Any, data: bytes, last: bool) -> None:
    """Sends one response; the last one says so itself, since an empty one would cost a message."""
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    output = pb_utils.Tensor.from_dlpack(codec.OUTPUT, to_dlpack(tensor))
    sender.send(pb_utils.InferenceResponse([output]), flags=FINAL if last else 0)
