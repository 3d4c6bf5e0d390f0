"""Weights, which may not be there yet when a service starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from minmo.rpc.health import Readiness
from minmo.rpc.process import StartError
from minmo.weights.errors import WeightsError
from minmo.weights.parts import preset_name

Loaded = TypeVar("Loaded")

RETRY_SECONDS = 5.0
"""Time between two tries."""


async def load_weights(
    load: Callable[[], Loaded], preset: str, readiness: Readiness, *, wait: bool
) -> Loaded:
    """Loads in a thread; where that fails, health says why until it succeeds.

    A volume is filled, or a wrong file replaced, while the service waits.

    Args:
        load: raises WeightsError while weights are missing, damaged, or do not fit the preset.
        preset: whose weights.
        readiness: of the process.
        wait: whether to try again; else the process ends.

    Raises:
        StartError: there is no such preset, or the weights cannot be used and `wait` is false.
    """
    try:
        await asyncio.to_thread(preset_name, preset)
    except WeightsError as error:
        raise StartError(f"--preset: {error}") from error
    while True:
        try:
            loaded = await asyncio.to_thread(load)
        except WeightsError as error:
            if not wait:
                raise StartError(str(error)) from error
            readiness.set_not_ready(str(error), "weights")
            await asyncio.sleep(RETRY_SECONDS)
        else:
            readiness.set_ready("weights")
            return loaded
