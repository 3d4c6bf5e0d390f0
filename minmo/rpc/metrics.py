"""Every metric of MinMo, named in one place; nothing else is exported.

A metric says here what it is called, what it counts, which processes export it, and which values
its labels can take. `tools/metrics_page.py` makes `docs/metrics.md` of it; tests compare
dashboards, alerts, and what running processes export with it.

Names follow Prometheus' conventions: prefix ``minmo_``, base units, the unit at the end, ``_total``
for counters. A label never holds what a caller chose (session ids, texts, names of tools), so the
number of series stays bounded. A process exports what `publish` finds to be its own. Series whose
labels are known beforehand are there from the start, at 0.

What Triton exports is named here too: the LLM's engine runs inside it, and `minmo.triton.metrics`
publishes its figures there.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Histogram

from minmo.rpc.catalogue import Catalogue, Exporter, Named

if TYPE_CHECKING:
    import grpc

FRAME_SECONDS = 0.02
"""Audio that is counted as a frame."""

# --- what labels can say

Peer = Literal["orchestrator", "encoder", "llm", "voice_decoder", "triton", "redis"]
"""Who is called."""
OrchestratorCall = Literal["open", "request", "get_session", "transcribe"]
EncoderCall = Literal["open", "frame", "transcript", "embeddings"]
LlmCall = Literal["get_model", "prefill", "generate", "probe", "fork", "truncate", "close"]
VoiceDecoderCall = Literal["open", "first_audio"]
TritonCall = Literal[
    "ready", "describe", "prefill", "generate", "probe", "fork", "truncate", "cancel", "close"
]
RedisCall = Literal[
    "probe",
    "create",
    "get",
    "page",
    "delete",
    "acquire",
    "refresh",
    "release",
    "put_turn",
    "put_settings",
    "put_cache",
    "drop_turn",
    "next_epoch",
    "push_embeddings",
    "embeddings",
    "clear_embeddings",
]
NotReady = Literal[
    "starting",
    "draining",
    "redis",
    "encoder",
    "llm",
    "voice_decoder",
    "triton",
    "orchestrator",
    "weights",
    "compute",
    "clock",
    "other",
]
"""Why a process is not ready: what it lacks. `compute` is a compute thread that is stuck."""
Stage = Literal[
    "endpointing",
    "recognise",
    "embed",
    "prefill",
    "first_token",
    "first_text_to_voice",
    "first_audio",
]
"""A stage of a turn, in the order of time; `TURN_STAGE` measures each."""
TurnOutcome = Literal["answered", "interrupted", "no_speech", "failed"]
Decision = Literal[
    "answer_now", "answer_at_limit", "answer_for_client", "wait", "stop", "back_channel"
]
"""What was decided about who speaks.

`answer_now`: the user's turn has ended. `answer_at_limit`: it was too long. `answer_for_client`:
the client ended it. `wait`: the user paused, was waited for, and went on. `stop`: the user takes
the floor from the assistant. `back_channel`: the user spoke over the assistant, and it went on.
"""
Regret = Literal[
    "answered_too_early", "stopped_for_nothing", "ignored_too_early", "turn_without_words"
]
"""A decision that was undone.

`answered_too_early`: the user went on within a second after `answer_now`. `stopped_for_nothing`:
no words came of a `stop`. `ignored_too_early`: a `stop` within a second after `back_channel`.
`turn_without_words`: what was taken for a turn had no words.
"""
ProbeFate = Literal["answered", "replaced", "failed"]
"""What became of a probe of the full-duplex predictor.

