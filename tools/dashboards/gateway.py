"""The gateway: WebSocket connections, what goes through them, and what it adds."""

from __future__ import annotations

from tools.dashboards import shared
from tools.dashboards.panels import Dashboard, Limits, Lines, Section, Series
from tools.dashboards.queries import gauge, or_zero, quantile, rate

DASHBOARD = Dashboard(
    name="gateway",
    title="MinMo: gateway",
    description="Can browsers and Realtime clients connect, and what does the gateway add?",
    members="minmo_gateway_connections",
    sections=(
        Section(
            "Connections",
            (
                shared.streams("Connections"),
                Lines(
                    title="Connections asked for, by what became of them",
                    good="accepted.",
                    bad="server_overloaded and server_unavailable are ours; invalid_api_key, "
                    "origin_not_allowed and rate_limit_exceeded are the caller's.",
                    unit="cps",
                    series=(
                        Series(rate("minmo_gateway_connected_total", "outcome"), "{{outcome}}"),
                    ),
                    runbook="MinMoTurnedAway",
                ),
                Lines(
                    title="Connections that ended, by why",
                    good="client gone, and server stops during an update.",
                    bad="unavailable, internal, server too slow: people were cut off.",
                    unit="cps",
                    series=(Series(rate("minmo_gateway_closed_total", "reason"), "{{reason}}"),),
                    runbook="MinMoErrorBudgetBurns",
                ),
            ),
        ),
        Section(
            "What goes through",
            (
                Lines(
                    title="Audio, seconds in a second",
                    about="One person who speaks is 1 in; one who listens is 1 out, in bursts.",
                    good="It follows the number of connections.",
                    bad="Connections without audio: the microphones' audio does not come through.",
                    unit="short",
                    series=(
                        Series(
                            rate("minmo_gateway_audio_seconds_total", "direction"), "{{direction}}"
                        ),
                    ),
                ),
                Lines(
                    title="Events of clients, by type",
                    good="Mostly input_audio_buffer.append, 50 a second for each who speaks.",
                    bad="Far more: a client floods; it is slowed down, then cut off.",
                    unit="eps",
                    series=(Series(rate("minmo_gateway_events_in_total", "type"), "{{type}}"),),
                    stacked=True,
                ),
                Lines(
                    title="Events to clients, by type",
                    good="Mostly response.output_audio.delta.",
                    bad="No audio while text comes: the voice does not speak.",
                    unit="eps",
                    series=(Series(rate("minmo_gateway_events_out_total", "type"), "{{type}}"),),
                    stacked=True,
                ),
                Lines(
                    title="Errors that clients were told, by code",
                    about="docs/realtime.md says what each is for.",
                    good="0.",
                    bad="server_error, server_unavailable and orchestrator_lost are ours.",
                    unit="cps",
                    series=(
                        Series(
                            or_zero(
                                rate("minmo_gateway_errors_total", "code"),
                                gauge("minmo_gateway_connections"),
                                "code",
                            ),
                            "{{code}}",
                        ),
                    ),
                    runbook="MinMoErrorBudgetBurns",
                ),
                Lines(
                    title="Users' audio that was lost, frames a second, by why",
                    about="A frame is 20 ms.",
                    good="0.",
                    bad="no_stream: the orchestrator was away. over_quota: the key's hour is over.",
                    unit="cps",
                    series=(
                        Series(rate("minmo_audio_in_lost_frames_total", "reason"), "{{reason}}"),
                    ),
                    runbook="MinMoUserAudioLost",
                ),
                Lines(
                    title="Playback that stalled, times a second",
                    about="The gateway follows for its clients how far they must have played.",
                    good="0.",
                    bad="A line that stays above 0: people hear gaps.",
                    unit="cps",
                    series=(
                        Series(rate("minmo_playback_stalls_total", "instance"), "{{instance}}"),
                    ),
                    runbook="MinMoAnswersStutter",
                ),
            ),
        ),
        Section(
            "Time",
            (
                Lines(
                    title="Time within the gateway, p95",
                    about="Of a message: `in` from the client's event to the request, `out` from "
                    "the response to the client's event.",
                    good="Below 5 ms.",
                    bad="Above 25 ms the process is short of CPU: add replicas.",
                    unit="s",
                    series=(
                        Series(
                            quantile(0.95, "minmo_gateway_added_seconds", "direction"),
                            "{{direction}}",
                        ),
                    ),
                    limits=Limits(0.01, 0.025),
                    runbook="MinMoFirstAudioSlow",
                ),
                Lines(
                    title="To the client and back",
                    about="A ping over the WebSocket until its pong.",
                    good="What the network takes: tens of milliseconds.",
                    bad="p50 above 0.2 s: answers come that much later, and it is not the server.",
                    unit="s",
                    series=shared.quantiles("minmo_hop_client_duration_seconds"),
                ),
                Lines(
                    title="To the orchestrator, p95, by call",
                    good="Below 0.1 s.",
                    bad="open above 1 s: orchestrators are short of CPU, or Redis is slow.",
                    unit="s",
                    series=(
                        Series(
                            quantile(0.95, "minmo_hop_orchestrator_duration_seconds", "call"),
                            "{{call}}",
                        ),
                    ),
                    runbook="MinMoFirstAudioSlow",
                ),
            ),
        ),
        Section(
            "What is behind it",
            (
                Lines(
                    title="Calls to the orchestrator that failed, by status",
                    good="0.",
                    bad="UNAVAILABLE that stays: no orchestrator is there.",
                    unit="reqps",
                    series=(
                        Series(
                            or_zero(
                                rate("minmo_hop_errors_total", "code"),
                                gauge("minmo_gateway_connections"),
                                "code",
                            ),
                            "{{code}}",
                        ),
                    ),
                    runbook="MinMoErrorBudgetBurns",
                ),
                Lines(
                    title="Streams that were opened again",
                    good="0, except when an orchestrator is replaced.",
                    bad="A line that stays: orchestrators die, or are overloaded.",
                    unit="cps",
                    series=(Series(rate("minmo_gateway_reconnects_total"), "opened again"),),
                    runbook="MinMoServiceGone",
                ),
                Lines(
                    title="Orchestrators lost, times a second",
                    good="0.",
                    bad="A line that stays.",
                    unit="cps",
                    series=(Series(rate("minmo_outages_total", "to"), "{{to}}"),),
                    runbook="MinMoServiceGone",
                ),
            ),
        ),
        shared.processes(),
    ),
)
