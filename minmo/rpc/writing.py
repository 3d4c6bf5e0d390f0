"""Writing to a peer that may not read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from minmo.rpc.errors import resource_exhausted

Message = TypeVar("Message")


async def write_within(
    seconds: float, write: Callable[[Message], Awaitable[None]], message: Message
) -> None:
    """Writes a message of a stream; gRPC alone would wait without an end for a peer to read.

    Raises:
        StatusError: RESOURCE_EXHAUSTED, the peer read nothing in that time.
    """
    try:
        async with asyncio.timeout(seconds):
            await write(message)
    except TimeoutError:
        raise resource_exhausted(
            f"the caller has read nothing for {seconds:g} s",
            limit=f"{seconds:g} s",
            reason="READER_TOO_SLOW",
        ) from None
