"""How near two answers are: words in common, and distributions of the next token."""

from __future__ import annotations

from collections import Counter

from torch import Tensor
from torch.nn import functional as F

from minmo.evaluation.normalise import normalise


def word_f1(first: str, second: str) -> float:
    """F1 of the normalised words of two texts, in any order; 1 for two without words."""
    one, other = normalise(first).split(), normalise(second).split()
    return _f1((Counter(one) & Counter(other)).total(), len(one), len(other))


def rouge_l(first: str, second: str) -> float:
    """F1 of the longest common subsequence of normalised words (Lin, 2004)."""
    one, other = normalise(first).split(), normalise(second).split()
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for number, match in enumerate(other):
            same = before[number] + 1 if word == match else 0
            row.append(max(same, row[number], before[number + 1]))
    return _f1(row[-1], len(one), len(other))


def mean_divergence(wanted: Tensor, found: Tensor) -> float:
    """Mean over tokens of the Kullback-Leibler divergence from `found` to `wanted`, in nats.

    Args:
        wanted: log probabilities `[tokens, vocabulary]` from text.
        found: the same from speech.
    """
    return float(F.kl_div(found, wanted, reduction="batchmean", log_target=True).clamp(min=0))


def cosine_distance(first: Tensor, second: Tensor) -> float:
    """1 less the cosine of the angle between two vectors `[width]`; 0 for equal ones."""
    cosine = F.cosine_similarity(first.double(), second.double(), dim=0)
    return float((1 - cosine).clamp(min=0))


def _f1(common: int, first: int, second: int) -> float:
    return 2 * common / (first + second) if first + second else 1.0
