"""The orchestrator: conversations, who speaks, and what it calls."""

from __future__ import annotations

from tools.dashboards import shared
from tools.dashboards.panels import Dashboard, Heat, Limits, Lines, Section, Series
from tools.dashboards.queries import gauge, or_zero, pick, quantile, rate, ratio


def _hop(service: str, title: str, good: str, bad: str) -> Lines:
    return Lines(
        title=f"{title}, p95, by call",
        about="As the orchestrator sees it: network, wait and work.",
        good=good,
        bad=bad,
        unit="s",
        series=(
            Series(quantile(0.95, f"minmo_hop_{service}_duration_seconds", "call"), "{{call}}"),
        ),
        runbook="MinMoFirstAudioSlow",
    )


DASHBOARD = Dashboard(
    name="orchestrator",
    title="MinMo: orchestrator",
    description="How do the conversations go, who speaks, and which of the other services is slow?",
    members="minmo_sessions_open",
    sections=(
        Section(
            "Conversations",
            (
                Lines(
                    title="Conversations, by what goes on",
                    good="As many speak as listen; some are idle.",
                    bad="Many are thinking: people wait for answers.",
                    unit="short",
                    series=(Series(f"sum by (state) ({pick('minmo_sessions')})", "{{state}}"),),
                    stacked=True,
                ),
                Lines(
                    title="Conversations that were opened, by how",
                    good="new.",
                    bad="Many resumed or taken_over: connections break, or orchestrators do.",
                    unit="cps",
                    series=(Series(rate("minmo_sessions_opened_total", "how"), "{{how}}"),),
                    stacked=True,
                ),
                shared.streams(),
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
                    title="Answers that failed, by status",
                    good="0.",
                    bad="UNAVAILABLE: a service was away for longer than is waited for. INTERNAL: "
                    "a fault; the log has its error id.",
                    unit="cps",
                    series=(
                        Series(
                            or_zero(
                                rate("minmo_turn_failures_total", "code"),
                                gauge("minmo_sessions_open"),
                                "code",
                            ),
                            "{{code}}",
                        ),
                    ),
                    runbook="MinMoTurnsFail",
                ),
                Lines(
                    title="Requests and tool calls that were refused",
                    about="Requests by the reason of the contract; `dropped` are calls of tools "
                    "that did not fit their schema.",
                    good="0, or few.",
                    bad="A reason that grows: a client asks for what cannot be.",
                    unit="cps",
                    series=(
                        Series(rate("minmo_requests_refused_total", "reason"), "{{reason}}"),
                        Series(
                            rate("minmo_tool_calls_total", "outcome", where='outcome="dropped"'),
                            "tool call {{outcome}}",
                        ),
                    ),
                ),
            ),
        ),
        Section(
            "Who speaks",
            (
                Lines(
                    title="Decisions",
                    good="answer_now leads.",
                    bad="Many wait: people pause for longer than the silence that ends a turn.",
                    unit="cps",
                    series=(
                        Series(rate("minmo_turn_decisions_total", "decision"), "{{decision}}"),
                    ),
                    stacked=True,
                    runbook="MinMoInterruptsPeople",
                ),
                Lines(
                    title="Decisions that turned out wrong",
                    good="Few of each.",
                    bad="answered_too_early: give turns a longer silence. stopped_for_nothing: "
                    "echo or noise is taken for speech.",
                    unit="cps",
                    series=(Series(rate("minmo_turn_regrets_total", "regret"), "{{regret}}"),),
                    stacked=True,
                    runbook="MinMoInterruptsPeople",
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
                    title="Questions to the full-duplex predictor",
                    good="Nearly all answered; nothing at all where there is no predictor.",
                    bad="Many replaced: the LLM is too slow, and decisions come late.",
                    unit="cps",
                    series=(Series(rate("minmo_probes_total", "outcome"), "{{outcome}}"),),
                    stacked=True,
                    runbook="MinMoInterruptsPeople",
                ),
                Lines(
                    title="Tokens of answers that were begun early",
                    good="More used than wasted.",
                    bad="Most wasted: answers are begun at every pause, and cost time of the LLM.",
                    unit="cps",
                    series=(Series(rate("minmo_drafted_tokens_total", "outcome"), "{{outcome}}"),),
                    stacked=True,
                ),
            ),
        ),
        Section(
            "Audio",
            (
                Lines(
                    title="Frames, in and out",
                    about="A frame is 20 ms: one person who speaks is 50 a second.",
                    good="It follows the number of conversations.",
                    bad="in without out: nobody is answered.",
                    unit="cps",
                    series=(
                        Series(rate("minmo_audio_in_frames_total"), "in"),
                        Series(rate("minmo_audio_out_frames_total"), "out"),
                    ),
                ),
                Lines(
                    title="Frames of answers that came late, share, by replica",
                    good="0.",
                    bad="Above 1 %. On one replica: that machine is busy. On all: the voice or the "
                    "LLM is too slow.",
                    unit="percentunit",
                    series=(
                        Series(
                            ratio(
                                rate("minmo_audio_out_late_frames_total", "instance"),
                                rate("minmo_audio_out_frames_total", "instance"),
                            ),
                            "{{instance}}",
                        ),
                    ),
                    limits=Limits(0.01, 0.05),
                    runbook="MinMoAnswersStutter",
                ),
                Heat(
                    title="Silence within answers",
                    good="Empty.",
                    bad="Dark cells above 0.15 s: gaps that are heard.",
                    unit="s",
                    histogram="minmo_audio_out_gap_seconds",
                    runbook="MinMoAnswersStutter",
                ),
                Lines(
                    title="Users' audio that was lost, frames a second, by why",
                    good="0.",
                    bad="too_old: an encoder was away for too long. concealed: the network loses "
                    "packets. refused: a client sends no audio in its format.",
                    unit="cps",
                    width=12,
                    series=(
                        Series(rate("minmo_audio_in_lost_frames_total", "reason"), "{{reason}}"),
                    ),
                    runbook="MinMoUserAudioLost",
                ),
                Lines(
                    title="Playback that stalled, times a second",
                    about="As clients report it.",
                    good="0.",
                    bad="A line that stays above 0: people hear gaps.",
                    unit="cps",
                    width=12,
                    series=(
                        Series(rate("minmo_playback_stalls_total", "instance"), "{{instance}}"),
                    ),
                    runbook="MinMoAnswersStutter",
                ),
            ),
        ),
        Section(
            "What it calls",
            (
                _hop(
                    "encoder",
                    "To the encoder",
                    "frame below 25 ms, transcript below 0.3 s.",
                    "transcript above 0.5 s: encoders are full.",
                ),
                _hop(
                    "llm",
                    "To the LLM",
                    "generate below 0.3 s.",
                    "generate above 0.5 s, or prefill that grows: the LLM is full.",
                ),
                _hop(
                    "voice_decoder",
                    "To the voice decoder",
                    "first_audio below 0.3 s.",
                    "first_audio above 0.5 s: it waits for text, or for a slot.",
                ),
                Lines(
                    title="Calls that failed, by whom and status",
                    good="0.",
                    bad="A line that stays: that service does not answer.",
                    unit="reqps",
                    series=(
                        Series(
                            or_zero(
                                rate("minmo_hop_errors_total", "to", "code"),
                                gauge("minmo_sessions_open"),
                                "code",
                            ),
                            "{{to}} {{code}}",
                        ),
                    ),
                    runbook="MinMoErrorBudgetBurns",
                ),
                Lines(
                    title="Services lost by conversations, times a second",
                    good="0, except when a replica is replaced.",
                    bad="A line that stays: replicas die, or are overloaded.",
                    unit="cps",
                    series=(Series(rate("minmo_outages_total", "to"), "{{to}}"),),
                    runbook="MinMoServiceGone",
                ),
                Lines(
                    title="Time until a lost service was back, p95",
                    good="Below 1 s: another replica took over.",
                    bad="Above 4 s people hear a long silence.",
                    unit="s",
                    series=(
                        Series(quantile(0.95, "minmo_outage_duration_seconds", "to"), "{{to}}"),
                    ),
                    limits=Limits(1, 4),
                    runbook="MinMoServiceGone",
                ),
            ),
        ),
        Section("Calls", shared.calls()),
        shared.processes(),
    ),
)