`answered`: in time. `replaced`: a later one came before it was asked. `failed`: it was refused, or
not answered in time.
"""
DraftFate = Literal["used", "wasted"]
"""What became of tokens that were made before it was known whether the user's turn had ended."""
SessionState = Literal["idle", "listening", "thinking", "speaking"]
"""`idle`: nobody speaks. `listening`: the user does. `thinking`: an answer is under way that
nothing was heard of. `speaking`: the assistant speaks, or what it said is being played."""
SessionStart = Literal["new", "resumed", "taken_over"]
InputLoss = Literal["refused", "concealed", "over_quota", "no_stream", "too_old"]
"""Why audio of the user was not heard.

`refused`: it was no audio in the stream's format. `concealed`: an Opus packet that was lost on its
way. `over_quota`: the gateway's quota was used up. `no_stream`: the gateway looked for another
orchestrator. `too_old`: an encoder was lost for longer than audio is kept.
"""
Rejection = Literal[
    "DRAINING", "STARTING", "TOO_MANY_STREAMS", "TOO_MANY_CALLS", "TOKEN_MISSING", "TOKEN_BAD"
]
Job = Literal["recognise", "embed"]
SpanFate = Literal["exported", "failed", "dropped"]

# --- which times fit what

# What a network and a proxy add is milliseconds.
_NETWORK = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
# A model's answer takes a step of milliseconds to a second; beyond is a fault that should show.
_MODEL = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10)
# A stage of a turn takes 10 ms to 1 s.
_STAGE = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10)
# Around the goals for the first audio: 0.6 s, 0.8 s, 1.2 s.
_FIRST_AUDIO = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 5, 10)
# Unary calls take milliseconds, streams minutes.
_RPC = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10, 60, 300, 1800)
_REDIS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
# Tokens of one generation follow each other at 5 to 200 a second.
_TOKEN = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
# From a gap that nobody hears to one that is taken for the end.
_GAP = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1, 2, 5)
# A lost service is back after a retry, or after a restart.
_OUTAGE = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
# Below 1 a model keeps up with speech.
_REAL_TIME = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5)

_METHODS = "methods of `minmo.v1`"
_CODES = "gRPC statuses"
_GRPC: tuple[Exporter, ...] = ("orchestrator", "encoder", "llm", "voice_decoder")
_ALL: tuple[Exporter, ...] = ("gateway", *_GRPC)

_catalogue = Catalogue(common=_GRPC)
_counter, _gauge = _catalogue.counter, _catalogue.gauge
_histogram, _figure = _catalogue.histogram, _catalogue.figure

# --- every process

BUILD = _gauge(
    "minmo_build_info",
    "1 for the service that runs, with its version and that of Python.",
    *_ALL,
    labels={"service": _ALL, "version": "MinMo's version", "python": "Python's version"},
)
READY = _gauge("minmo_ready", "1 while the process takes new work, else 0.", *_ALL)
NOT_READY = _gauge(
    "minmo_not_ready",
    "1 for what keeps the process from taking new work.",
    *_ALL,
    labels={"reason": get_args(NotReady)},
)
STREAMS = _gauge("minmo_streams", "Streams (connections, in the gateway) that are open.", *_ALL)
STREAMS_LIMIT = _gauge(
    "minmo_streams_limit", "Streams that may be open at the same time in this process.", *_ALL
)
SPANS = _counter(
    "minmo_tracing_spans_total",
    "Spans of traces, by what became of them: exported, failed at the collector, or dropped since "
    "too many waited.",
    *_ALL,
    labels={"outcome": get_args(SpanFate)},
)

# --- calls that are served (minmo.rpc.calls)

RPC_HANDLED = _counter(
    "minmo_rpc_handled_total",
    "Calls that ended, by method and gRPC status.",
    *_GRPC,
    labels={"method": _METHODS, "code": _CODES},
)
RPC_DURATION = _histogram(
    "minmo_rpc_duration_seconds",
    "Time from the start of a call to its end.",
    *_GRPC,
    labels={"method": _METHODS},
    buckets=_RPC,
)
RPC_IN_FLIGHT = _gauge(
    "minmo_rpc_in_flight", "Calls that are running.", *_GRPC, labels={"method": _METHODS}
)
RPC_REJECTED = _counter(
    "minmo_rpc_rejected_total",
    "Calls that were not let in, by why.",
    *_GRPC,
    labels={"reason": get_args(Rejection)},
)

