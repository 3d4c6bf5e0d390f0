"""Which voices there are, as the voice decoder says."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import structlog

from minmo.rpc.errors import describe, invalid_argument
from minmo.v1 import voice_decoder_pb2
from minmo.v1.voice_decoder_pb2_grpc import VoiceDecoderServiceStub
from services.orchestrator.query import POSITIONS

if TYPE_CHECKING:
    from minmo.v1.voice_decoder_pb2_grpc import VoiceDecoderServiceAsyncStub

log = structlog.get_logger()

FRESH_SECONDS = 60.0
"""Time for which an answer holds; a name that it does not have is asked for at once."""
_AGAIN_SECONDS = 5.0
_DEADLINE_SECONDS = 1.0


@dataclass(frozen=True)
class Known:
    """What is known of the voices.

    Attributes:
        names: all of them, the default one first; empty if nobody knows.
        reads_hidden_states: whether they need the LLM's hidden states.
        query_positions: positions of the user's words that they read first; 0 for none.
    """

    names: tuple[str, ...] = ()
    reads_hidden_states: bool = False
    query_positions: int = 0


class Voices:
    """What the voices are, known for a while.

    Where the voice decoder does not say (it is away, or older than the question), what it said last
    holds; where it never did, any name is taken, and the voice decoder refuses what it has not.

    Args:
        channel: to the voice decoder.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: VoiceDecoderServiceAsyncStub = VoiceDecoderServiceStub(channel)
        self.latest = Known()
        """What they were when they were asked for last."""
        self._asked_at = -FRESH_SECONDS
        self._asking: asyncio.Task[None] | None = None

    async def known(self) -> Known:
        """What they are."""
        if time.monotonic() - self._asked_at >= FRESH_SECONDS:
            asking = self._ask()
            if not self.latest.names:
                await asyncio.shield(asking)
        return self.latest

    async def names(self) -> tuple[str, ...]:
        """All of them, the default one first; empty if nobody knows."""
        return (await self.known()).names

    async def check(self, name: str, field: str) -> None:
        """Raises INVALID_ARGUMENT for a voice that does not exist, with the list of those that do.

        Args:
            name: of the voice; empty is the default one.
            field: of the request.
        """
        if not name or name in await self.names():
            return
        await asyncio.shield(self._ask())
        known = self.latest.names
        if known and name not in known:
            raise invalid_argument(
                field,
                f"there is no voice {name[:60]!r}; there are: {', '.join(known)}",
                reason="VOICE_NOT_FOUND",
            )

    def _ask(self) -> asyncio.Task[None]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._asked())
        return self._asking

    async def _asked(self) -> None:
        self._asked_at = time.monotonic()
        try:
            response = await self._stub.ListVoices(
                voice_decoder_pb2.ListVoicesRequest(), timeout=_DEADLINE_SECONDS
            )
        except grpc.RpcError as failure:
            log.info("the voices are not known", error=describe(failure))
            self._asked_at += _AGAIN_SECONDS - FRESH_SECONDS
        else:
            self.latest = Known(
                tuple(response.names),
                response.reads_hidden_states,
                min(POSITIONS, response.max_query_positions),
            )
