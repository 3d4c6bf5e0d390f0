"""Ports that belong to the stack from before its processes start until after they have ended."""

from __future__ import annotations

import socket

from minmo.stack.errors import StackError


class PortReservation:
    """A TCP port that is bound, but not listened on, for as long as this object is open.

    On Linux a socket with ``SO_REUSEADDR`` keeps its port out of the kernel's choice of free ones,
    while a server that sets the same option (gRPC, Triton, Valkey and Prometheus' do) may listen on
    it. So no other program gets the port between the choice and the start, nor while a process that
    died is started again, and those who were connected find it where it was.

    Args:
        host: address to bind.
        port: port to reserve; 0 takes a free one.
        flag: what another port is chosen with.

    Raises:
        StackError: something listens there already, or the address is not this machine's.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, flag: str = "--port") -> None:
        self._socket = socket.socket(_family(host), socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise StackError(
                f"cannot listen on {host} port {port}: {error.strerror or error}; "
                f"stop what uses it, or give another {flag} (0 takes a free one)"
            ) from None
        self.host = host
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Gives the port back; twice is fine."""
        self._socket.close()

    @property
    def address(self) -> str:
        """The port as a client on this machine reaches it, as in ``127.0.0.1:7100``."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
