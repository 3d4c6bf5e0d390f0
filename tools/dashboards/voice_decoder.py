"""The voice decoder: tokens in, speech out."""

from __future__ import annotations

from tools.dashboards import shared
from tools.dashboards.panels import Dashboard, Limits, Lines, Section, Series
from tools.dashboards.queries import WINDOW, gauge, or_zero, pick, rate, ratio, total

_NEURAL = "Of the neural voice; SVOX Pico has no such steps."
_COMPUTE = f"rate({pick('minmo_voice_compute_seconds_total')}[{WINDOW}])"
_STEPS = f"rate({pick('minmo_voice_token_steps_total')}[{WINDOW}])"

DASHBOARD = Dashboard(
    name="voice-decoder",
    title="MinMo: voice decoder",
    description="Is speech made faster than it is listened to, and is there a slot for everyone?",
    members="minmo_voice_slots",
    sections=(
        Section(
            "Room",
            (
                Lines(
                    title="Slots, by replica",
                    good="In use well below what there is.",
                    bad="At the limit: utterances wait, and are refused after "
                    "`--slot-deadline-seconds`.",
                    unit="short",
                    series=(
                        Series(
                            gauge("minmo_voice_slots_in_use", "instance"),
                            "in use {{instance}}",
                        ),
                        Series(gauge("minmo_voice_slots", "instance"), "there are {{instance}}"),
                    ),
                    runbook="MinMoCapacityLow",
                ),
                Lines(
                    title="Utterances that wait",
                    good="0.",
                    bad="A line that stays above 0: answers begin late.",
                    unit="short",
                    series=(Series(gauge("minmo_voice_waiting", "instance"), "{{instance}}"),),
                    runbook="MinMoCapacityLow",
                ),
                shared.streams(),
                Lines(
                    title="Utterances that came, were refused, and failed",
                    good="refused and failed are 0.",
                    bad="refused: no slot in time. failed: the voice could not speak; its log says "
                    "why.",
                    unit="cps",
                    series=(
                        Series(rate("minmo_voice_utterances_total"), "came"),
                        Series(rate("minmo_voice_refused_total"), "refused"),
                        Series(rate("minmo_voice_failed_total"), "failed"),
                    ),
                    runbook="MinMoTurnedAway",
                ),
            ),
        ),
        Section(
            "Time",
            (
                Lines(
                    title="From the first token to the first audio",
                    good="p95 below 0.2 s.",
                    bad="Above 0.5 s: it waits for text, or for a slot.",
                    unit="s",
                    series=shared.quantiles("minmo_voice_first_audio_seconds"),
                    limits=Limits(0.3, 0.5),
                    runbook="MinMoFirstAudioSlow",
                ),
                Lines(
                    title="Real-time factor of a piece of speech",
                    about="Time until it was made, over how long it is.",
                    good="p95 below 0.7.",
                    bad="Above 1 speech is made more slowly than it is heard.",
                    unit="none",
                    series=shared.quantiles("minmo_voice_real_time_ratio"),
                    limits=Limits(0.7, 1),
                    runbook="MinMoAnswersStutter",
                ),
                Lines(
                    title="Time that the voice computes, share, by replica",
                    good="Below 70 %.",
                    bad="Above 85 % there is no room for another speaker: add replicas.",
                    unit="percentunit",
                    about="Of one thread for all slots (the neural voice), or one for each (Pico).",
                    series=(
                        Series(
                            total(
                                f"({_COMPUTE} and {_STEPS})\nor\n"
                                f"{_COMPUTE} / {pick('minmo_voice_slots')}",
                                ["instance"],
                            ),
                            "{{instance}}",
                        ),
                    ),
                    top=1,
                    limits=Limits(0.7, 0.85),
                    runbook="MinMoCapacityLow",
                ),
                Lines(
                    title="Speech that was made, seconds in a second",
                    good="It follows the number of answers.",
                    bad="0 while the LLM writes: nobody is spoken to.",
                    unit="short",
                    series=(
                        Series(rate("minmo_voice_audio_seconds_total", "instance"), "{{instance}}"),
                    ),
                    stacked=True,
                ),
                Lines(
                    title="Speech tokens and chunks, a second",
                    about=_NEURAL,
                    good="25 tokens for each second of speech.",
                    bad="Tokens without chunks: token2wav is what is slow.",
                    unit="cps",
                    series=(
                        Series(rate("minmo_voice_speech_tokens_total"), "tokens"),
                        Series(rate("minmo_voice_chunks_total"), "chunks"),
                    ),
                ),
                Lines(
                    title="Time of a step, mean",
                    about=_NEURAL,
                    good="Flat.",
                    bad="It grows with the utterances in it: as many as this machine can make.",
                    unit="s",
                    series=(
                        Series(
                            or_zero(
                                ratio(
                                    rate("minmo_voice_token_step_seconds_total"),
                                    rate("minmo_voice_token_steps_total"),
                                ),
                                rate("minmo_voice_token_steps_total"),
                            ),
                            "voice token LM",
                        ),
                        Series(
                            or_zero(
                                ratio(
                                    rate("minmo_voice_chunk_step_seconds_total"),
                                    rate("minmo_voice_chunk_steps_total"),
                                ),
                                rate("minmo_voice_chunk_steps_total"),
                            ),
                            "token2wav",
                        ),
                    ),
                ),
            ),
        ),
        Section("Calls", shared.calls()),
        shared.processes(),
    ),
)
