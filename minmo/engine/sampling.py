"""Draws a token from logits; what others in the batch do has no influence."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from minmo.engine.operations import Sampling

# A nucleus rarely has more tokens; sorting a whole vocabulary takes longer than a layer.
_USUAL_NUCLEUS = 512


class Sampler:
    """Draws the tokens of one generation, one after the other."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = random.Random(sampling.seed)
        self._drawn: set[int] = set()

    def draw(self, logits: Tensor) -> int:
        """The next token, from logits `[vocabulary]` in float32."""
        sampling = self._sampling
        if sampling.repetition_penalty != 1.0 and self._drawn:
            logits = self._penalised(logits)
        if sampling.temperature == 0.0:
            token = int(logits.argmax())
        else:
            token = self._pick((logits / sampling.temperature).softmax(-1))
        self._drawn.add(token)
        return token

    def _penalised(self, logits: Tensor) -> Tensor:
        ids = torch.tensor(sorted(self._drawn), device=logits.device)
        scores, penalty = logits[ids], self._sampling.repetition_penalty
        logits = logits.clone()
        logits[ids] = torch.where(scores > 0, scores / penalty, scores * penalty)
        return logits

    def _pick(self, probabilities: Tensor) -> int:
        point = self._random.random()
        if self._sampling.top_p >= 1.0:
            sums = probabilities.cumsum(0, dtype=torch.float64)
            return _at(sums, point * float(sums[-1]))
        size = min(_USUAL_NUCLEUS, len(probabilities))
        values, ids = probabilities.topk(size)
        sums = values.cumsum(0, dtype=torch.float64)
        if float(sums[-1]) < self._sampling.top_p:
            values, ids = probabilities.sort(descending=True)
            sums = values.cumsum(0, dtype=torch.float64)
        last = _at(sums, self._sampling.top_p)
        return int(ids[_at(sums[: last + 1], point * float(sums[last]))])


def _at(sums: Tensor, point: float) -> int:
    """The first index whose running sum exceeds `point`."""
    index = int(torch.searchsorted(sums, sums.new_tensor(point), right=True))
    return min(index, len(sums) - 1)
