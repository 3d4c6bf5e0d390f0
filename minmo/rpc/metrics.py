"""Every Prometheus metric of MinMo's services, in one place.

The LLM runs inside Triton, which exports its metrics: see `minmo.triton.metrics`.

Names follow Prometheus' conventions: prefix ``minmo_``, the unit at the end, ``_total`` for
counters. A label never holds what a caller chose freely (session ids, texts), so the number of
series stays bounded.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Hop = Literal[
    "endpointing",
    "recognise",
    "embed",
    "prefill",
    "first_token",
    "first_text_to_voice",
    "first_audio",
]
"""A stage of a turn, in the order of time; `HOP` measures each."""

TurnOutcome = Literal["answered", "interrupted", "no_speech", "cancelled", "failed"]

# A hop of a turn takes 10 ms to 1 s; what is outside of that is a fault that should still show.
_HOP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10)
# Around the goals for the first audio: 0.6 s, 0.8 s, 1.2 s.
_FIRST_AUDIO_BUCKETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 5, 10)
# Unary calls take milliseconds, streams minutes.
_RPC_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10, 60, 300, 1800)
# Below 1 a model keeps up with speech.
_REAL_TIME_FACTOR_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5)
_REDIS_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

# --- every service (set by minmo.rpc.server)

BUILD = Info("minmo_build", "Version of MinMo and of Python, and the service that runs.")
RPC_HANDLED = Counter(
    "minmo_rpc_handled_total", "Calls that ended, by method and gRPC status.", ["method", "code"]
)
RPC_DURATION = Histogram(
    "minmo_rpc_duration_seconds",
    "Time from the start of a call to its end.",
    ["method"],
    buckets=_RPC_BUCKETS,
)
RPC_IN_FLIGHT = Gauge("minmo_rpc_in_flight", "Calls that are running.", ["method"])
STREAMS = Gauge("minmo_streams", "Streams that are open.")
STREAMS_LIMIT = Gauge("minmo_streams_limit", "Streams that may be open at the same time.")
READY = Gauge("minmo_ready", "1 while the service takes calls, else 0.")

# --- calls to other processes

UPSTREAM_ERRORS = Counter(
    "minmo_upstream_errors_total",
    "Calls to another service that failed, by that service and gRPC status.",
    ["service", "code"],
)
REDIS_DURATION = Histogram(
    "minmo_redis_call_duration_seconds",
    "Time of one call to Redis.",
    ["operation"],
    buckets=_REDIS_BUCKETS,
)
REDIS_ERRORS = Counter(
    "minmo_redis_errors_total", "Calls to Redis that failed, by operation.", ["operation"]
)

# --- orchestrator

HOP = Histogram(
    "minmo_hop_seconds",
    "Time of one stage of a turn: endpointing, recognise, embed, prefill, first_token, "
    "first_text_to_voice, first_audio.",
    ["hop"],
    buckets=_HOP_BUCKETS,
)
FIRST_AUDIO = Histogram(
    "minmo_first_audio_seconds",
    "Time from the end of the user's speech to the first sample of the answer leaving the server.",
    buckets=_FIRST_AUDIO_BUCKETS,
)
TURNS = Counter(
    "minmo_turns_total",
    "Turns that ended, by outcome: answered, interrupted, no_speech, cancelled, failed.",
    ["outcome"],
)
BARGE_INS = Counter("minmo_barge_ins_total", "Answers that the user spoke over and so stopped.")
ACTIVE_SESSIONS = Gauge("minmo_active_sessions", "Sessions that have an open conversation stream.")

# --- voice decoder and encoder

VOICE_AUDIO = Counter("minmo_voice_audio_seconds_total", "Speech that the voice decoder made.")
VOICE_REAL_TIME_FACTOR = Histogram(
    "minmo_voice_real_time_factor",
    "Compute time over audio time of one chunk of speech made.",
    buckets=_REAL_TIME_FACTOR_BUCKETS,
)
VOICE_FIRST_AUDIO = Histogram(
    "minmo_voice_first_audio_seconds",
    "Time from the first token of an utterance reaching the voice decoder to its first audio.",
    buckets=_HOP_BUCKETS,
)
VOICE_ENGINE_GAUGES = {
    "slots": ("minmo_voice_slots", "Utterances that the neural voice can compute at once."),
    "slots_in_use": ("minmo_voice_slots_in_use", "Utterances that it computes."),
    "waiting": ("minmo_voice_waiting", "Utterances that wait for a slot."),
}
VOICE_ENGINE_COUNTERS = {
    "opened": ("minmo_voice_utterances", "Utterances that came."),
    "refused": ("minmo_voice_refused", "Utterances that found no slot in time."),
    "failed": ("minmo_voice_failed", "Utterances that failed in other ways."),
    "token_steps": ("minmo_voice_token_steps", "Steps of the voice token LM."),
    "token_seconds": ("minmo_voice_token_step_seconds", "Time of these steps."),
    "tokens": ("minmo_voice_speech_tokens", "Speech tokens that were drawn."),
    "chunk_steps": ("minmo_voice_chunk_steps", "Steps of token2wav."),
    "chunk_seconds": ("minmo_voice_chunk_step_seconds", "Time of these steps."),
    "chunks": ("minmo_voice_chunks", "Chunks of audio that they made."),
}
ENCODER_AUDIO = Counter("minmo_encoder_audio_seconds_total", "Audio that the encoder read.")
ENCODER_REAL_TIME_FACTOR = Histogram(
    "minmo_encoder_real_time_factor",
    "Compute time over audio time of one step of the encoder.",
    buckets=_REAL_TIME_FACTOR_BUCKETS,
)
ENCODER_RECOGNISE_DURATION = Histogram(
    "minmo_encoder_recognise_duration_seconds",
    "Time that the recogniser computed on one segment, without its wait.",
    buckets=_HOP_BUCKETS,
)
ENCODER_JOBS_WAITING = Gauge(
    "minmo_encoder_jobs_waiting", "Segments and steps that wait for the encoder's compute thread."
)


class FiguresCollector(Collector):
    """Publishes figures that somebody counts anyway, as they are when they are asked for.

    Args:
        read: gives an object with the figures as attributes; from any thread.
        gauges: metric and text, by attribute.
        counters: the same; a metric's name gets `_total`.
    """

    def __init__(
        self,
        read: Callable[[], object],
        gauges: Mapping[str, tuple[str, str]],
        counters: Mapping[str, tuple[str, str]],
    ) -> None:
        self._read, self._gauges, self._counters = read, gauges, counters
        REGISTRY.register(self)

    def close(self) -> None:
        """Publishes no more."""
        REGISTRY.unregister(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        figures = self._read()
        for attribute, (name, text) in self._gauges.items():
            yield GaugeMetricFamily(name, text, getattr(figures, attribute))
        for attribute, (name, text) in self._counters.items():
            yield CounterMetricFamily(name, text, getattr(figures, attribute))


def observe_hop(hop: Hop, seconds: float) -> None:
    """Records the time of one stage of a turn."""
    HOP.labels(hop).observe(seconds)


def count_turn(outcome: TurnOutcome) -> None:
    """Records the end of a turn."""
    TURNS.labels(outcome).inc()


@contextmanager
def redis_call(operation: str) -> Iterator[None]:
    """Measures one call to Redis and counts its failure; `operation` is one of a fixed few."""
    began = time.perf_counter()
    try:
        yield
    except Exception:
        REDIS_ERRORS.labels(operation).inc()
        raise
    finally:
        REDIS_DURATION.labels(operation).observe(time.perf_counter() - began)


def set_build(service: str) -> None:
    """Publishes which service of which version runs."""
    BUILD.info(
        {"service": service, "version": minmo_version(), "python": platform.python_version()}
    )


def minmo_version() -> str:
    """Version of the installed package; ``0`` in a tree that was never installed."""
    try:
        return version("minmo")
    except PackageNotFoundError:
        return "0"
