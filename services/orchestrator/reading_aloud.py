"""A text as the voice reads it: in the LLM's tokens, with what the LLM makes of them.

The LLM reads the text as if it had answered with it (teacher forcing, as in training), on a cache
of its own, which is freed afterwards. It has been told who it is and, where there is one, how to
speak: that instruction is the user's turn before, which the voice reads first.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grpc

from minmo.v1 import voice_decoder_pb2
from minmo.v1.common_pb2 import ROLE_ASSISTANT, FloatMatrix
from services.orchestrator import history, items
from services.orchestrator.items import Item
from services.orchestrator.link import Link
from services.orchestrator.mind import Context, Epoch
from services.orchestrator.query import Query

# So much text has hidden states that fit a message, also those of the widest LLM and of text of
# which each byte is a token.
_PIECE_BYTES = 240
# An LLM that hangs forgets the session by itself, later.
_FREE_SECONDS = 2.0
# A tokenizer cuts here itself: what stands apart has the tokens that it has together.
_BORDER = re.compile(r"(?<=\S)(?= \S)")


class ReadAloud(NamedTuple):
    """What the voice reads.

    Attributes:
        query: how it is to speak.
        tokens: of the text, each with the hidden state that predicted it.
    """

    query: Query
    tokens: list[voice_decoder_pb2.TextTokens]


class Reader:
    """The LLM, as it reads texts that are to be spoken.

    Args:
        channel: to the LLM service.
        system_prompt: who the LLM is told it is.
        deadline_seconds: longest wait for its next answer.
        recovery_seconds: how long to try to have it.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        system_prompt: str,
        *,
        deadline_seconds: float,
        recovery_seconds: float,
    ) -> None:
        self._channel = channel
        self._system_prompt = system_prompt
        self._deadline_seconds = deadline_seconds
        self._recovery_seconds = recovery_seconds

    async def read(self, text: str, instruct: str, query_positions: int) -> ReadAloud:
        """Lets the LLM read a text.

        Args:
            text: to be spoken.
            instruct: how, in words; empty is neutral.
            query_positions: positions of the instruction that the voice reads at most.

        Raises:
            StatusError: the LLM could not be had in time, or the text is too long for it.
        """
        link = Link(
            self._channel, f"say-{uuid.uuid4().hex}", deadline_seconds=self._deadline_seconds
        )
        context = _context(link, self._recovery_seconds)
        context.query_positions = query_positions
        content = history.told_by_system(self._system_prompt)
        if instruct.strip():
            content += history.told_by_user(instruct)
        context.add(content)
        try:
            await context.sync()
            return ReadAloud(context.query(), await _read(context, text))
        finally:
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_FREE_SECONDS):
                        await context.close(whole_session=True)
            finally:
                await link.close()


def _context(link: Link, recovery_seconds: float) -> Context:
    number = 0

    async def advance() -> int:
        nonlocal number
        number += 1
        return number

    async def on_outage(lost: bool) -> None:
        """Nobody is told: the one who waits has a deadline."""

    epoch = Epoch(number, advance)
    return Context(link, epoch, "main", recovery_seconds=recovery_seconds, on_outage=on_outage)


async def _read(context: Context, text: str) -> list[voice_decoder_pb2.TextTokens]:
    """Lets the LLM read a text piece by piece, behind the start of its turn."""
    read: list[voice_decoder_pb2.TextTokens] = []
    ahead: Sequence[Item] = [items.role_start(ROLE_ASSISTANT)]
    before = b""
    for piece in pieces_of(text):
        done = await context.read_aloud([*ahead, items.text(piece)])
        # The token at a position was predicted by the hidden state at the position before.
        states, row_bytes = before + done.hidden_states.data, 4 * done.hidden_states.columns
        before = states[len(states) - row_bytes :]
        count = len(done.tokens)
        first = len(states) // row_bytes - 1 - count
        read.append(
            voice_decoder_pb2.TextTokens(
                tokens=[
                    voice_decoder_pb2.TextToken(id=token.id, text=token.text)
                    for token in done.tokens
                ],
                hidden_states=FloatMatrix(
                    data=states[first * row_bytes : (first + count) * row_bytes],
                    rows=count,
                    columns=done.hidden_states.columns,
                ),
            )
        )
        ahead = []
    return read


def pieces_of(text: str) -> Iterator[str]:
    """A text in pieces that have, one after the other, the tokens that it has as a whole.

    A word that alone is too long is cut, and its tokens are others.
    """
    piece = ""
    for word in _BORDER.split(text):
        if piece and len((piece + word).encode()) > _PIECE_BYTES:
            yield piece
            piece = ""
        piece += word
        while len(piece.encode()) > _PIECE_BYTES:
            longest = piece.encode()[:_PIECE_BYTES].decode(errors="ignore")
            yield longest
            piece = piece.removeprefix(longest)
    if piece:
        yield piece
