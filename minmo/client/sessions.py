"""Sessions as a client sees them: list, show, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc

from minmo.client.target import Target
from minmo.rpc.errors import parse
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub

if TYPE_CHECKING:
    from minmo.v1.conversation_pb2_grpc import ConversationServiceAsyncStub

_SECONDS = 10.0
_PAGE = 200


@asynccontextmanager
async def _stub(target: Target) -> AsyncIterator[ConversationServiceAsyncStub]:
    async with target.channel() as channel:
        stub: ConversationServiceAsyncStub = ConversationServiceStub(channel)
        try:
            yield stub
        except grpc.RpcError as failure:
            raise parse(failure) from None


async def list_sessions(target: Target, limit: int = _PAGE) -> list[conversation_pb2.Session]:
    """The caller's sessions, newest first, at most `limit`. Raises StatusError."""
    found: list[conversation_pb2.Session] = []
    token = ""
    async with _stub(target) as stub:
        while len(found) < limit:
            request = conversation_pb2.ListSessionsRequest(
                page_size=min(_PAGE, limit - len(found)), page_token=token
            )
            response = await stub.ListSessions(request, timeout=_SECONDS)
            found += response.sessions
            token = response.next_page_token
            if not token:
                break
    return found


async def get_session(target: Target, session_id: str) -> conversation_pb2.Session:
    """A session with its turns. Raises StatusError."""
    async with _stub(target) as stub:
        request = conversation_pb2.GetSessionRequest(session_id=session_id)
        return (await stub.GetSession(request, timeout=_SECONDS)).session


async def delete_session(target: Target, session_id: str) -> None:
    """Deletes a session. Raises StatusError."""
    async with _stub(target) as stub:
        request = conversation_pb2.DeleteSessionRequest(session_id=session_id)
        await stub.DeleteSession(request, timeout=_SECONDS)
