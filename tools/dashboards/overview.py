"""What people feel, and whether there is room for more of them."""

from __future__ import annotations

from tools.dashboards import shared
from tools.dashboards.panels import Dashboard, Heat, Limits, Lines, Number, Rows, Section, Series
from tools.dashboards.queries import gauge, or_zero, pick, quantile, rate, ratio, total

STAGES = (
    "endpointing",
    "recognise",
    "embed",
    "prefill",
    "first_token",
    "first_text_to_voice",
    "first_audio",
)
_WITH_SPEECH = 'outcome!="no_speech"'
_RECORDED = '{namespace=~"$namespace", job=~"$job"}'


def _numbers() -> Section:
    return Section(
        "Now",
        (
            shared.first_audio_number(),
            Number(
                title="Turns that failed",
                about="Of those in which somebody said something.",
                good="0; the objective is 99 % without failure.",
                bad="Any share that stays: people ask and get no answer.",
                unit="percentunit",
                series=(
                    Series(
                        ratio(
                            rate("minmo_turns_total", where='outcome="failed"'),
                            rate("minmo_turns_total", where=_WITH_SPEECH),
                        )
                    ),
                ),
                limits=Limits(0.01, 0.06),
                runbook="MinMoTurnsFail",
            ),
            Number(
                title="Audio that came late",
                about="Frames of answers that were sent after they had to be played.",
                good="0.",
                bad="Above 1 % people hear gaps; above 5 % they cannot follow.",
                unit="percentunit",
                series=(
                    Series(
                        ratio(
                            rate("minmo_audio_out_late_frames_total"),
                            rate("minmo_audio_out_frames_total"),
                        )
                    ),
                ),
                limits=Limits(0.01, 0.05),
                runbook="MinMoAnswersStutter",
            ),
            Number(
                title="Conversations",
                about="Sessions that have an open stream.",
                good="What is usual for the time of the day.",
                bad="A sudden fall: people cannot connect, or were cut off.",
                unit="short",
                series=(Series(gauge("minmo_sessions_open")),),
            ),
            Number(
                title="Fullest part",
                about="The largest share in use of anything that is limited: streams, slots, "
                "compute threads.",
                good="Below 0.7.",
                bad="Above 85 % there is no room for the next peak.",
                unit="percentunit",
                series=(Series(f"max(namespace_job:minmo_capacity:used_ratio{_RECORDED})"),),
                limits=Limits(0.7, 0.85),
                runbook="MinMoCapacityLow",
            ),
            Number(
                title="Replicas not ready",
                good="0.",
                bad="Any that stays for minutes.",
                unit="short",
                series=(Series(total(f"1 - {pick('minmo_ready')}")),),
                limits=Limits(1, 2),
                runbook="MinMoReplicaNotReady",
            ),
        ),
    )


def _people() -> Section:
    return Section(
        "What people feel",
        (
            Lines(
                title="First audio",
                about="From the user's last word to the first sample of the answer leaving the "
                "server.",
                good="p50 below 0.8 s and p95 below 1.2 s.",
                bad="p95 above the dashed lines: 1.5 s, 3 s.",
                unit="s",
                series=shared.quantiles("minmo_turn_first_audio_seconds"),
                limits=Limits(1.5, 3),
                runbook="MinMoFirstAudioSlow",
            ),
            Heat(
                title="First audio, all answers",
                good="One dark band that stays where it is.",
                bad="A second band above the first: some replica, or some questions, are slow.",
                unit="s",
                histogram="minmo_turn_first_audio_seconds",
                runbook="MinMoFirstAudioSlow",
            ),
            Lines(
                title="Turns, by how they ended",
                good="Mostly answered; some interrupted.",
                bad="failed. Many no_speech: noise is taken for speech.",
                unit="cps",
                series=(Series(rate("minmo_turns_total", "outcome"), "{{outcome}}"),),
                stacked=True,
                runbook="MinMoTurnsFail",
            ),
            Lines(
                title="Audio that came late, share of frames",
                good="0.",
                bad="Above 1 %: answers stutter.",
                unit="percentunit",
                series=(
                    Series(
                        ratio(
                            rate("minmo_audio_out_late_frames_total", "job"),
                            rate("minmo_audio_out_frames_total", "job"),
                        ),
                        "sent late by {{job}}",
                    ),
                ),
                limits=Limits(0.01, 0.05),
                runbook="MinMoAnswersStutter",
            ),
            Lines(
                title="From speech over an answer to its stop",
                good="p95 below 0.5 s.",
                bad="Above 0.75 s people think that they are not heard.",
                unit="s",
                series=shared.quantiles("minmo_turn_stop_duration_seconds"),
                limits=Limits(0.5, 0.75),
                runbook="MinMoStopsLate",
            ),
            Lines(
                title="Decisions that turned out wrong, share",
                about="Of the decisions of their kind: to answer, to stop.",
                good="Below 10 %.",
                bad="answered too early above 20 %: people are interrupted.",
                unit="percentunit",
                series=(
                    Series(
                        ratio(
                            rate("minmo_turn_regrets_total", where='regret="answered_too_early"'),
                            rate("minmo_turn_decisions_total", where='decision="answer_now"'),
                        ),
                        "answered too early",
                    ),
                    Series(
                        ratio(
                            rate("minmo_turn_regrets_total", where='regret="stopped_for_nothing"'),
                            rate("minmo_turn_decisions_total", where='decision="stop"'),
                        ),
                        "stopped for nothing",
                    ),
                ),
                limits=Limits(0.1, 0.2),
                runbook="MinMoInterruptsPeople",
            ),
        ),
    )


