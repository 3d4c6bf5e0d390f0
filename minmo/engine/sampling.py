"""Draws tokens from logits; what others in the batch do has no influence on anybody's.

All rows of a step are drawn together, and their tokens come to the host as one copy: on a GPU,
asking for a number makes the host wait until everything before it is computed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from minmo.engine.operations import Sampling

# A nucleus rarely has more tokens; sorting a whole vocabulary takes longer than a layer.
_USUAL_NUCLEUS = 512

_Pick: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Sampler:
    """What one generation's draws depend on."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = random.Random(sampling.seed)
        self._point: float | None = None
        self._drawn: set[int] = set()

    @property
    def point(self) -> float:
        """Where between 0 and 1 the next draw falls; the same until a token is noted."""
        if self._point is None:
            self._point = self._random.random()
        return self._point

    @property
    def penalised(self) -> list[int]:
        """Tokens that became less probable."""
        return sorted(self._drawn) if self.sampling.repetition_penalty != 1.0 else []

    def note(self, token: int) -> None:
        """The token that was drawn."""
        self._point = None
        self._drawn.add(token)

    def draw(self, logits: Tensor) -> int:
        """The next token, from logits `[vocabulary]` in float32."""
        return draw_rows([self], logits[None])[0]


def draw_rows(samplers: Sequence[Sampler], logits: Tensor) -> list[int]:
    """Draws the next token of each generation.

    The host waits once for the device, and once more in the rare case that a nucleus is large.

    Args:
        samplers: of the generations, none twice.
        logits: `[generations, vocabulary]`, float32.
    """
    logits = _penalised(samplers, logits)
    tokens = torch.zeros(len(samplers), dtype=torch.long, device=logits.device)
    settled = torch.ones(len(samplers), dtype=torch.bool, device=logits.device)
    kinds = [_kind_of(sampler.sampling) for sampler in samplers]
    for kind in dict.fromkeys(kinds):
        rows = [row for row, other in enumerate(kinds) if other is kind]
        if kind is None:
            chosen = _some(logits, rows).argmax(-1)
        else:
            chosen, settled[rows] = _drawn([samplers[row] for row in rows], logits, rows, kind)
        tokens[rows] = chosen
    found: list[list[int]] = torch.stack((tokens, settled.long())).tolist()
    drawn = found[0]
    if open_rows := [row for row, is_settled in enumerate(found[1]) if not is_settled]:
        again, _ = _drawn([samplers[row] for row in open_rows], logits, open_rows, _from_nucleus)
        for row, token in zip(open_rows, again.tolist(), strict=True):
            drawn[row] = token
    for sampler, token in zip(samplers, drawn, strict=True):
        sampler.note(token)
    return drawn


def _penalised(samplers: Sequence[Sampler], logits: Tensor) -> Tensor:
    triples = [
        (row, token, sampler.sampling.repetition_penalty)
        for row, sampler in enumerate(samplers)
        for token in sampler.penalised
    ]
    if not triples:
        return logits
    rows, tokens, factors = zip(*triples, strict=True)
    where = torch.tensor((rows, tokens), device=logits.device).unbind()
    penalties = torch.tensor(factors, device=logits.device, dtype=logits.dtype)
    scores = logits[where]
    logits = logits.clone()
    logits[where] = torch.where(scores > 0, scores / penalties, scores * penalties)
    return logits


def _kind_of(sampling: Sampling) -> _Pick | None:
    """How a token is picked; None for the most probable one."""
    if sampling.temperature == 0.0:
        return None
    return _from_all if sampling.top_p >= 1.0 else _from_usual_nucleus


def _some(logits: Tensor, rows: list[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[rows]


def _drawn(
    samplers: Sequence[Sampler], logits: Tensor, rows: list[int], pick: _Pick
) -> tuple[Tensor, Tensor]:
    """Tokens `[rows]`, and for which of the rows they hold."""
    numbers = [(s.sampling.temperature, s.sampling.top_p, s.point) for s in samplers]
    columns = torch.tensor(numbers, device=logits.device, dtype=torch.float64)
    temperatures, masses, points = (columns[:, number, None] for number in range(3))
    probabilities = (_some(logits, rows) / temperatures.to(logits.dtype)).softmax(-1)
    return pick(probabilities, masses, points)


def _from_all(probabilities: Tensor, _: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    tokens = _at(sums, points * sums[:, -1:])[:, 0]
    return tokens, torch.ones_like(tokens, dtype=torch.bool)


def _from_usual_nucleus(
    probabilities: Tensor, masses: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """From the nucleus where it is among the most probable; where not, the token is void."""
    values, ids = probabilities.topk(min(_USUAL_NUCLEUS, probabilities.shape[-1]))
    return _from_sorted(values, ids, masses, points)


def _from_nucleus(probabilities: Tensor, masses: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    values, ids = probabilities.sort(descending=True)
    return _from_sorted(values, ids, masses, points)


def _from_sorted(
    values: Tensor, ids: Tensor, masses: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    sums = values.cumsum(-1, dtype=torch.float64)
    last = _at(sums, masses)
    index = _at(sums, points * sums.gather(-1, last)).minimum(last)
    return ids.gather(-1, index)[:, 0], sums[:, -1] >= masses[:, 0]


def _at(sums: Tensor, points: Tensor) -> Tensor:
    """In each row the first index whose running sum exceeds the row's point, `[rows, 1]`."""
    return torch.searchsorted(sums, points.contiguous(), right=True).clamp(max=sums.shape[-1] - 1)
