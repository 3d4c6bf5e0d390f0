"""How every client of a MinMo service connects.

Generated stubs do the calls; this opens their channel, waits for a service, and names the session::

    await wait_ready(address, deadline_seconds=30)
    async with channel(address, token=token) as connection:
        stub = EncoderServiceStub(connection)
        async for answer in stub.Encode(requests, timeout=60, metadata=call_metadata(session_id)):
            ...

Every call needs a ``timeout=`` of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pkgutil
import time
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import grpc
from grpc_health.v1 import health_pb2
from typing_extensions import override

from minmo.rpc.errors import describe, unavailable
from minmo.rpc.health import SERVICE_NAME
from minmo.rpc.metadata import (
    AUTHORIZATION_KEY,
    NOT_READY_KEY,
    SESSION_KEY,
    bearer,
    call_metadata,
)

__all__ = [
    "DEFAULT_MAX_MESSAGE_BYTES",
    "Balancing",
    "call_metadata",
    "channel",
    "problem_of",
    "problem_over",
    "wait_ready",
]

Balancing: TypeAlias = Literal["in_turn", "by_load", "by_session"]
"""How calls are spread over replicas.

`in_turn`: one after the other. `by_load`: more to those that say that they have less to do
(`minmo.rpc.load`). `by_session`: a session's calls go to one replica, the same from everywhere, as
long as it is there; when it is not, to the next on a ring (gRFC A42, A76).
"""

DEFAULT_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
_CONTRACTS = "minmo.v1"
_POLL_SECONDS = 0.05

_Check: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[Any, health_pb2.HealthCheckResponse]"

_POLICIES: dict[Balancing, dict[str, Any]] = {
    "in_turn": {"round_robin": {}},
    "by_load": {
        "weighted_round_robin": {
            "enableOobLoadReport": True,
            "oobReportingPeriod": "1s",
            "blackoutPeriod": "0s",
            "weightUpdatePeriod": "1s",
            "weightExpirationPeriod": "10s",
        }
    },
    "by_session": {"ring_hash_experimental": {"requestHashHeader": SESSION_KEY}},
}
# gRPC reads it whenever a ring is made; without it the header is not looked at.
os.environ.setdefault("GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY", "true")

# UNAVAILABLE mostly means that no server took the call.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def channel(
    address: str,
    *,
    token: str | None = None,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_server_name: str | None = None,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    keepalive_seconds: float = 10.0,
    balancing: Balancing = "in_turn",
    only_healthy: bool = True,
) -> grpc.aio.Channel:
    """A channel to a service, to be closed by the caller (``async with``).

    It spreads calls over all replicas that `address` resolves to and that say that they are ready;
    one that drains or lacks something gets no new calls from that moment on. Names are resolved
    again when a connection ends, at most once a second; servers end theirs after a while for that
    reason, so new replicas are found. It notices a peer that vanished within one and a half times
    `keepalive_seconds`, within half of them where something is on its way, reconnects within about
    two seconds, and repeats unary calls (never streams) that came back UNAVAILABLE, up to three
    times.

    Args:
        address: ``host:port``, or any gRPC target, as in ``dns:///encoder:7101`` for all addresses
            of a name, or ``ipv4:10.0.0.1:7101,10.0.0.2:7101`` for a list.
        token: API token to send with every call.
        tls_ca: PEM file of the CA that signed the server's certificate; turns TLS on.
        tls_cert: PEM file of the certificate chain that the client shows (mutual TLS).
        tls_key: PEM file of its private key.
        tls_server_name: name that the server's certificate is for, if it isn't the address' host.
        max_message_bytes: largest message, either way.
        keepalive_seconds: time between pings, and twice the time to wait for their answer. Servers
            drop clients that ping more than twice as often as they themselves do.
        balancing: how calls are spread. `by_session` needs `call_metadata` that names a session.
        only_healthy: whether a replica must say that it is ready; one that has no health service
            always counts as ready.

    Raises:
        OSError: a PEM file cannot be read.
    """
    keepalive_ms = int(keepalive_seconds * 1000)
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", _service_config(balancing, only_healthy=only_healthy)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms // 2),
        ("grpc.http2.ping_timeout_ms", keepalive_ms // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # The defaults wait up to two minutes before they look whether a replica is back.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # Services are neighbours; a proxy from the environment is for the world outside.
        ("grpc.enable_http_proxy", 0),
    ]
    if tls_server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls_server_name))
    interceptors = [] if token is None else _token_interceptors(token)
    if tls_ca is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    credentials = grpc.ssl_channel_credentials(
        tls_ca.read_bytes(),
        private_key=tls_key.read_bytes() if tls_key else None,
        certificate_chain=tls_cert.read_bytes() if tls_cert else None,
    )
    return grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors)


async def wait_ready(
    address: str,
    service: str = "",
    *,
    deadline_seconds: float = 30.0,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_server_name: str | None = None,
) -> None:
    """Returns when a service says that it is ready (health needs no token).

    Args:
        address: as for `channel`.
        service: full name of a service there; "" asks for the process as a whole.
        deadline_seconds: how long to wait.

    Raises:
        StatusError: UNAVAILABLE, it was not ready in that time; says why.
    """
    deadline = time.monotonic() + deadline_seconds
    async with channel(
        address,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_server_name=tls_server_name,
        # Who is asked whether it is ready need not be.
        only_healthy=False,
    ) as connection:
        check = _check_over(connection)
        problem = "no answer"
        while (remaining := deadline - time.monotonic()) > 0:
            problem = await _health_problem(check, service, min(remaining, 5.0))
            if not problem:
                return
            await asyncio.sleep(min(_POLL_SECONDS, remaining))
    raise unavailable(
        f"{service or 'the service'} at {address} is not ready after {deadline_seconds:g} s: "
        f"{problem}",
        reason="NOT_READY",
    )


async def problem_of(
    address: str,
    *,
    timeout_seconds: float = 2.0,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> str:
    """What a service lacks, as one of its replicas says it; "" if that is ready.

    Args:
        address: as for `channel`.
        timeout_seconds: how long to wait for an answer.
    """
    async with channel(
        address, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, only_healthy=False
    ) as connection:
        return await problem_over(connection, timeout_seconds)


async def problem_over(connection: grpc.aio.Channel, timeout_seconds: float = 2.0) -> str:
    """Why no replica takes calls over a channel; "" if one does."""
    return await _health_problem(_check_over(connection), "", timeout_seconds)


def _check_over(connection: grpc.aio.Channel) -> _Check:
    return connection.unary_unary(
        f"/{SERVICE_NAME}/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )


async def _health_problem(check: _Check, service: str, timeout_seconds: float) -> str:
    """Why the service is not ready; "" if it is."""
    call = check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_seconds)
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        return describe(error)
    if response.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return str(dict(await call.trailing_metadata()).get(NOT_READY_KEY, "not serving"))


@cache
def _service_config(balancing: Balancing, *, only_healthy: bool) -> str:
    config: dict[str, Any] = {
        "loadBalancingConfig": [_POLICIES[balancing]],
        "methodConfig": [{"name": _unary_methods(), "retryPolicy": _RETRY_POLICY}],
    }
    if only_healthy:
        # The process as a whole (gRFC A17).
        config["healthCheckConfig"] = {"serviceName": ""}
    return json.dumps(config)


def _unary_methods() -> list[dict[str, str]]:
    """The unary methods of our contracts; a retried stream would say its first part twice."""
    contracts = importlib.import_module(_CONTRACTS)
    files = [
        importlib.import_module(f"{_CONTRACTS}.{module.name}").DESCRIPTOR
        for module in pkgutil.iter_modules(contracts.__path__)
        if module.name.endswith("_pb2")
    ]
    return [
        {"service": service.full_name, "method": method.name}
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
        if not (method.client_streaming or method.server_streaming)
    ]


class _AddsToken:
    """Adds ``authorization`` to the metadata of a call."""

    def __init__(self, token: str) -> None:
        self._value = bearer(token)

    async def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(
            grpc.aio.ClientCallDetails(
                details.method,
                details.timeout,
                grpc.aio.Metadata(*(details.metadata or ()), (AUTHORIZATION_KEY, self._value)),
                details.credentials,
                details.wait_for_ready,
            ),
            request,
        )


# gRPC takes an interceptor for one kind of call only, so there is a class for each.
class _AddsTokenToUnaryUnary(_AddsToken, grpc.aio.UnaryUnaryClientInterceptor):
    @override
    async def intercept_unary_unary(self, *call: Any) -> Any:
        return await self._intercept(*call)


class _AddsTokenToUnaryStream(_AddsToken, grpc.aio.UnaryStreamClientInterceptor):
    @override
    async def intercept_unary_stream(self, *call: Any) -> Any:
        return await self._intercept(*call)


class _AddsTokenToStreamUnary(_AddsToken, grpc.aio.StreamUnaryClientInterceptor):
    @override
    async def intercept_stream_unary(self, *call: Any) -> Any:
        return await self._intercept(*call)


class _AddsTokenToStreamStream(_AddsToken, grpc.aio.StreamStreamClientInterceptor):
    @override
    async def intercept_stream_stream(self, *call: Any) -> Any:
        return await self._intercept(*call)


def _token_interceptors(token: str) -> list[grpc.aio.ClientInterceptor]:
    return [
        _AddsTokenToUnaryUnary(token),
        _AddsTokenToUnaryStream(token),
        _AddsTokenToStreamUnary(token),
        _AddsTokenToStreamStream(token),
    ]
