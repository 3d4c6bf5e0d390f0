"""The LLM: the service in front, and Triton with the engine in it."""

from __future__ import annotations

from tools.dashboards import shared
from tools.dashboards.panels import Dashboard, Limits, Lines, Section, Series
from tools.dashboards.queries import gauge, quantile, rate, ratio

DASHBOARD = Dashboard(
    name="llm",
    title="MinMo: LLM and Triton",
    description="Is there a slot for every conversation, and do tokens come fast enough?",
    # The service's metrics and the engine's come from two processes.
    members='{__name__=~"minmo_triton_streams|minmo_llm_slots"}',
    sections=(
        Section(
            "Room",
            (
                Lines(
                    title="Cache slots, by replica of Triton",
                    about="A conversation holds one, and a second one while it is interrupted.",
                    good="In use well below what there is.",
                    bad="At the limit: further conversations wait, then their answers fail.",
                    unit="short",
                    series=(
                        Series(gauge("minmo_llm_slots_in_use", "instance"), "in use {{instance}}"),
                        Series(gauge("minmo_llm_slots", "instance"), "there are {{instance}}"),
                    ),
                    runbook="MinMoCapacityLow",
                ),
                Lines(
                    title="Operations that run and that wait",
                    good="waiting is 0.",
                    bad="waiting stays above 0: no slot is free, or steps are slow.",
                    unit="short",
                    series=(
                        Series(gauge("minmo_llm_running"), "running"),
                        Series(gauge("minmo_llm_waiting"), "waiting"),
                    ),
                    runbook="MinMoCapacityLow",
                ),
                Lines(
                    title="Time in steps, share of the time, by replica of Triton",
                    about="The engine computes one step after another.",
                    good="Below 1: it sometimes has nothing to do.",
                    bad="1 all the time: tokens come as fast as they can, which may not do.",
                    unit="percentunit",
                    series=(
                        Series(rate("minmo_llm_step_seconds_total", "instance"), "{{instance}}"),
                    ),
                    top=1,
                ),
            ),
        ),
        Section(
            "Steps of the engine",
            (
                Lines(
                    title="Tokens generated, positions read and probes answered, a second",
                    good="It follows the number of answers.",
                    bad="Positions far above the tokens: caches were lost, and histories are read "
                    "again.",
                    unit="cps",
                    series=(
                        Series(rate("minmo_llm_tokens_total"), "tokens"),
                        Series(rate("minmo_llm_prefill_positions_total"), "positions"),
                        Series(rate("minmo_llm_probes_total"), "probes"),
                    ),
                ),
                Lines(
                    title="Time of a step, mean",
                    good="Flat, also with more sequences in a step.",
                    bad="It grows: long histories, or a machine that is busy.",
                    unit="s",
                    series=(
                        Series(
                            ratio(
                                rate("minmo_llm_step_seconds_total", "instance"),
                                rate("minmo_llm_steps_total", "instance"),
                            ),
                            "{{instance}}",
                        ),
                    ),
                    runbook="MinMoFirstAudioSlow",
                ),
                Lines(
                    title="Sequences in a step, mean",
                    good="It grows with the load: that is what makes many cheap.",
                    bad="1 under load: operations do not share steps.",
                    unit="short",
                    series=(
                        Series(
                            ratio(
                                rate("minmo_llm_step_sequences_total", "instance"),
                                rate("minmo_llm_steps_total", "instance"),
                            ),
                            "{{instance}}",
                        ),
                    ),
                ),
            ),
        ),
        Section(
            "Time",
            (
                Lines(
                    title="From one token to the next",
                    good="p95 below 0.1 s: faster than anybody speaks.",
                    bad="Above 0.3 s the voice waits for text, and answers stutter.",
                    unit="s",
                    series=shared.quantiles("minmo_triton_token_interval_seconds"),
                    limits=Limits(0.15, 0.3),
                    runbook="MinMoAnswersStutter",
                ),
                Lines(
                    title="Service to Triton, p95, by call",
                    about="Until the first answer; of generate, the first token.",
                    good="generate below 0.3 s; fork, truncate and close take milliseconds.",
                    bad="Everything is slow: Triton's machine is busy.",
                    unit="s",
                    series=(
                        Series(
                            quantile(0.95, "minmo_hop_triton_duration_seconds", "call"), "{{call}}"
                        ),
                    ),
                    runbook="MinMoFirstAudioSlow",
                ),
                Lines(
                    title="Inside Triton, p95, by operation",
                    about="From the receipt of an operation to its end.",
                    good="prefill below 0.2 s.",
                    bad="prefill grows: long histories, or too many at once.",
                    unit="s",
                    series=(
                        Series(
                            quantile(0.95, "minmo_triton_engine_duration_seconds", "operation"),
                            "{{operation}}",
                        ),
                    ),
                    runbook="MinMoFirstAudioSlow",
                ),
            ),
        ),
        Section(
            "The service in front",
            (
                shared.streams(),
                Lines(
                    title="Towards Triton",
                    good="Streams as many as conversations.",
                    bad="Operations that stay in flight while no tokens come: Triton is stuck.",
                    unit="short",
                    series=(
                        Series(gauge("minmo_triton_streams"), "streams"),
                        Series(gauge("minmo_triton_operations_in_flight"), "operations"),
                    ),
                    runbook="MinMoTritonAway",
                ),
                Lines(
                    title="Operations that failed, by reason",
                    good="0; CANCELLED where people interrupt.",
                    bad="NO_SLOT and BUSY: no room. UPSTREAM and CACHE_LOST: Triton was away. "
                    "CONTEXT_FULL: conversations are too long for the cache.",
                    unit="cps",
                    series=(
                        Series(rate("minmo_llm_operation_errors_total", "reason"), "{{reason}}"),
                    ),
                    runbook="MinMoTurnedAway",
                ),
            ),
        ),
        Section("Calls", shared.calls()),
        shared.processes(),
    ),
)
