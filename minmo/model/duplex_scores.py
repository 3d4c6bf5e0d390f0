"""How well the full-duplex predictor finds the moments at which the floor changes.

The paper's figure (Table 22) is the F1 of turn-taking with an offset of K: a predicted change is
right where the true one is no more than K steps of the predictor away. Here, for one question:

- a *change* is a step at which the answer is yes after it was no, or yes at the first step at which
  the question is asked at all;
- a predicted change is a *hit* where a true one is at most K steps before or behind it; each counts
  once, in the order of time;
- precision is hits over predicted changes, recall is hits over true ones. A prediction that wavers
  is several changes, of which one at most is a hit.

A back-channel is heard rightly where the assistant would not stop at any step of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """Changes of one question, summed over conversations.

    Attributes:
        hits: predicted changes that are right.
        predicted: all of them.
        true: changes that there are.
    """

    hits: int
    predicted: int
    true: int

    @property
    def precision(self) -> float:
        """Share of predicted changes that are right; 0 where there are none."""
        return self.hits / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of true changes that are found; 0 where there are none."""
        return self.hits / self.true if self.true else 0.0

    def f_score(self, beta: float = 1.0) -> float:
        """The weighted harmonic mean of both; recall weighs `beta` times as much."""
        weight = beta * beta
        total = weight * self.true + self.predicted
        return (1 + weight) * self.hits / total if total else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return self.f_score()


class Scored(NamedTuple):
    """What was said to one question in a conversation, step by step.

    Attributes:
        probabilities: `[steps]`, of a yes.
        answers: `[steps]`, bool, what is true.
        asked: `[steps]`, bool, where it was asked at all.
    """

    probabilities: Tensor
    answers: Tensor
    asked: Tensor


def changes(yes: Tensor, asked: Tensor) -> list[int]:
    """Steps at which an answer becomes yes.

    Args:
        yes: `[steps]`, bool.
        asked: `[steps]`, bool; steps at which nothing is asked are passed over, and what was
            answered before them still counts.
    """
    steps = asked.nonzero()[:, 0]
    answers = yes[steps]
    before = torch.cat((answers.new_zeros(1), answers[:-1]))
    found: list[int] = steps[answers & ~before].tolist()
    return found


def match(predicted: Sequence[int], true: Sequence[int], late: int, early: int) -> int:
    """How many predicted changes are hits.

    Args:
        predicted: steps, in order.
        true: steps, in order.
        late: steps that a predicted change may come behind the true one.
        early: steps that it may come before it.
    """
    hits, place = 0, 0
    for step in predicted:
        # A true change too long ago for this one is so for all that follow.
        while place < len(true) and true[place] < step - late:
            place += 1
        if place < len(true) and true[place] <= step + early:
            hits += 1
            place += 1
    return hits


def count_changes(
    conversations: Sequence[Scored], threshold: float, within: int, early: int | None = None
) -> Counts:
    """Changes of one question in conversations.

    Args:
        conversations: what was said in each.
        threshold: probability from which the answer is yes.
        within: K, in steps.
        early: steps that a hit may come too early; as many as K if None.
    """
    hits = predicted = true = 0
    for probabilities, answers, asked in conversations:
        found, there = changes(probabilities >= threshold, asked), changes(answers, asked)
        hits += match(found, there, within, within if early is None else early)
        predicted += len(found)
        true += len(there)
    return Counts(hits, predicted, true)


def share_below(stretches: Sequence[Tensor], threshold: float) -> float:
    """Share of stretches in which no step reaches a threshold.

    Of back-channels, and stopping, it is the accuracy; of pauses, and answering, the share of them
    in which the user is let finish.

    Args:
        stretches: probabilities `[steps]` of each; one without steps was never a question.
        threshold: probability from which the answer is yes.

    Returns:
        NaN where there are none.
    """
    asked = [one for one in stretches if len(one)]
    if not asked:
        return float("nan")
    return sum(bool((one < threshold).all()) for one in asked) / len(asked)


def best_threshold(counts: Mapping[float, Counts], beta: float) -> float:
    """The threshold with the highest F score; the highest one of several that are as good.

    Args:
        counts: of each threshold that may be chosen.
        beta: how much more recall weighs than precision; below 1 is patient, above 1 eager.
    """
    return max(counts, key=lambda threshold: (counts[threshold].f_score(beta), threshold))
