"""How much a server has to do, as gRPC's balancing asks for it (gRFC A51, A58).

A client that balances by load keeps a call of ``xds.service.orca.v3.OpenRcaService`` open on each
connection, and gives a replica calls in proportion to the inverse of the utilization that comes
back. Here that is the share of the calls that may run.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from minmo.rpc.health import Readiness

SERVICE_NAME = "xds.service.orca.v3.OpenRcaService"
REPORT_SECONDS = 1.0
"""Time between two reports."""

# Fields 6 and 9 of xds.data.orca.v3.OrcaLoadReport, both doubles: `rps_fractional`, which the
# weight is proportional to and which is the same for all here, and `application_utilization`.
_REPORT = struct.Struct("<BdBd")
_RPS_FRACTIONAL_TAG = 6 << 3 | 1
_APPLICATION_UTILIZATION_TAG = 9 << 3 | 1


def add_load_reports(
    server: grpc.aio.Server, utilization: Callable[[], float], readiness: Readiness
) -> None:
    """Lets a server say how much it has to do.

    Args:
        server: not started yet.
        utilization: what it says, above 0, where 1 is all that it can do.
        readiness: of the process: reports end with it.
    """

    async def stream_core_metrics(_: bytes, context: Any) -> AsyncIterator[bytes]:
        while not readiness.stopping:
            yield _report(utilization())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(readiness.wait_stopping(), REPORT_SECONDS)

    handler: Any = grpc.unary_stream_rpc_method_handler(stream_core_metrics)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE_NAME, {"StreamCoreMetrics": handler})]
    )


def _report(utilization: float) -> bytes:
    """A serialised OrcaLoadReport."""
    return _REPORT.pack(_RPS_FRACTIONAL_TAG, 1.0, _APPLICATION_UTILIZATION_TAG, utilization)
