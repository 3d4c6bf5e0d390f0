"""Calls with fixed shapes, recorded once and played again: CUDA graphs.

A step of a small model is hundreds of kernels of a few microseconds each; launching them one by
one takes longer than they run. A recorded graph launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

_Outputs = TypeVar("_Outputs")
_WARM_UPS = 3


class GraphedCall(Generic[_Outputs]):
    """A function of tensors that always have the same shapes.

    On a GPU the function runs a few times when this is made, to warm up and to be recorded, and
    never again: calls play the recording. It must not look at values on the host, and everything
    else that it reads or changes, such as a cache, must stay where it is. Elsewhere calls are
    plain calls.

    Args:
        function: of tensors; its outputs are a tensor or a structure of tensors.
        example_inputs: tensors of the shapes, number types and device of later calls. Where the
            function changes a state, their values should be such that it leaves it alone (every
            slot waits): the warm-up runs with them.
        pool: memory to record into; graphs that never run at the same time, and whose outputs
            are used up before the next one runs, can share one (`torch.cuda.graph_pool_handle`).
    """

    def __init__(
        self,
        function: Callable[..., _Outputs],
        example_inputs: Sequence[Tensor],
        pool: Any = None,
    ) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if example_inputs and all(tensor.is_cuda for tensor in example_inputs):
            self._record(example_inputs, pool)

    def _record(self, example_inputs: Sequence[Tensor], pool: Any) -> None:
        device = example_inputs[0].device
        self._inputs = [tensor.clone() for tensor in example_inputs]
        with torch.inference_mode(), torch.cuda.device(device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    self._function(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self._outputs = self._function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> _Outputs:
        """Calls the function.

        Args:
            inputs: as many as the examples, of the same shapes; on a GPU they may also lie in
                pinned memory of the host.

        Returns:
            What the function returns; on a GPU it is overwritten by the next call.

        Raises:
            ValueError: an input has another shape than its example.
        """
        if self._graph is None:
            return self._function(*inputs)
        for number, (place, given) in enumerate(zip(self._inputs, inputs, strict=True)):
            if place.shape != given.shape:
                raise ValueError(
                    f"input {number} is {tuple(given.shape)}; recorded was {tuple(place.shape)}"
                )
            with torch.inference_mode():
                place.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs
