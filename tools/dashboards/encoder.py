"""The encoder: audio in, words and embeddings out."""

from __future__ import annotations

from tools.dashboards import shared
from tools.dashboards.panels import Dashboard, Limits, Lines, Section, Series
from tools.dashboards.queries import gauge, quantile, rate, ratio

DASHBOARD = Dashboard(
    name="encoder",
    title="MinMo: encoder",
    description="Does the encoder keep up with what people say?",
    members="minmo_encoder_slots",
    sections=(
        Section(
            "Work",
            (
                Lines(
                    title="Audio that was read, seconds in a second, by replica",
                    about="One conversation is 1, also in silence.",
                    good="Alike on all replicas.",
                    bad="One replica far above the others: its streams stick to it.",
                    unit="short",
                    series=(
                        Series(
                            rate("minmo_encoder_audio_seconds_total", "instance"), "{{instance}}"
                        ),
                    ),
                    stacked=True,
                ),
                Lines(
                    title="Compute thread in use, by replica",
                    good="Below 70 %.",
                    bad="Above 85 % words come late: add replicas.",
                    unit="percentunit",
                    series=(
                        Series(
                            ratio(
                                rate("minmo_encoder_compute_seconds_total", "instance"),
                                gauge("minmo_encoder_slots", "instance"),
                            ),
                            "{{instance}}",
                        ),
                    ),
                    top=1,
                    limits=Limits(0.7, 0.85),
                    runbook="MinMoCapacityLow",
                ),
                shared.streams(),
                Lines(
                    title="Real-time factor of a job",
                    about="Compute time over audio time.",
                    good="p95 below 0.3.",
                    bad="Above 1 one job takes longer than its audio lasts.",
                    unit="none",
                    series=shared.quantiles("minmo_encoder_real_time_ratio"),
                    limits=Limits(0.5, 1),
                    runbook="MinMoFirstAudioSlow",
                ),
                Lines(
                    title="Jobs that are computed and that wait",
                    good="waiting is 0, or a moment.",
                    bad="waiting stays above 0.",
                    unit="short",
                    series=(
                        Series(gauge("minmo_encoder_slots_in_use"), "computed"),
                        Series(gauge("minmo_encoder_waiting"), "waiting"),
                        Series(gauge("minmo_encoder_slots"), "slots"),
                    ),
                    runbook="MinMoCapacityLow",
                ),
            ),
        ),
        Section(
            "Time",
            (
                Lines(
                    title="From audio to the voice activity in it",
                    good="p95 below 10 ms.",
                    bad="Above 0.1 s ends of turns, and speech over answers, are noticed late.",
                    unit="s",
                    series=shared.quantiles("minmo_encoder_frame_duration_seconds"),
                    limits=Limits(0.05, 0.1),
                    runbook="MinMoStopsLate",
                ),
                Lines(
                    title="Time that a job computed, p95",
                    good="recognise below 0.3 s.",
                    bad="It grows with long segments, or with a machine that is busy.",
                    unit="s",
                    series=(
                        Series(
                            quantile(0.95, "minmo_encoder_job_duration_seconds", "kind"), "{{kind}}"
                        ),
                    ),
                    runbook="MinMoFirstAudioSlow",
                ),
                Lines(
                    title="Time that a job waited, p95",
                    good="Below 50 ms.",
                    bad="As long as a job computes: the thread is full.",
                    unit="s",
                    series=(
                        Series(
                            quantile(0.95, "minmo_encoder_job_wait_seconds", "kind"), "{{kind}}"
                        ),
                    ),
                    limits=Limits(0.1, 0.3),
                    runbook="MinMoCapacityLow",
                ),
            ),
        ),
        Section("Calls", shared.calls()),
        shared.processes(),
    ),
)
