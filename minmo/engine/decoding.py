"""The next token of many sequences in one step of fixed shapes, which a GPU can record."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from minmo.engine.graphs import GraphedCall
from minmo.engine.row_counts import doublings
from minmo.model.llm import Llm, LlmCache

_SMALLEST_SPAN = 256


class BatchedDecoder:
    """Reads one token for each of many sequences.

    A step is one of few calls: its rows and the positions that it looks at are rounded up to
    powers of two. All calls are made at once, so that no caller waits for a recording.

    Args:
        model: the LLM.
        cache: its memory.
    """

    def __init__(self, model: Llm, cache: LlmCache) -> None:
        self._model, self._cache = model, cache
        self._row_counts = doublings(1, cache.slots)
        self._spans = doublings(_SMALLEST_SPAN, cache.context)
        on_gpu = model.device.type == "cuda"
        pool = torch.cuda.graph_pool_handle() if on_gpu else None
        self._calls: dict[tuple[int, int], GraphedCall[Tensor]] = {}
        # What goes to the GPU each step, as one copy from memory that never moves.
        self._buffers = {
            rows: torch.zeros(3, rows, dtype=torch.int64, pin_memory=on_gpu)
            for rows in self._row_counts
        }
        # The largest first: the others then fit into its memory.
        for rows in reversed(self._row_counts):
            self._buffers[rows][2] = cache.scratch
            example = self._buffers[rows].to(model.device)
            for span in reversed(self._spans):
                step = partial(self._step, span)
                self._calls[rows, span] = GraphedCall(step, (example,), pool)

    def read(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int]
    ) -> list[bool]:
        """Reads the next token of each sequence into the cache.

        Args:
            tokens: one for each sequence, at most as many as there are slots.
            slots: theirs, no slot twice.
            positions: where each token goes, the sequence's length before it.

        Returns:
            For each sequence, whether the model computed finite numbers.
        """
        count = len(tokens)
        rows = next(rows for rows in self._row_counts if rows >= count)
        span = next(span for span in self._spans if span > max(positions))
        numbers = self._buffers[rows]
        numbers[:, :count] = torch.tensor((tokens, slots, positions))
        numbers[:2, count:] = 0
        numbers[2, count:] = self._cache.scratch
        # Reading the answer back ends the step; only then may the buffer change again.
        finite: list[bool] = self._calls[rows, span](numbers).tolist()
        return finite[:count]

    def _step(self, span: int, numbers: Tensor) -> Tensor:
        """Of tokens, slots and positions, `[3, rows]`: `[rows]`, true where all is finite."""
        tokens, slots, positions = numbers
        embeddings = self._model.embed(tokens)
        hidden = self._model.decode(embeddings, slots, positions, self._cache, span)
        return torch.isfinite(hidden).all(-1)
