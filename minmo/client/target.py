"""Where a MinMo server is and how it lets its clients in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from minmo.client.errors import ClientError
from minmo.rpc import client

# Twenty minutes of speech as 16-bit PCM at 24 kHz.
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Target:
    """A MinMo server.

    Attributes:
        address: ``host:port`` or another gRPC target.
        token: API token, where the server wants one.
        tls_ca: PEM file of the CA that signed the server's certificate; turns TLS on.
        tls_cert: PEM file of the client's certificate chain (mutual TLS).
        tls_key: PEM file of its private key.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def channel(self) -> grpc.aio.Channel:
        """A channel to it, to be closed by the caller (``async with``).

        Raises:
            ClientError: a PEM file cannot be read.
        """
        try:
            return client.channel(
                self.address,
                token=self.token,
                tls_ca=self.tls_ca,
                tls_cert=self.tls_cert,
                tls_key=self.tls_key,
                max_message_bytes=_MAX_MESSAGE_BYTES,
            )
        except OSError as error:
            raise ClientError(f"cannot read {error.filename}: {error.strerror}") from None
