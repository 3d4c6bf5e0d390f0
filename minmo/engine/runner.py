"""Computes what the scheduler has decided, and decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from minmo.engine.cache import ProbeState
from minmo.engine.decoding import BatchedDecoder
from minmo.engine.operations import Generate, Matrix, Reason, Tokens
from minmo.engine.row_counts import RowCounts
from minmo.engine.sampling import Sampler, draw_rows
from minmo.engine.scheduler import Drawing, Problem, Reading, Work
from minmo.model.llm import Llm, LlmCache, Segment

log = logging.getLogger(__name__)

TurnPredictor: TypeAlias = Callable[[Tensor], tuple[float, float]]
"""Last hidden states `[states, width]` of a branch, in the order in which they were made, to the
probabilities, after the last one, of assistant turn-taking and of user turn-taking."""


class Runner:
    """The model and its cache; the scheduler's `Memory`.

    Args:
        model: the LLM.
        cache: its memory.
        max_rows: positions that one step may read.
        history: hidden states that the predictor is given, the last ones.
        predictor: what says who should speak, if there is one.
        batched: whether the attention of all generations is computed at once, in recorded steps
            of fixed shapes. A GPU needs that; on a CPU one by one is faster, and then a
            sequence's numbers do not depend on what else is in the batch.
    """

    def __init__(
        self,
        model: Llm,
        cache: LlmCache,
        max_rows: int,
        history: int,
        predictor: TurnPredictor | None = None,
        batched: bool = False,
    ) -> None:
        self._model = model
        self._cache = cache
        self._history = history
        self._predictor = predictor
        self._samplers: dict[Work, Sampler] = {}
        self._decoder = BatchedDecoder(model, cache) if batched else None
        kind = (model.dtype, model.device)
        self._rows = RowCounts(model.linears(), max_rows, *kind)
        self._head_rows = RowCounts([(model.lm_head, model.config.width)], cache.slots, *kind)

    # --- the scheduler's view of the cache

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first positions of one slot over another."""
        self._cache.copy(source, target, length)

    def hidden_states(self, slot: int, start: int, count: int) -> Matrix:
        """Last hidden states `[count, width]` of a slot, a copy in float32."""
        states = self._cache.hidden[slot, start : start + count]
        found: Matrix = states.to("cpu", torch.float32, copy=True).numpy()
        return found

    def embeddings(self, parts: Sequence[Tokens | Matrix]) -> Matrix:
        """What the model reads of tokens and embeddings, `[positions, width]` in float32."""
        rows = [
            np.asarray(part, dtype=np.float32)
            if part.ndim > 1
            else self._model.embed(torch.from_numpy(part).to(self._model.device))
            .to("cpu", torch.float32)
            .numpy()
            for part in parts
        ]
        return np.concatenate([np.zeros((0, self._model.config.width), np.float32), *rows])

    def probe_state(self, slot: int, position: int) -> ProbeState:
        """What the model has made of a probe that it read at a position, a copy."""
        return ProbeState(position, self._cache.hidden[slot, position].clone())

    def turn(
        self, slot: int, length: int, probes: Sequence[ProbeState]
    ) -> tuple[float, float] | None:
        """What the predictor says after the first `length` positions and the probes between."""
        if self._predictor is None or length + len(probes) == 0:
            return None
        return self._predictor(self._states(slot, length, probes))

    def _states(self, slot: int, length: int, probes: Sequence[ProbeState]) -> Tensor:
        """`[states, width]`, at most as many as the predictor sees, in the order of their making.

        A probe comes behind the positions that were there when it was read.
        """
        first = max(0, length - self._history)
        kept = self._cache.hidden[slot]
        parts, reached = [], first
        for probe in probes:
            if probe.position > reached:
                parts.append(kept[reached : probe.position])
                reached = probe.position
            if probe.position >= first:
                parts.append(probe.hidden[None])
        parts.append(kept[reached:length])
        return torch.cat(parts)[-self._history :]

    # --- a step

    def read(self, readings: Sequence[Reading]) -> dict[Work, Problem]:
        """Reads new positions; returns for whom that failed, and why.

        A failure that cannot be told apart is looked for by reading for each work alone.
        """
        try:
            return self._read(readings)
        except Exception as error:
            works = dict.fromkeys(reading.work for reading in readings)
            if len(works) == 1:
                log.exception("the model failed while reading")
                return {work: Problem(Reason.INTERNAL, _describe(error)) for work in works}
        problems: dict[Work, Problem] = {}
        for work in works:
            problems |= self.read([reading for reading in readings if reading.work is work])
        return problems

    def _read(self, readings: Sequence[Reading]) -> dict[Work, Problem]:
        if self._decoder is None:
            return self._read_flat(readings)
        tokens = [r for r in readings if isinstance(r.work.operation.action, Generate)]
        others = [r for r in readings if not isinstance(r.work.operation.action, Generate)]
        return self._read_tokens(self._decoder, tokens) | self._read_flat(others)

    def _read_tokens(
        self, decoder: BatchedDecoder, readings: Sequence[Reading]
    ) -> dict[Work, Problem]:
        """Reads what generations have drawn, one token each."""
        if not readings:
            return {}
        finite = decoder.read(
            [int(reading.pieces[0][0]) for reading in readings],
            [reading.slot for reading in readings],
            [reading.start for reading in readings],
        )
        return {
            reading.work: _not_finite(reading)
            for reading, is_finite in zip(readings, finite, strict=True)
            if not is_finite
        }

    def _read_flat(self, readings: Sequence[Reading]) -> dict[Work, Problem]:
        """Reads any number of positions of each as one flat batch."""
        if not readings:
            return {}
        count = sum(reading.count for reading in readings)
        embeddings = self._embed(readings, self._rows.at_least(count))
        segments = [Segment(reading.slot, reading.start, reading.count) for reading in readings]
        hidden = self._model(embeddings, segments, self._cache)
        finite = torch.isfinite(hidden[:count]).all(-1).tolist()
        problems, row = {}, 0
        for reading in readings:
            if not all(finite[row : row + reading.count]):
                problems[reading.work] = _not_finite(reading)
            row += reading.count
        return problems

    def _embed(self, readings: Sequence[Reading], rows: int) -> Tensor:
        """`[rows, width]`, zeros where there is nothing to read."""
        pieces = [piece for reading in readings for piece in reading.pieces]
        ids = np.zeros(rows, dtype=np.int64)
        given, row = [], 0
        for piece in pieces:
            end = row + len(piece)
            if piece.ndim == 1:
                ids[row:end] = piece
            else:
                given.append((row, end, piece))
            row = end
        embeddings = self._model.embed(torch.from_numpy(ids).to(self._model.device))
        for start, end, piece in given:
            embeddings[start:end] = torch.tensor(piece)
        return embeddings

    def draw(self, drawings: Sequence[Drawing]) -> list[int | Problem]:
        """Draws a token for each."""
        if not drawings:
            return []
        slots = [drawing.slot for drawing in drawings]
        positions = [drawing.position for drawing in drawings]
        hidden = self._cache.hidden[slots, positions]
        missing = self._head_rows.at_least(len(slots)) - len(slots)
        logits = self._model.logits(torch.nn.functional.pad(hidden, (0, 0, 0, missing)))
        self._samplers = {
            drawing.work: self._samplers.get(drawing.work) or Sampler(drawing.sampling)
            for drawing in drawings
        }
        samplers = [self._samplers[drawing.work] for drawing in drawings]
        return self._draw_rows(samplers, logits[: len(samplers)])

    def _draw_rows(self, samplers: Sequence[Sampler], logits: Tensor) -> list[int | Problem]:
        """Draws for all together; where that fails, for each alone, to find out for whom."""
        try:
            return [*draw_rows(samplers, logits)]
        except Exception as error:
            if len(samplers) == 1:
                log.exception("drawing a token failed")
                return [Problem(Reason.INTERNAL, _describe(error))]
        rows = zip(samplers, logits, strict=True)
        return [result for sampler, row in rows for result in self._draw_rows([sampler], row[None])]


def _not_finite(reading: Reading) -> Problem:
    return Problem(
        Reason.BAD_CONTENT,
        f"the model computes no finite numbers from positions {reading.start} to "
        f"{reading.start + reading.count - 1}; look at the size of the embeddings",
    )


def _describe(error: Exception) -> str:
    return f"the model failed: {type(error).__name__}"
