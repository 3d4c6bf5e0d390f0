"""A bounded queue between what makes a stream's messages and what sends them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from minmo.rpc.errors import resource_exhausted

Item = TypeVar("Item")


class StreamClosedError(Exception):
    """`put` on a stream that was closed or has failed; the failure, if any, is the cause."""


class BoundedStream(Generic[Item]):
    """Messages on their way to a peer that may not read.

    One side puts and at last closes or fails it, the other side iterates, both on one event loop::

        answers: BoundedStream[Answer] = BoundedStream(limit=64, put_timeout_seconds=5)
        await answers.put(answer)    # waits while full, RESOURCE_EXHAUSTED after the timeout
        answers.close()              # the iteration ends after what still waits
        async for answer in answers: ...

    Args:
        limit: most items that wait.
        put_timeout_seconds: longest wait of `put` for room.
        reader: whom the error names.
    """

    def __init__(
        self, limit: int, *, put_timeout_seconds: float = 5.0, reader: str = "client"
    ) -> None:
        if limit < 1:
            raise ValueError(f"limit is {limit}: at least 1 message must fit")
        self._limit = limit
        self._put_timeout_seconds = put_timeout_seconds
        self._reader = reader
        self._items: deque[Item] = deque()
        self._closed = False
        self._failure: BaseException | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    @property
    def closed(self) -> bool:
        """True once nothing more can be put."""
        return self._closed

    async def put(self, item: Item, timeout_seconds: float | None = None) -> None:
        """Adds an item, waiting for room for `timeout_seconds` (the stream's own if None).

        Raises:
            StatusError: RESOURCE_EXHAUSTED, the reader took nothing in that time.
            StreamClosedError: the stream is closed or has failed.
        """
        timeout = self._put_timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            async with asyncio.timeout(timeout):
                while not self.put_nowait(item):
                    await self._writable.wait()
        except TimeoutError:
            raise resource_exhausted(
                f"{self._reader} does not read: {len(self)} messages waited for {timeout:g} s",
                limit=f"{self._limit} messages, {timeout:g} s",
                reason="READER_TOO_SLOW",
            ) from None

    def put_nowait(self, item: Item) -> bool:
        """Adds an item if there is room; False if there is none.

        Raises:
            StreamClosedError: the stream is closed or has failed.
        """
        if self._closed:
            raise StreamClosedError("nothing can be put: the stream is closed") from self._failure
        if len(self._items) >= self._limit:
            return False
        self._items.append(item)
        self._update()
        return True

    def clear(self) -> int:
        """Drops what waits (audio that nobody will hear after a barge-in); says how many."""
        dropped = len(self._items)
        self._items.clear()
        self._update()
        return dropped

    def close(self) -> None:
        """Ends the iteration after what waits; closing twice is fine."""
        self._closed = True
        self._update()

    def fail(self, failure: BaseException) -> None:
        """Makes the iteration raise `failure` at once; what waits is dropped.

        Does nothing on a stream that is closed already.
        """
        if not self._closed:
            self._failure = failure
            self._items.clear()
            self.close()

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        while not self._items:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise StopAsyncIteration
            await self._readable.wait()
        item = self._items.popleft()
        self._update()
        return item

    def _update(self) -> None:
        for event, state in (
            (self._readable, bool(self._items) or self._closed),
            (self._writable, len(self._items) < self._limit or self._closed),
        ):
            if state:
                event.set()
            else:
                event.clear()
