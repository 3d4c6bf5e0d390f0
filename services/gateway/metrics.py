"""The gateway's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# What a proxy may add to a voice is milliseconds.
_ADDED_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

CONNECTIONS = Gauge("minmo_gateway_connections", "WebSocket connections that are open.")
CONNECTED = Counter(
    "minmo_gateway_connected_total",
    "WebSocket connections that were asked for, by what became of it: accepted, or why not.",
    ["outcome"],
)
CLOSED = Counter(
    "minmo_gateway_closed_total", "WebSocket connections that ended, by why.", ["reason"]
)
EVENTS_IN = Counter("minmo_gateway_events_in_total", "Events of clients, by type.", ["type"])
EVENTS_OUT = Counter("minmo_gateway_events_out_total", "Events to clients, by type.", ["type"])
ERRORS = Counter("minmo_gateway_errors_total", "Errors that clients were told, by code.", ["code"])
ADDED = Histogram(
    "minmo_gateway_added_seconds",
    "Time that a message spends in the gateway: in (from a client's event read to the request "
    "written) and out (from a response read to its last event written).",
    ["direction"],
    buckets=_ADDED_BUCKETS,
)
AUDIO = Counter(
    "minmo_gateway_audio_seconds_total", "Audio that went through, by direction.", ["direction"]
)
RECONNECTS = Counter(
    "minmo_gateway_reconnects_total", "Streams that were opened again after the server was lost."
)