# --- hops: what is called, as the caller sees it

HOP_CLIENT = _histogram(
    "minmo_hop_client_duration_seconds",
    "Gateway to client and back: a ping over the WebSocket until its pong.",
    "gateway",
    buckets=_NETWORK,
)
HOP_ORCHESTRATOR = _histogram(
    "minmo_hop_orchestrator_duration_seconds",
    "Gateway to orchestrator: open (a stream, until it is ready), request (one in the stream, "
    "until the first answer that carries its id), get_session, transcribe.",
    "gateway",
    labels={"call": get_args(OrchestratorCall)},
    buckets=_MODEL,
)
HOP_ENCODER = _histogram(
    "minmo_hop_encoder_duration_seconds",
    "Orchestrator to encoder: open (a stream, until it is ready), frame (audio, until the voice "
    "activity in it is told), transcript (of a segment), embeddings (end of a segment, until the "
    "last ones).",
    "orchestrator",
    labels={"call": get_args(EncoderCall)},
    buckets=_MODEL,
)
HOP_LLM = _histogram(
    "minmo_hop_llm_duration_seconds",
    "Orchestrator to LLM service: an operation until its first answer; of generate, the first "
    "token.",
    "orchestrator",
    labels={"call": get_args(LlmCall)},
    buckets=_MODEL,
)
HOP_VOICE_DECODER = _histogram(
    "minmo_hop_voice_decoder_duration_seconds",
    "Orchestrator to voice decoder: open (a stream, until it is ready), first_audio (from the "
    "first tokens sent).",
    "orchestrator",
    labels={"call": get_args(VoiceDecoderCall)},
    buckets=_MODEL,
)
HOP_TRITON = _histogram(
    "minmo_hop_triton_duration_seconds",
    "LLM service to Triton: an operation until its first answer; of generate, the first token. "
    "Also ready (the health of the model) and describe.",
    "llm",
    labels={"call": get_args(TritonCall)},
    buckets=_MODEL,
)
HOP_REDIS = _histogram(
    "minmo_hop_redis_duration_seconds",
    "Orchestrator to Redis: one try of an operation of the session store.",
    "orchestrator",
    labels={"call": get_args(RedisCall)},
    buckets=_REDIS,
)
HOP_ERRORS = _counter(
    "minmo_hop_errors_total",
    "Calls to another process that failed, by that process and gRPC status. Of Redis: UNAVAILABLE, "
    "DEADLINE_EXCEEDED, UNAUTHENTICATED or, where it refused, FAILED_PRECONDITION.",
    *("gateway", "orchestrator", "llm"),
    labels={"to": get_args(Peer), "code": _CODES},
)
OUTAGES = _counter(
    "minmo_outages_total",
    "Times that a conversation (a connection, in the gateway) lost a service and looked for it.",
    *("gateway", "orchestrator"),
    labels={"to": ("orchestrator", "encoder", "llm", "voice_decoder")},
)
OUTAGE_DURATION = _histogram(
    "minmo_outage_duration_seconds",
    "Time until a conversation had a service back that it had lost.",
    *("gateway", "orchestrator"),
    labels={"to": ("orchestrator", "encoder", "llm", "voice_decoder")},
    buckets=_OUTAGE,
)

# --- conversations

