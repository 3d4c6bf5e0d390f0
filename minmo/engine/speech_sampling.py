"""Draws speech tokens; a token that keeps coming back is drawn again from all of them.

Repetition-aware sampling of VALL-E 2 (arXiv 2406.05370, section 3.3), with CosyVoice 2's numbers:
a nucleus repeats itself in silences and long vowels, and a model that hears itself repeat does not
stop.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from minmo.model.voice_token_lm import SPECIAL_CLASSES


class RepetitionAwareSampler:
    """Draws the speech tokens of one utterance, one after the other.

    Args:
        top_p: probability that the nucleus reaches.
        top_k: tokens that the nucleus has at most.
        window: last tokens that are looked at for repetitions.
        threshold: share of the window from which on a token counts as repeated.
        seed: of the draws; one seed gives one sequence.
    """

    def __init__(
        self,
        top_p: float = 0.8,
        top_k: int = 25,
        window: int = 10,
        threshold: float = 0.1,
        seed: int = 0,
    ) -> None:
        self._top_p, self.top_k = top_p, top_k
        # Rounded, so that 0.3 of 10 is 3 and not the 3.0000000000000004 that nothing reaches.
        self._repeated = round(window * threshold, 6)
        self._last: deque[int] = deque(maxlen=window)
        self._random = random.Random(seed)

    def draw(self, logits: Tensor, may_end: bool) -> int:
        """The next token, from logits `[classes]`: a speech token, or the end if it may come.

        The classes are the speech tokens, the end, one without use, and the fill.
        """
        return draw_rows([self], logits[None], [may_end])[0]

    def note(self, token: int) -> None:
        """Counts a token that was spoken, drawn or given by a prompt."""
        self._last.append(token)

    def _pick(self, values: list[float], ids: list[int]) -> int | None:
        """A token of the nucleus; None if it keeps coming back."""
        token = ids[self._in_nucleus(values)]
        return None if self._last.count(token) >= self._repeated else token

    def _point(self) -> float:
        return self._random.random()

    def _in_nucleus(self, values: list[float]) -> int:
        total, size = 0.0, 0
        while size < len(values) and total < self._top_p and values[size] > 0:
            total += values[size]
            size += 1
        point = self._random.random() * total
        for index in range(size - 1):
            point -= values[index]
            if point < 0:
                return index
        return size - 1


def draw_rows(
    samplers: Sequence[RepetitionAwareSampler], logits: Tensor, may_end: Sequence[bool]
) -> list[int]:
    """Draws a token for each of several utterances.

    The host waits once for the device, and once more if anybody repeats a token.

    Args:
        samplers: of the utterances.
        logits: `[utterances, classes]`.
        may_end: for each, whether the end may come.
    """
    end = logits.shape[1] - SPECIAL_CLASSES
    scores = logits[:, : end + 1].float()
    if not all(may_end):
        closed = torch.tensor([not may for may in may_end], device=scores.device)
        scores = scores.clone()
        scores[:, end].masked_fill_(closed, float("-inf"))
    probabilities = scores.softmax(-1)
    values, ids = probabilities.topk(min(max(s.top_k for s in samplers), end + 1))
    # As one copy: float64 holds both without loss.
    likely, which = torch.stack((values.double(), ids.double())).tolist()
    drawn = [
        sampler._pick(row[: sampler.top_k], [int(token) for token in tokens[: sampler.top_k]])
        for sampler, row, tokens in zip(samplers, likely, which, strict=True)
    ]
    if repeating := [row for row, token in enumerate(drawn) if token is None]:
        points = [samplers[row]._point() for row in repeating]
        limits = [end - 1 + may_end[row] for row in repeating]
        again = _from_all(probabilities[repeating], points, limits)
        for row, token in zip(repeating, again, strict=True):
            drawn[row] = token
    tokens = [token for token in drawn if token is not None]
    for sampler, token in zip(samplers, tokens, strict=True):
        sampler.note(token)
    return tokens


def _from_all(probabilities: Tensor, points: list[float], limits: list[int]) -> list[int]:
    """A class of each row `[rows, classes]`, where a point between 0 and 1 falls."""
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    at = sums[:, -1:] * torch.tensor(points, dtype=torch.float64, device=sums.device)[:, None]
    found = torch.searchsorted(sums, at, right=True)[:, 0]
    drawn: list[int] = found.minimum(torch.tensor(limits, device=sums.device)).tolist()
    return drawn
