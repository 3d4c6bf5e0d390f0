"""The branches of what the LLM has read: the conversation, and one that listens over an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from services.orchestrator.items import Item
from services.orchestrator.mind import Context


class Branches:
    """The main line of a conversation and at most one branch beside it (DESIGN: branches).

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
            before, self.main, self.overlap = self.main, self.overlap, None
            self._in_background(before.close())

    def drop_overlap(self) -> None:
        """The branch beside is freed."""
        if self.overlap is not None:
            dropped, self.overlap = self.overlap, None
            self._in_background(dropped.close())