SESSIONS_OPEN = _gauge("minmo_sessions_open", "Sessions that have an open stream.", "orchestrator")
SESSIONS = _gauge(
    "minmo_sessions",
    "Sessions that have an open stream, by what goes on: idle, listening, thinking, speaking.",
    "orchestrator",
    labels={"state": get_args(SessionState)},
)
SESSIONS_OPENED = _counter(
    "minmo_sessions_opened_total",
    "Streams of sessions that were opened: new sessions, resumed ones, and those taken over from "
    "another stream.",
    "orchestrator",
    labels={"how": get_args(SessionStart)},
)
TURNS = _counter(
    "minmo_turns_total",
    "Turns that ended, by outcome: answered, interrupted, no_speech, failed.",
    "orchestrator",
    labels={"outcome": get_args(TurnOutcome)},
)
TURN_FAILURES = _counter(
    "minmo_turn_failures_total",
    "Answers that failed, by gRPC status.",
    "orchestrator",
    labels={"code": _CODES},
)
TURN_FIRST_AUDIO = _histogram(
    "minmo_turn_first_audio_seconds",
    "Time from the end of the user's speech to the first sample of the answer leaving the server.",
    "orchestrator",
    buckets=_FIRST_AUDIO,
)
TURN_STAGE = _histogram(
    "minmo_turn_stage_duration_seconds",
    "Time of one stage of a turn, the waterfall of `TurnReport`: endpointing, recognise, embed, "
    "prefill, first_token, first_text_to_voice, first_audio.",
    "orchestrator",
    labels={"stage": get_args(Stage)},
    buckets=_STAGE,
)
TURN_STOP = _histogram(
    "minmo_turn_stop_duration_seconds",
    "Time from the arrival of the first speech over an answer to the client being told to stop "
    "playing it.",
    "orchestrator",
    buckets=_STAGE,
)
TURN_DECISIONS = _counter(
    "minmo_turn_decisions_total",
    "Decisions about who speaks: answer_now, answer_at_limit, answer_for_client, wait, stop, "
    "back_channel.",
    "orchestrator",
    labels={"decision": get_args(Decision)},
)
PROBES = _counter(
    "minmo_probes_total",
    "Probes of the full-duplex predictor: answered in time, replaced by a later one before they "
    "were asked, or failed.",
    "orchestrator",
    labels={"outcome": get_args(ProbeFate)},
)
DRAFTED_TOKENS = _counter(
    "minmo_drafted_tokens_total",
    "Tokens that were made before it was known whether the user's turn had ended: used in the "
    "answer, or wasted.",
    "orchestrator",
    labels={"outcome": get_args(DraftFate)},
)
TURN_REGRETS = _counter(
    "minmo_turn_regrets_total",
    "Decisions that turned out to be wrong: answered_too_early (the user went on within a second), "
    "stopped_for_nothing (no words came of it), ignored_too_early (a stop within a second after a "
    "back-channel), turn_without_words.",
    "orchestrator",
    labels={"regret": get_args(Regret)},
)
TOOL_CALLS = _counter(
    "minmo_tool_calls_total",
    "Calls of tools that the LLM wrote: told to the client, or dropped since they did not fit.",
    "orchestrator",
    labels={"outcome": ("called", "dropped")},
)
REQUESTS_REFUSED = _counter(
    "minmo_requests_refused_total",
    "Requests within a conversation that were refused, by the contract's reason.",
    "orchestrator",
    labels={
        "reason": (
            *("ANSWERING", "BAD_REQUEST", "BAD_SETTINGS", "INTERRUPTED", "NO_CALL", "NO_INPUT"),
            *("NO_TURN", "TOO_LONG", "TOO_MANY"),
        )
    },
)

# --- audio on its way; a frame is 20 ms

AUDIO_IN = _counter(
    "minmo_audio_in_frames_total", "Frames of users' audio that were heard.", "orchestrator"
)
AUDIO_IN_LOST = _counter(
    "minmo_audio_in_lost_frames_total",
    "Frames of users' audio that were not heard: refused (no audio in the stream's format), "
    "concealed (an Opus packet lost on its way), over_quota and no_stream (in the gateway), "
    "too_old (an encoder was away for longer than audio is kept).",
    *("gateway", "orchestrator"),
    labels={"reason": get_args(InputLoss)},
)
AUDIO_OUT = _counter(
    "minmo_audio_out_frames_total", "Frames of answers that were sent.", "orchestrator"
)
AUDIO_OUT_LATE = _counter(
    "minmo_audio_out_late_frames_total",
    "Frames of answers that were sent after they had to be played, by a client that plays an "
    "answer from its first frame on.",
    "orchestrator",
)
AUDIO_OUT_GAP = _histogram(
    "minmo_audio_out_gap_seconds",
    "How late audio came that was late: the silence within an answer.",
    "orchestrator",
    buckets=_GAP,
)
STALLS = _counter(
    "minmo_playback_stalls_total",
    "Times that a client had played all that it had of an answer while more was to come: what it "
    "reports in the orchestrator, what the gateway follows for its clients there.",
    *("gateway", "orchestrator"),
)
STALL_SECONDS = _counter(
    "minmo_playback_stall_seconds_total",
    "Time that clients waited so in the middle of an answer.",
    *("gateway", "orchestrator"),
)

