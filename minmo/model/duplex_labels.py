"""Labels of the duplex stage: when each question of the full-duplex predictor is asked, and what
the answer is, from the times of a conversation (paper, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

REACTION_MEAN_S = 0.6
REACTION_DEVIATION_S = 0.4
"""A listener needs T ~ N(0.6, 0.4²) s of an interruption to understand that it is one."""


class Turn(NamedTuple):
    """A stretch of speech of one side, pauses included, in seconds of the conversation."""

    start: float
    end: float


class DuplexLabels(NamedTuple):
    """What the predictor should say.

    Attributes:
        labels: `[positions, 2 questions]`, int64, 1 for yes.
        asked: `[positions, 2 questions]`, true where there is a label.
    """

    labels: Tensor
    asked: Tensor


def duplex_labels(
    times: Tensor,
    user_turns: Sequence[Turn],
    assistant_turns: Sequence[Turn],
    generator: torch.Generator,
) -> DuplexLabels:
    """Labels positions of a conversation.

    *Assistant turn-taking* is asked while the assistant is silent or the user speaks; the answer is
    yes from the end of the user's turn to the next start of a turn, of either side.

    *User turn-taking* is asked while the assistant speaks, and to the end of an interruption that
    outlasts its turn; the answer is yes from T after the start of an interruption, a user's turn
    that starts while the assistant speaks. T is drawn for each, cut off at 0 and at the
    interruption's end, by which all of it was heard.

    Back-channels are not turns: leave them out of `user_turns`, so that they are labelled no.

    Args:
        times: `[positions]`, how much of the conversation was heard at each position, in seconds;
            NaN for a position that stands for no time, which gets no label.
        user_turns: of the user, in order of time.
        assistant_turns: of the assistant, in order of time.
        generator: draws T, on the CPU: as many numbers as there are user's turns.

    Raises:
        ValueError: a turn ends before it starts, or turns of one side are not in order.
    """
    _check(user_turns, "user")
    _check(assistant_turns, "assistant")
    reactions = torch.normal(
        REACTION_MEAN_S, REACTION_DEVIATION_S, (len(user_turns),), generator=generator
    ).tolist()
    nothing = torch.zeros_like(times, dtype=torch.bool)
    user_speaks, assistant_speaks = nothing.clone(), nothing.clone()
    answer, stop, outlasting = nothing.clone(), nothing.clone(), nothing.clone()
    for turn in assistant_turns:
        assistant_speaks |= _within(times, turn.start, turn.end)
    starts = sorted(turn.start for turn in (*user_turns, *assistant_turns))
    for turn, reaction in zip(user_turns, reactions, strict=True):
        user_speaks |= _within(times, turn.start, turn.end)
        next_start = next((start for start in starts if start >= turn.end), torch.inf)
        answer |= _within(times, turn.end, next_start)
        for interrupted in assistant_turns:
            if interrupted.start <= turn.start < interrupted.end:
                understood = min(turn.start + max(reaction, 0.0), turn.end)
                stop |= _within(times, understood, max(turn.end, interrupted.end))
                outlasting |= _within(times, interrupted.end, turn.end)
    timed = times.isfinite()
    asked_answer = (~assistant_speaks | user_speaks | answer) & timed
    asked_stop = (assistant_speaks | outlasting) & timed
    return DuplexLabels(
        torch.stack((answer, stop), dim=-1).long(),
        torch.stack((asked_answer, asked_stop), dim=-1),
    )


def _within(times: Tensor, start: float, end: float) -> Tensor:
    return (times >= start) & (times < end)


def _check(turns: Sequence[Turn], side: str) -> None:
    before = -torch.inf
    for number, turn in enumerate(turns):
        if turn.end < turn.start:
            raise ValueError(
                f"turn {number} of the {side} ends at {turn.end} s, before it starts at "
                f"{turn.start} s"
            )
        if turn.start < before:
            raise ValueError(
                f"turn {number} of the {side} starts at {turn.start} s, before the one in front "
                f"of it ends at {before} s: give turns in order, and join those that overlap"
            )
        before = turn.end
