"""Redis, as those see it who call it."""

from __future__ import annotations

from tools.dashboards import shared
from tools.dashboards.panels import Dashboard, Heat, Limits, Lines, Section, Series
from tools.dashboards.queries import gauge, or_zero, quantile, rate

_CALL = "minmo_hop_redis_duration_seconds"
_REDIS = 'to="redis"'

DASHBOARD = Dashboard(
    name="redis",
    title="MinMo: Redis",
    description="Is what conversations write kept, and fast enough? As the orchestrators see it.",
    members="minmo_sessions_open",
    sections=(
        Section(
            "Is it there?",
            (
                Lines(
                    title="Calls that failed, by status",
                    good="0.",
                    bad="UNAVAILABLE: it is away. UNAUTHENTICATED: it refuses the password. "
                    "FAILED_PRECONDITION: it refuses writes (full, or a replica).",
                    unit="reqps",
                    series=(
                        Series(
                            or_zero(
                                rate("minmo_hop_errors_total", "code", where=_REDIS),
                                gauge("minmo_sessions_open"),
                                "code",
                            ),
                            "{{code}}",
                        ),
                    ),
                    runbook="MinMoRedisAway",
                ),
                Lines(
                    title="Orchestrators that are not ready for want of Redis",
                    good="0.",
                    bad="All of them: no conversation can begin.",
                    unit="short",
                    series=(Series(gauge("minmo_not_ready", where='reason="redis"'), "not ready"),),
                    runbook="MinMoRedisAway",
                ),
                Lines(
                    title="Conversations that came back, by how",
                    good="Few.",
                    bad="Many at once: what Redis holds is what they go on from.",
                    unit="cps",
                    series=(
                        Series(
                            rate("minmo_sessions_opened_total", "how", where='how!="new"'),
                            "{{how}}",
                        ),
                    ),
                ),
            ),
        ),
        Section(
            "Is it fast?",
            (
                Lines(
                    title="Calls, by operation",
                    good="A few a second for each conversation.",
                    bad="Far more: tries are repeated.",
                    unit="ops",
                    series=(Series(rate(f"{_CALL}_count", "call"), "{{call}}"),),
                    stacked=True,
                ),
                Lines(
                    title="Time of a call",
                    about="A write is answered when it is on the disk (`appendfsync always`).",
                    good="p99 below 10 ms.",
                    bad="Above 50 ms: the disk is slow, or shared.",
                    unit="s",
                    series=shared.quantiles(_CALL),
                    limits=Limits(0.025, 0.05),
                    runbook="MinMoRedisAway",
                ),
                Heat(
                    title="Time of a call, all calls",
                    good="One band.",
                    bad="A band above the first: some writes wait for the disk.",
                    unit="s",
                    histogram=_CALL,
                    runbook="MinMoRedisAway",
                ),
                Lines(
                    title="Time of a call, p95, by operation",
                    good="Alike.",
                    bad="One above the others: its data have grown (see `page` and `get`).",
                    unit="s",
                    series=(Series(quantile(0.95, _CALL, "call"), "{{call}}"),),
                    runbook="MinMoRedisAway",
                ),
                Lines(
                    title="Time of a call, p95, by orchestrator",
                    good="Alike.",
                    bad="One above the others: its way to Redis, or its machine, is busy.",
                    unit="s",
                    series=(Series(quantile(0.95, _CALL, "instance"), "{{instance}}"),),
                    runbook="MinMoRedisAway",
                ),
            ),
        ),
    ),
)
