"""Asks the full-duplex predictor about what is heard, one probe of a branch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from minmo.rpc import metrics
from services.orchestrator.listener import Probe
from services.orchestrator.mind import Context
from services.orchestrator.turn_taking import Probabilities


@dataclass(frozen=True)
class Answered:
    """What the predictor says to a probe of a segment."""

    segment_id: int
    said: Probabilities


class Prober:
    """Keeps one probe of a branch on its way, and the latest of those that wait behind it.

    Args:
        on_answer: gets what the predictor says.
    """

    def __init__(self, on_answer: Callable[[Answered], Awaitable[None]]) -> None:
        self._on_answer = on_answer
        self._running: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, Probe] = {}

    def ask(self, context: Context, probe: Probe) -> None:
        """Asks after all that the branch is to have read by now.

        A probe that still waits is replaced: the latest counts.
        """
        branch = context.branch
        if branch in self._running:
            if branch in self._waiting:
                metrics.count_probe("replaced")
            self._waiting[branch] = probe
        else:
            self._running[branch] = asyncio.create_task(self._work(context, probe))

    def forget(self) -> None:
        """Nobody wants to know any more what waits."""
        metrics.count_probe("replaced", len(self._waiting))
        self._waiting.clear()

    async def stop(self) -> None:
        """Asks nothing any more."""
        self.forget()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, context: Context, probe: Probe) -> None:
        try:
            asked: Probe | None = probe
            while asked is not None:
                await self._ask(context, asked)
                asked = self._waiting.pop(context.branch, None)
        finally:
            del self._running[context.branch]

    async def _ask(self, context: Context, probe: Probe) -> None:
        said = await context.probe(probe.matrix)
        if said is None:
            metrics.count_probe("failed")
            return
        metrics.count_probe("answered")
        probabilities = Probabilities(said.assistant_turn, said.user_turn, probe.end)
        await self._on_answer(Answered(probe.segment_id, probabilities))