# --- gateway

CONNECTIONS = _gauge("minmo_gateway_connections", "WebSocket connections that are open.", "gateway")
CONNECTED = _counter(
    "minmo_gateway_connected_total",
    "WebSocket connections that were asked for, by what became of it: accepted, or why not.",
    "gateway",
    labels={
        "outcome": (
            *("accepted", "client_gone", "invalid_api_key", "origin_not_allowed"),
            *("rate_limit_exceeded", "server_overloaded", "server_unavailable"),
            "websocket_required",
        )
    },
)
CLOSED = _counter(
    "minmo_gateway_closed_total",
    "WebSocket connections that ended, by why.",
    "gateway",
    labels={"reason": "ends of `services.gateway.ending`"},
)
EVENTS_IN = _counter(
    "minmo_gateway_events_in_total",
    "Events of clients, by type.",
    "gateway",
    labels={"type": "client events of docs/realtime.md"},
)
EVENTS_OUT = _counter(
    "minmo_gateway_events_out_total",
    "Events to clients, by type.",
    "gateway",
    labels={"type": "server events of docs/realtime.md"},
)
ERRORS = _counter(
    "minmo_gateway_errors_total",
    "Errors that clients were told, by code.",
    "gateway",
    labels={"code": "error codes of docs/realtime.md"},
)
ADDED = _histogram(
    "minmo_gateway_added_seconds",
    "Time that a message spends in the gateway: in (from a client's event read to the request "
    "written) and out (from a response read to its last event written).",
    "gateway",
    labels={"direction": ("in", "out")},
    buckets=_NETWORK,
)
AUDIO = _counter(
    "minmo_gateway_audio_seconds_total",
    "Audio that went through, by direction.",
    "gateway",
    labels={"direction": ("in", "out")},
)
RECONNECTS = _counter(
    "minmo_gateway_reconnects_total",
    "Streams that were opened again after the server was lost.",
    "gateway",
)

# --- encoder

ENCODER_AUDIO = _counter(
    "minmo_encoder_audio_seconds_total", "Audio that the encoder read.", "encoder"
)
ENCODER_COMPUTE = _counter(
    "minmo_encoder_compute_seconds_total",
    "Time that the compute thread worked. Over `minmo_encoder_audio_seconds_total` it is the "
    "real-time factor.",
    "encoder",
)
ENCODER_REAL_TIME = _histogram(
    "minmo_encoder_real_time_ratio",
    "Real-time factor of one job: compute time over audio time.",
    "encoder",
    buckets=_REAL_TIME,
)
ENCODER_FRAME = _histogram(
    "minmo_encoder_frame_duration_seconds",
    "Time from a chunk of audio read to the voice activity in it.",
    "encoder",
    buckets=_NETWORK,
)
ENCODER_JOB = _histogram(
    "minmo_encoder_job_duration_seconds",
    "Time that the compute thread worked on a job, without its wait: recognise (a segment) or "
    "embed (a step of a segment).",
    "encoder",
    # Not `job`: that is what Prometheus calls a group of targets.
    labels={"kind": get_args(Job)},
    buckets=_STAGE,
)
ENCODER_JOB_WAIT = _histogram(
    "minmo_encoder_job_wait_seconds",
    "Time that a job waited for the compute thread.",
    "encoder",
    # Not `job`: that is what Prometheus calls a group of targets.
    labels={"kind": get_args(Job)},
    buckets=_STAGE,
)
ENCODER_SLOTS = _gauge(
    "minmo_encoder_slots", "Jobs that can be computed at once: compute threads.", "encoder"
)
ENCODER_SLOTS_IN_USE = _gauge(
    "minmo_encoder_slots_in_use", "Jobs that are computed now.", "encoder"
)
ENCODER_WAITING = _gauge(
    "minmo_encoder_waiting", "Jobs that wait for the compute thread.", "encoder"
)

