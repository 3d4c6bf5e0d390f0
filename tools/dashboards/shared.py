"""Panels that more than one dashboard has."""

from __future__ import annotations

from tools.dashboards.panels import Limits, Lines, Number, Panel, Section, Series
from tools.dashboards.queries import gauge, or_zero, pick, quantile, rate, ratio

QUANTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def quantiles(histogram: str, *, where: str = "") -> tuple[Series, ...]:
    """Median, and what one in twenty and one in a hundred exceed."""
    return tuple(Series(quantile(share, histogram, where=where), name) for share, name in QUANTILES)


def first_audio_number() -> Number:
    """The one figure that says most."""
    return Number(
        title="First audio, p95",
        about="From the user's last word to the first sample of the answer leaving the server.",
        good="Below 1.2 s: it feels like a conversation.",
        bad="Above 1.5 s people wonder whether they were heard; above 3 s they speak again.",
        unit="s",
        series=(Series(quantile(0.95, "minmo_turn_first_audio_seconds")),),
        limits=Limits(1.5, 3),
        runbook="MinMoFirstAudioSlow",
    )


def readiness() -> Lines:
    """How many replicas take work."""
    return Lines(
        title="Replicas that are ready",
        good="As many as there are meant to be.",
        bad="A line that falls and stays low; at 0 a service is gone.",
        unit="short",
        series=(Series(gauge("minmo_ready", "job"), "{{job}}"),),
        runbook="MinMoServiceGone",
    )


def not_ready() -> Lines:
    """What keeps replicas from taking work."""
    return Lines(
        title="Replicas that are not ready, by what they lack",
        about="`starting` and `draining` belong to every update.",
        good="Nothing, or `starting` and `draining` for a moment.",
        bad="Any other reason, or one that stays.",
        unit="short",
        series=(
            Series(
                or_zero(
                    f"({gauge('minmo_not_ready', 'job', 'reason')} > 0)",
                    gauge("minmo_ready", "job"),
                ),
                "{{job}} {{reason}}",
            ),
        ),
        runbook=(
            "MinMoReplicaNotReady",
            "MinMoRedisAway",
            "MinMoTritonAway",
            "MinMoWeightsMissing",
        ),
    )


def streams(what: str = "Streams") -> Lines:
    """Streams that are open, against their limit."""
    return Lines(
        title=f"{what}, by replica",
        about="The limit is that of one replica (`--max-streams`).",
        good="Well below the limit, and alike on all replicas.",
        bad="At the limit callers are refused; one replica far above the others is bad balancing.",
        unit="short",
        series=(
            Series(gauge("minmo_streams", "instance"), "{{instance}}"),
            Series(f"min({pick('minmo_streams_limit')})", "limit"),
        ),
        runbook="MinMoCapacityLow",
    )


def calls() -> tuple[Panel, ...]:
    """What a gRPC service is asked, and how it ends."""
    failed = 'code=~"UNKNOWN|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|DATA_LOSS"'
    return (
        Lines(
            title="Calls that ended, by method",
            about="A stream counts when it ends.",
            good="It follows the number of conversations.",
            bad="It drops to 0 while people talk.",
            unit="reqps",
            width=6,
            series=(Series(rate("minmo_rpc_handled_total", "method"), "{{method}}"),),
            stacked=True,
        ),
        Lines(
            title="Calls that ended, by status",
            good="OK, and CANCELLED where a caller has left.",
            bad="INTERNAL and UNKNOWN are faults of this service, UNAVAILABLE of one behind it; "
            "RESOURCE_EXHAUSTED means no room; INVALID_ARGUMENT is a caller's mistake.",
            unit="reqps",
            width=6,
            series=(Series(rate("minmo_rpc_handled_total", "code"), "{{code}}"),),
            stacked=True,
            runbook="MinMoErrorBudgetBurns",
        ),
        Lines(
            title="Calls that failed, share",
            about="Through a fault of the server's: UNKNOWN, INTERNAL, UNAVAILABLE, "
            "DEADLINE_EXCEEDED, DATA_LOSS. The objective is 99.9 % without.",
            good="0.",
            bad="Above 1.44 % for an hour a month's budget is used up in two days.",
            unit="percentunit",
            width=6,
            series=(
                Series(
                    ratio(
                        or_zero(
                            rate("minmo_rpc_handled_total", "job", where=failed),
                            rate("minmo_rpc_handled_total", "job"),
                        ),
                        rate("minmo_rpc_handled_total", "job"),
                    ),
                    "{{job}}",
                ),
            ),
            limits=Limits(0.001, 0.0144),
            runbook="MinMoErrorBudgetBurns",
        ),
        Lines(
            title="Calls that were not let in, by why",
            good="0; DRAINING and STARTING during an update.",
            bad="TOO_MANY_STREAMS and TOO_MANY_CALLS: people are turned away. TOKEN_BAD: somebody "
            "has an old token, or tries some.",
            unit="reqps",
            width=6,
            series=(Series(rate("minmo_rpc_rejected_total", "reason"), "{{reason}}"),),
            runbook="MinMoTurnedAway",
        ),
    )


def processes() -> Section:
    """What the processes of a service take of their machines."""
    return Section(
        "Processes",
        (
            readiness(),
            not_ready(),
            Lines(
                title="CPU, by replica",
                good="Room below what the replica may use.",
                bad="At its limit: everything waits, and audio comes late.",
                unit="short",
                series=(Series(rate("process_cpu_seconds_total", "instance"), "{{instance}}"),),
                about="Cores in use.",
            ),
            Lines(
                title="Memory, by replica",
                good="Flat after the start.",
                bad="A line that rises for hours: at its limit the replica is killed.",
                unit="bytes",
                series=(
                    Series(gauge("process_resident_memory_bytes", "instance"), "{{instance}}"),
                ),
            ),
            Lines(
                title="Open files and connections, share of what may be",
                good="Below a half.",
                bad="Near 1 no connection can be taken any more.",
                unit="percentunit",
                series=(
                    Series(
                        ratio(
                            gauge("process_open_fds", "instance"),
                            gauge("process_max_fds", "instance"),
                        ),
                        "{{instance}}",
                    ),
                ),
                limits=Limits(0.5, 0.9),
            ),
            Lines(
                title="Time since the start, by replica",
                good="It rises; after an update it begins anew.",
                bad="It falls to 0 without an update: the process was killed, or died.",
                unit="s",
                series=(
                    Series(
                        f"max by (instance) (time() - {pick('process_start_time_seconds')})",
                        "{{instance}}",
                    ),
                ),
                runbook="MinMoReplicaDown",
            ),
        ),
    )
