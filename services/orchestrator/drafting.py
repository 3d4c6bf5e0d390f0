"""Answers that are begun before it is known whether the user's turn has ended.

A draft is made on a branch of its own, of which nobody hears or reads anything. If the decision
falls before the user has said more, the branch becomes the conversation, and the answer begins with
the tokens that are there already. Otherwise it is dropped.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import structlog

from minmo.rpc.errors import StatusError
from minmo.v1 import common_pb2
from services.orchestrator import items
from services.orchestrator.branches import Branches
from services.orchestrator.manner import Manner
from services.orchestrator.mind import Context

log = structlog.get_logger()

LONGEST_SECONDS: Final = 1.5
"""After which a draft is dropped that nobody has taken; a GPU makes hundreds of tokens in it."""


@dataclass(eq=False)
class _Draft:
    """A draft.

    Attributes:
        source: the line that it goes on from.
        version: of what was to be read there.
        content: items that it has read there.
        making: done once its tokens are being made; None if they are not.
        expiry: drops it in the end.
    """

    source: Context
    version: int
    content: int
    making: asyncio.Task[Context | None] = field(init=False)
    expiry: asyncio.TimerHandle = field(init=False)


class Drafting:
    """At most one draft.

    Args:
        branches: of what the LLM has read.
    """

    def __init__(self, branches: Branches) -> None:
        self._branches = branches
        self._draft: _Draft | None = None
        self._expired: tuple[Context, int] | None = None

    def begin(self, manner: Manner, max_tokens: int) -> None:
        """Begins a draft of the answer to all that is to be read by now, unless there was one."""
        main = self._branches.main
        if self._draft is not None or self._expired == (main, main.version):
            return
        draft = self._draft = _Draft(main, main.version, len(main))
        draft.making = asyncio.create_task(self._make(manner, max_tokens))
        draft.expiry = asyncio.get_running_loop().call_later(LONGEST_SECONDS, self._expire)

    def drop(self) -> None:
        """Drops the draft, if there is one."""
        draft, self._draft = self._draft, None
        if draft is not None:
            draft.expiry.cancel()
            self._branches.in_background(self._waste(draft))

    def _expire(self) -> None:
        if self._draft is not None:
            self._expired = self._draft.source, self._draft.version
        self.drop()

    async def take(self) -> int | None:
        """Makes the draft the conversation, whose `generate` goes on with it.

        Returns:
            Items that the LLM had read when the draft began: the end of the user's speech. None
            where there is no draft of an answer to what is to be read by now.
        """
        draft = self._draft
        if draft is None:
            return None
        main = self._branches.main
        if draft.source is not main or draft.version != main.version:
            self.drop()
            return None
        context = await asyncio.shield(draft.making)
        if context is None or self._draft is not draft:
            self.drop()
            return None
        self._draft = None
        draft.expiry.cancel()
        self._branches.adopt(context)
        return draft.content

    async def _make(self, manner: Manner, max_tokens: int) -> Context | None:
        context = await self._branches.ahead()
        context.add([items.turn_end(), items.role_start(common_pb2.ROLE_ASSISTANT)])
        try:
            if await context.draft(
                max_tokens, manner.sampling, hidden_states=manner.voice.reads_hidden_states
            ):
                return context
        except StatusError as failure:
            log.info("no draft", error=str(failure))
        self._branches.free(context)
        return None

    async def _waste(self, draft: _Draft) -> None:
        context = await draft.making
        if context is not None:
            self._branches.free(context)