# --- voice decoder

VOICE_AUDIO = _counter(
    "minmo_voice_audio_seconds_total", "Speech that the voice decoder made.", "voice_decoder"
)
VOICE_REAL_TIME = _histogram(
    "minmo_voice_real_time_ratio",
    "Real-time factor of one piece of speech: time until it was made over audio time.",
    "voice_decoder",
    buckets=_REAL_TIME,
)
VOICE_FIRST_AUDIO = _histogram(
    "minmo_voice_first_audio_seconds",
    "Time from the first token of an utterance reaching the voice decoder to its first audio.",
    "voice_decoder",
    buckets=_STAGE,
)
VOICE_UTTERANCES = _counter(
    "minmo_voice_utterances_total", "Utterances that came.", "voice_decoder"
)
VOICE_REFUSED = _counter(
    "minmo_voice_refused_total", "Utterances that found no slot in time.", "voice_decoder"
)
VOICE_FAILED = _counter(
    "minmo_voice_failed_total", "Utterances that the voice could not speak.", "voice_decoder"
)
VOICE_SLOTS = _figure(
    "gauge", "minmo_voice_slots", "Utterances that can be computed at once.", "voice_decoder"
)
VOICE_SLOTS_IN_USE = _figure(
    "gauge", "minmo_voice_slots_in_use", "Utterances that are computed now.", "voice_decoder"
)
VOICE_WAITING = _figure(
    "gauge", "minmo_voice_waiting", "Utterances that wait to be computed.", "voice_decoder"
)
VOICE_COMPUTE = _figure(
    "counter",
    "minmo_voice_compute_seconds_total",
    "Time that the voice computed. Over `minmo_voice_audio_seconds_total` it is the real-time "
    "factor.",
    "voice_decoder",
)
VOICE_TOKEN_STEPS = _figure(
    "counter",
    "minmo_voice_token_steps_total",
    "Steps of the voice token LM (of the neural voice, as all that follows).",
    "voice_decoder",
)
VOICE_TOKEN_STEP_SECONDS = _figure(
    "counter", "minmo_voice_token_step_seconds_total", "Time of these steps.", "voice_decoder"
)
VOICE_SPEECH_TOKENS = _figure(
    "counter", "minmo_voice_speech_tokens_total", "Speech tokens that were drawn.", "voice_decoder"
)
VOICE_CHUNK_STEPS = _figure(
    "counter", "minmo_voice_chunk_steps_total", "Steps of token2wav.", "voice_decoder"
)
VOICE_CHUNK_STEP_SECONDS = _figure(
    "counter", "minmo_voice_chunk_step_seconds_total", "Time of these steps.", "voice_decoder"
)
VOICE_CHUNKS = _figure(
    "counter", "minmo_voice_chunks_total", "Chunks of audio that they made.", "voice_decoder"
)

# --- LLM service

