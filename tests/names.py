"""A name server of a test's own: names that resolve to what the test says, and change when it does.

gRPC asks it with a target that names it, as in ``dns://127.0.0.1:5300/encoder.test:7101``.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self, cast

_ADDRESS_QUERY = 1
_AUTHORITATIVE_ANSWER = 0x8400
_NO_SUCH_NAME = 3


class Names(asyncio.DatagramProtocol):
    """Answers for `addresses`: IPv4 addresses by name."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.queries = 0
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    @asynccontextmanager
    async def served(cls) -> AsyncIterator[Self]:
        """A server on 127.0.0.1."""
        loop = asyncio.get_running_loop()
        transport, names = await loop.create_datagram_endpoint(cls, local_addr=("127.0.0.1", 0))
        names.port = transport.get_extra_info("sockname")[1]
        try:
            yield names
        finally:
            transport.close()

    def target(self, name: str, port: int) -> str:
        """Where gRPC finds a name that this server knows."""
        return f"dns://127.0.0.1:{self.port}/{name}:{port}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, query: bytes, sender: tuple[str, int]) -> None:
        assert self._transport is not None
        self.queries += 1
        labels, end = [], 12
        while size := query[end]:
            labels.append(query[end + 1 : end + 1 + size].decode())
            end += 1 + size
        name = ".".join(labels)
        (kind,) = struct.unpack(">H", query[end + 1 : end + 3])
        known = self.addresses.get(name)
        found = known if known and kind == _ADDRESS_QUERY else []
        flags = _AUTHORITATIVE_ANSWER | (0 if known is not None else _NO_SUCH_NAME)
        answer = query[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + query[12 : end + 5]
        for address in found:
            # The name as a pointer to the question, kind A, class IN, valid for a second, 4 bytes.
            answer += struct.pack(">HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(address)
        self._transport.sendto(answer, sender)
