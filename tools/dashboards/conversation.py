"""Where the time of a turn goes, stage by stage and hop by hop, and on which replica."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models.dashboard import DashboardLinkType

from tools.dashboards import shared
from tools.dashboards.overview import STAGES
from tools.dashboards.panels import Bars, Dashboard, Heat, Limits, Lines, Section, Series
from tools.dashboards.queries import ALL_SHOWN, mean, pick, quantile, rate, ratio

_MEANING = {
    "endpointing": "from the last word to the decision that the turn has ended: mostly the silence "
    "that it takes (`--end-of-turn-silence-ms`)",
    "recognise": "the words of the last segment, in the cascade",
    "embed": "the last speech embeddings, in aligned mode",
    "prefill": "the LLM reads what it had not read yet",
    "first_token": "the LLM's first token",
    "first_text_to_voice": "from the first token until there is enough text for the voice",
    "first_audio": "from the first text at the voice to the first sample sent",
}
_STAGE = "minmo_turn_stage_duration_seconds"


def _waterfall() -> Section:
    return Section(
        "One turn, on the average of those in the time shown",
        (
            Bars(
                title="Stages, median",
                about="In the order of time. "
                + ". ".join(f"`{stage}`: {_MEANING[stage]}" for stage in STAGES)
                + ".",
                good="endpointing about 0.5 s; the others together less than that.",
                bad="Another stage that is as long as endpointing.",
                unit="s",
                series=tuple(
                    Series(quantile(0.5, _STAGE, where=f'stage="{stage}"', window=ALL_SHOWN), stage)
                    for stage in STAGES
                ),
                runbook="MinMoFirstAudioSlow",
            ),
            Bars(
                title="Stages, p95",
                good="At most twice the median.",
                bad="A stage whose p95 is many times its median: it sometimes waits, for a slot or "
                "for another part.",
                unit="s",
                series=tuple(
                    Series(
                        quantile(0.95, _STAGE, where=f'stage="{stage}"', window=ALL_SHOWN), stage
                    )
                    for stage in STAGES
                ),
                runbook="MinMoFirstAudioSlow",
            ),
            Bars(
                title="Hops, p95",
                about="As the caller sees it: network, wait and work together.",
                good="Milliseconds between processes; models take tens to hundreds.",
                bad="A hop far above the others of its kind.",
                unit="s",
                series=(
                    Series(
                        quantile(0.95, "minmo_hop_client_duration_seconds", window=ALL_SHOWN),
                        "client",
                    ),
                    *(
                        Series(
                            quantile(
                                0.95,
                                f"minmo_hop_{hop}_duration_seconds",
                                where=f'call="{call}"',
                                window=ALL_SHOWN,
                            ),
                            f"{hop} {call}",
                        )
                        for hop, call in (
                            ("orchestrator", "open"),
                            ("encoder", "frame"),
                            ("encoder", "transcript"),
                            ("llm", "prefill"),
                            ("llm", "generate"),
                            ("triton", "generate"),
                            ("voice_decoder", "first_audio"),
                            ("redis", "put_turn"),
                        )
                    ),
                ),
                runbook="MinMoFirstAudioSlow",
            ),
        ),
    )


def _over_time() -> Section:
    return Section(
        "Over time",
        (
            Lines(
                title="Stages, mean, one on top of the other",
                about="Stages that run at the same time are counted twice, so the sum is more than "
                "the first audio.",
                good="Even bands.",
                bad="A band that widens: this is where the time goes.",
                unit="s",
                series=(Series(mean(_STAGE, "stage"), "{{stage}}"),),
                stacked=True,
                width=12,
                runbook="MinMoFirstAudioSlow",
            ),
            Heat(
                title="First audio, all answers",
                good="One dark band.",
                bad="A second one above it.",
                unit="s",
                histogram="minmo_turn_first_audio_seconds",
                width=12,
                runbook="MinMoFirstAudioSlow",
            ),
        ),
    )


def _by_replica() -> Section:
    def stage(name: str, title: str, alert: str) -> Lines:
        return Lines(
            title=title,
            about=f"Stage {name}: {_MEANING[name]}.",
            good="All replicas alike.",
            bad="One replica above the others: its machine is busy, or what it calls is.",
            unit="s",
            series=(
                Series(quantile(0.95, _STAGE, "instance", where=f'stage="{name}"'), "{{instance}}"),
            ),
            runbook=alert,
        )

    return Section(
        "By replica of the orchestrator, p95",
        (
            Lines(
                title="First audio",
                good="All replicas alike, below 1.2 s.",
                bad="One replica above the others.",
                unit="s",
                series=(
                    Series(
                        quantile(0.95, "minmo_turn_first_audio_seconds", "instance"),
                        "{{instance}}",
                    ),
                ),
                limits=Limits(1.5, 3),
                runbook="MinMoFirstAudioSlow",
            ),
            stage("recognise", "Recognising the words", "MinMoFirstAudioSlow"),
            stage("prefill", "Reading", "MinMoFirstAudioSlow"),
            stage("first_token", "The first token", "MinMoFirstAudioSlow"),
            stage("first_text_to_voice", "Text for the voice", "MinMoFirstAudioSlow"),
            stage("first_audio", "The first audio of the voice", "MinMoFirstAudioSlow"),
        ),
    )


def _speech() -> Section:
    return Section(
        "After the first audio",
        (
            Lines(
                title="Tokens of the LLM, time from one to the next",
                good="p95 below 0.1 s: faster than anybody speaks.",
                bad="Above 0.3 s the voice waits for text, and answers stutter.",
                unit="s",
                series=shared.quantiles("minmo_triton_token_interval_seconds"),
                limits=Limits(0.15, 0.3),
                runbook="MinMoAnswersStutter",
            ),
            Lines(
                title="Playback that stalled, times a second",
                about="A client had played all that it had, and more was to come.",
                good="0.",
                bad="A line that stays above 0.",
                unit="cps",
                series=(Series(rate("minmo_playback_stalls_total", "job"), "told by {{job}}"),),
                runbook="MinMoAnswersStutter",
            ),
            Lines(
                title="Silence within answers, mean of those that had one",
                good="Nothing.",
                bad="Above 0.15 s it is heard.",
                unit="s",
                series=(
                    Series(
                        ratio(
                            rate("minmo_audio_out_gap_seconds_sum"),
                            rate("minmo_audio_out_gap_seconds_count"),
                        ),
                        "gap",
                    ),
                ),
                limits=Limits(0.08, 0.15),
                runbook="MinMoAnswersStutter",
            ),
        ),
    )


def _traces() -> Section:
    return Section(
        "Traces",
        (
            Lines(
                title="Spans of traces, by what became of them",
                about="Tracing is off by default: docs/tracing.md turns it on. The link above "
                "opens the turns of a session as traces.",
                good="exported alone, or nothing where tracing is off.",
                bad="failed: the collector is away. dropped: it is too slow, and traces have "
                "holes. Conversations do not wait for either.",
                unit="cps",
                series=(Series(rate("minmo_tracing_spans_total", "outcome"), "{{outcome}}"),),
                width=12,
            ),
            Lines(
                title="Conversations, by what goes on",
                good="As many speak as listen.",
                bad="Many are thinking: people wait for answers.",
                unit="short",
                series=(Series(f"sum by (state) ({pick('minmo_sessions')})", "{{state}}"),),
                stacked=True,
                width=12,
            ),
        ),
    )


_EXPLORE = (
    '/explore?schemaVersion=1&panes={"t":{"datasource":"${traces}","queries":[{"refId":"A",'
    '"datasource":{"type":"tempo","uid":"${traces}"},"queryType":"traceql","limit":20,'
    '"query":"{ span.minmo.session_id = \\"${session}\\" }"}],'
    '"range":{"from":"${__from}","to":"${__to}"}}}'
)

DASHBOARD = Dashboard(
    name="conversation",
    title="MinMo: where the time goes",
    description="Why does the answer come so late? Stages, hops and replicas of a turn.",
    members="minmo_ready",
    all_jobs=True,
    further=(
        dashboard.DatasourceVariable("traces").label("Traces").type("tempo"),
        dashboard.TextBoxVariable("session").label("Session").default_value(""),
    ),
    links=(
        dashboard.DashboardLink("Traces of the session")
        .type(DashboardLinkType.LINK)
        .url(_EXPLORE)
        .target_blank(True),
    ),
    sections=(_waterfall(), _over_time(), _by_replica(), _speech(), _traces()),
)