TRITON_STREAMS = _gauge("minmo_triton_streams", "Streams to Triton that are open.", "llm")
TRITON_OPERATIONS = _gauge(
    "minmo_triton_operations_in_flight", "Operations that Triton has not finished.", "llm"
)
TRITON_ENGINE = _histogram(
    "minmo_triton_engine_duration_seconds",
    "Time of an operation inside Triton, from its receipt to its end, as its last answer says.",
    "llm",
    labels={"operation": ("prefill", "generate", "probe")},
    buckets=_MODEL,
)
TOKEN_INTERVAL = _histogram(
    "minmo_triton_token_interval_seconds",
    "Time from one token of a generation to the next, as they come from Triton.",
    "llm",
    buckets=_TOKEN,
)
OPERATION_ERRORS = _counter(
    "minmo_llm_operation_errors_total",
    "Operations that were answered with an error, by the contract's reason.",
    "llm",
    labels={
        "reason": (
            *("BAD_CONTENT", "BUSY", "CACHE_LOST", "CANCELLED", "CONTEXT_FULL", "INTERNAL"),
            *("NO_PREDICTOR", "NO_SLOT", "STALE_EPOCH", "UPSTREAM", "WRONG_POSITION"),
        )
    },
)

# --- Triton, of our model (minmo.triton.metrics)

LLM_SLOTS = _figure("gauge", "minmo_llm_slots", "Cache slots that there are.", "triton")
LLM_SLOTS_IN_USE = _figure(
    "gauge", "minmo_llm_slots_in_use", "Cache slots that a session or branch holds.", "triton"
)
LLM_WAITING = _figure(
    "gauge",
    "minmo_llm_waiting",
    "Operations that wait for a slot or for their step.",
    "triton",
)
LLM_RUNNING = _figure("gauge", "minmo_llm_running", "Operations that run.", "triton")
LLM_STEPS = _figure("counter", "minmo_llm_steps_total", "Steps of the LLM.", "triton")
LLM_STEP_SECONDS = _figure(
    "counter", "minmo_llm_step_seconds_total", "Time of the LLM's steps.", "triton"
)
LLM_STEP_SEQUENCES = _figure(
    "counter",
    "minmo_llm_step_sequences_total",
    "Sequences in the LLM's steps, summed up.",
    "triton",
)
LLM_TOKENS = _figure(
    "counter", "minmo_llm_tokens_total", "Tokens that the LLM generated.", "triton"
)
LLM_PROBES = _figure(
    "counter",
    "minmo_llm_probes_total",
    "Probes that the full-duplex predictor answered.",
    "triton",
)
LLM_PREFILL_POSITIONS = _figure(
    "counter",
    "minmo_llm_prefill_positions_total",
    "Positions (tokens or embeddings) that the LLM read.",
    "triton",
)

METRICS: Mapping[str, Named] = _catalogue.named
"""All of them, by name."""

# --- what others export

_TRITON: tuple[Exporter, ...] = ("triton",)
_GPU = _TRITON  # where there is one, and Triton was started with --allow-gpu-metrics=true