def _time() -> Section:
    return Section(
        "Where the time goes",
        (
            Lines(
                title="Stages of a turn, p95",
                about="`endpointing` is the silence that ends a turn; some of the others run "
                "meanwhile.",
                good="endpointing is the longest.",
                bad="A stage that has grown: its service is slow or full.",
                unit="s",
                series=(
                    Series(
                        quantile(0.95, "minmo_turn_stage_duration_seconds", "stage"), "{{stage}}"
                    ),
                ),
                width=12,
                runbook="MinMoFirstAudioSlow",
            ),
            Lines(
                title="Real-time factor",
                about="Compute time over audio time, of all replicas together.",
                good="Below 0.5.",
                bad="At 1 a model no longer keeps up with speech: answers stutter.",
                unit="none",
                series=(
                    Series(
                        ratio(
                            rate("minmo_encoder_compute_seconds_total"),
                            rate("minmo_encoder_audio_seconds_total"),
                        ),
                        "encoder",
                    ),
                    Series(
                        ratio(
                            rate("minmo_voice_compute_seconds_total"),
                            rate("minmo_voice_audio_seconds_total"),
                        ),
                        "voice",
                    ),
                ),
                width=12,
                limits=Limits(0.7, 1),
                runbook="MinMoAnswersStutter",
            ),
        ),
    )


def _room() -> Section:
    return Section(
        "Room",
        (
            Lines(
                title="In use, share of what there is",
                good="Below 70 % at the usual peak.",
                bad="Above 85 % for ten minutes: add replicas.",
                unit="percentunit",
                series=(
                    Series(
                        f"max by (job, of) (namespace_job:minmo_capacity:used_ratio{_RECORDED})",
                        "{{job}} {{of}}",
                    ),
                ),
                top=1,
                limits=Limits(0.7, 0.85),
                runbook="MinMoCapacityLow",
            ),
            Lines(
                title="Waiting for a slot",
                good="0, or a moment.",
                bad="A line that stays above 0: what waits adds to the first audio.",
                unit="short",
                series=(
                    Series(gauge("minmo_llm_waiting"), "LLM"),
                    Series(gauge("minmo_voice_waiting"), "voice"),
                    Series(gauge("minmo_encoder_waiting"), "encoder"),
                ),
                runbook="MinMoCapacityLow",
            ),
            Lines(
                title="Turned away, since there was no room",
                good="0.",
                bad="Anything else: somebody could not talk, or got no answer.",
                unit="reqps",
                series=(
                    Series(
                        f"sum by (job, of) (namespace_job:minmo_turned_away:rate5m{_RECORDED})",
                        "{{job}} {{of}}",
                    ),
                ),
                runbook="MinMoTurnedAway",
            ),
        ),
    )


def _health() -> Section:
    return Section(
        "Health",
        (
            shared.readiness(),
            Lines(
                title="Error budget left, of three days",
                about="1 is all of it: 0.1 % of a service's calls, 1 % of the turns.",
                good="1.",
                bad="0 or less: more failed than may.",
                unit="percentunit",
                series=(
                    Series(
                        "1 - max by (job) "
                        f"(namespace_job:minmo_calls_failed:ratio_rate3d{_RECORDED}) / 0.001",
                        "calls of {{job}}",
                    ),
                    Series(
                        "1 - max(namespace:minmo_turns_failed:ratio_rate3d"
                        '{namespace=~"$namespace"}) / 0.01',
                        "turns",
                    ),
                ),
                top=1,
                limits=Limits(0.5, 0, low_is_bad=True),
                runbook="MinMoErrorBudgetBurns",
            ),
            Lines(
                title="Calls to others that failed, by whom",
                good="0.",
                bad="A line that stays: the service that is named does not answer.",
                unit="reqps",
                series=(
                    Series(
                        or_zero(
                            rate("minmo_hop_errors_total", "to"), gauge("minmo_sessions_open"), "to"
                        ),
                        "to {{to}}",
                    ),
                ),
                runbook="MinMoErrorBudgetBurns",
            ),
            Rows(
                title="What runs",
                good="One version, except during an update.",
                bad="Replicas of an old version that were left over.",
                unit="none",
                series=(
                    Series(
                        f"count by (namespace, job, version, python) ({pick('minmo_build_info')})"
                    ),
                ),
                width=24,
                height=6,
            ),
        ),
    )


DASHBOARD = Dashboard(
    name="overview",
    title="MinMo: overview",
    description="Do people get good answers in time, and is there room for more of them?",
    members="minmo_ready",
    all_jobs=True,
    sections=(_numbers(), _people(), _time(), _room(), _health()),
)
