"""How far a run is, by steps or by the clock, and the learning rate that goes with it."""

from __future__ import annotations

import math

from minmo.training.config import ScheduleConfig


def progress(config: ScheduleConfig, steps: int, seconds: float) -> float:
    """How far the run is, 0 to 1 and 1 when it has ended: by whichever limit is nearer.

    Args:
        config: the limits.
        steps: taken so far.
        seconds: that it has run, those before it was resumed among them.
    """
    done = 0.0
    if config.steps is not None:
        done = max(done, steps / config.steps)
    if config.minutes is not None:
        done = max(done, seconds / (60 * config.minutes))
    return min(done, 1.0)


def factor(config: ScheduleConfig, done: float) -> float:
    """The share of each learning rate.

    It rises over the warm-up, then falls to the floor with the end of the run.

    Args:
        config: of the schedule.
        done: of `progress`.
    """
    if done < config.warmup:
        # The first step learns too.
        return max(done / config.warmup, 0.01)
    rest = (done - config.warmup) / max(1 - config.warmup, 1e-9)
    match config.decay:
        case "cosine":
            left = 0.5 * (1 + math.cos(math.pi * rest))
        case "linear":
            left = 1 - rest
        case "constant":
            left = 1.0
    return config.floor + (1 - config.floor) * left