FOREIGN: Mapping[str, tuple[tuple[Exporter, ...], str]] = {
    "process_cpu_seconds_total": (_ALL, "CPU time of the process, its children apart."),
    "process_resident_memory_bytes": (_ALL, "Memory of the process."),
    "process_virtual_memory_bytes": (_ALL, "Address space of the process."),
    "process_open_fds": (_ALL, "Files and connections that are open."),
    "process_max_fds": (_ALL, "Files and connections that may be open."),
    "process_start_time_seconds": (_ALL, "When the process started, in Unix time."),
    "python_info": (_ALL, "Version of Python."),
    "python_gc_collections_total": (_ALL, "Runs of the garbage collector."),
    "python_gc_objects_collected_total": (_ALL, "What these freed."),
    "python_gc_objects_uncollectable_total": (_ALL, "What they could not free."),
    "nv_inference_request_success": (
        _TRITON,
        "Requests; of ours, which answer many times, of "
        "little meaning, as all that follows of them: `minmo_llm_` says what the engine does.",
    ),
    "nv_inference_request_failure": (_TRITON, "Requests that failed, by Triton's reason."),
    "nv_inference_count": (_TRITON, "Requests that were executed."),
    "nv_inference_exec_count": (_TRITON, "Executions of the model's `execute`."),
    "nv_inference_request_duration_us": (_TRITON, "Time of requests until they were handed over."),
    "nv_inference_queue_duration_us": (_TRITON, "Time that they waited for that."),
    "nv_inference_compute_input_duration_us": (_TRITON, "Time to prepare their inputs."),
    "nv_inference_compute_infer_duration_us": (_TRITON, "Time to hand them to the engine."),
    "nv_inference_compute_output_duration_us": (_TRITON, "Time to prepare outputs."),
    "nv_inference_pending_request_count": (_TRITON, "Requests that wait to be handed over."),
    "nv_pinned_memory_pool_total_bytes": (_TRITON, "Pinned memory."),
    "nv_pinned_memory_pool_used_bytes": (_TRITON, "Pinned memory that is in use."),
    "nv_cpu_utilization": (_TRITON, "Share of the machine's CPU time that is used, 0 to 1."),
    "nv_cpu_memory_total_bytes": (_TRITON, "Memory of the machine."),
    "nv_cpu_memory_used_bytes": (_TRITON, "Memory of the machine that is used."),
    "nv_gpu_utilization": (_GPU, "Share of time in which the GPU works, 0 to 1."),
    "nv_gpu_memory_total_bytes": (_GPU, "Memory of the GPU."),
    "nv_gpu_memory_used_bytes": (_GPU, "Memory of the GPU that is used."),
    "nv_gpu_power_usage": (_GPU, "Power that the GPU takes, in watts."),
    "nv_gpu_power_limit": (_GPU, "Power that it may take, in watts."),
    "nv_energy_consumption": (_GPU, "Energy that the GPU took since Triton started, in joules."),
}
"""Metrics that libraries and Triton export by themselves, by name."""


# --- recording


def publish(service: str, registry: CollectorRegistry = REGISTRY) -> None:
    """Exports the metrics of a service; once for each process.

    A service that is none of ours has what all have that serve calls.
    """
    _catalogue.publish(service, registry)
    BUILD.labels(service, minmo_version(), platform.python_version()).set(1)


def set_readiness(lacks: Collection[NotReady]) -> None:
    """Publishes whether the process takes new work: what it lacks, if anything."""
    READY.set(not lacks)
    for reason in get_args(NotReady):
        NOT_READY.labels(reason).set(reason in lacks)


@contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observes how long something took that succeeded."""
    began = time.monotonic()
    yield
    histogram.observe(time.monotonic() - began)


def count_hop_error(to: Peer, code: grpc.StatusCode) -> None:
    """Records a call to another process that failed."""
    HOP_ERRORS.labels(to, code.name).inc()


def observe_stage(stage: Stage, seconds: float) -> None:
    """Records the time of one stage of a turn."""
    TURN_STAGE.labels(stage).observe(seconds)


def count_turn(outcome: TurnOutcome) -> None:
    """Records the end of a turn."""
    TURNS.labels(outcome).inc()


def count_decision(decision: Decision) -> None:
    """Records who was given the floor."""
    TURN_DECISIONS.labels(decision).inc()


def count_regret(regret: Regret) -> None:
    """Records a decision that turned out to be wrong."""
    TURN_REGRETS.labels(regret).inc()


def count_probe(outcome: ProbeFate, count: int = 1) -> None:
    """Counts what became of probes."""
    PROBES.labels(outcome).inc(count)


def count_drafted(outcome: DraftFate, tokens: int) -> None:
    """Counts what became of tokens that were made ahead."""
    DRAFTED_TOKENS.labels(outcome).inc(tokens)


def count_spans(outcome: SpanFate, count: int) -> None:
    """Records what became of spans."""
    SPANS.labels(outcome).inc(count)


def count_lost_input(reason: InputLoss, seconds: float) -> None:
    """Records audio of a user that was not heard."""
    AUDIO_IN_LOST.labels(reason).inc(frames(seconds))


def frames(seconds: float) -> float:
    """Frames of 20 ms in so much audio."""
    return seconds / FRAME_SECONDS


def minmo_version() -> str:
    """Version of the installed package; ``0`` in a tree that was never installed."""
    try:
        return version("minmo")
    except PackageNotFoundError:
        return "0"
