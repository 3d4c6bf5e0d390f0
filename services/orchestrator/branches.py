"""The branches of what the LLM has read: the conversation, and those that may become it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from services.orchestrator.items import Item
from services.orchestrator.mind import Context


class Branches:
    """The main line of a conversation, at most one branch that listens over an answer, and others.

    Args:
        main: the conversation.
        in_background: does work that nobody waits for.
        stream_id: names the branches apart from those that the session's stream before has left.
    """

    def __init__(
        self, main: Context, in_background: Callable[[Awaitable[None]], None], stream_id: str
    ) -> None:
        self.main = main
        self.overlap: Context | None = None
        self._in_background = in_background
        self._stream_id = stream_id
        self._count = 0

    @property
    def listening(self) -> Context:
        """The branch that reads what the user says now."""
        return self.main if self.overlap is None else self.overlap

    async def open_overlap(self, length: int) -> Context:
        """A branch that has read the first `length` items of the main line."""
        self._count += 1
        self.overlap = await self.main.fork(f"overlap-{self._stream_id}-{self._count}", length)
        return self.overlap

    async def ahead(self) -> Context:
        """A branch that has read all of the main line, to go on from there for a while."""
        self._count += 1
        main = self.main
        return await main.fork(f"ahead-{self._stream_id}-{self._count}", len(main))

    def adopt(self, branch: Context) -> None:
        """A branch becomes the conversation; the line before it is freed."""
        before, self.main = self.main, branch
        self._in_background(before.close())

    def beside(self, content: Iterable[Item]) -> Context:
        """A branch that reads `content`, for one answer alone; `free` it afterwards."""
        self._count += 1
        return self.main.beside(f"beside-{self._stream_id}-{self._count}", content)

    def free(self, branch: Context) -> None:
        """Frees a branch that is not needed any more."""
        self._in_background(branch.close())

    def adopt_overlap(self) -> None:
        """The branch beside becomes the conversation; the line before it is freed."""
        if self.overlap is not None:
            overlap, self.overlap = self.overlap, None
            self.adopt(overlap)

    def in_background(self, work: Awaitable[None]) -> None:
        """Does work on a branch that nobody waits for."""
        self._in_background(work)

    def drop_overlap(self) -> None:
        """The branch beside is freed."""
        if self.overlap is not None:
            dropped, self.overlap = self.overlap, None
            self._in_background(dropped.close())
