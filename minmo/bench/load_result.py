"""What a load test found, as figures for people and programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minmo.bench.arrivals import LATE_MS
from minmo.bench.figures import Latencies, latencies
from minmo.bench.usage import Usage
from minmo.bench.user import Turn
from minmo.stack.replicas import kind_of

REPLAYED = "model outputs replayed from a recording"
"""How every output says that no model computed."""
COMPUTED = "models"
"""How every output says that the models computed."""


@dataclass(frozen=True)
class Window:
    """A stretch of time with so many sessions; times are of the monotonic clock."""

    sessions: int
    began: float
    ended: float
    usage: Usage | None


@dataclass(frozen=True)
class Level:
    """A level of the load, or all of them together.

    Attributes:
        sessions: that were asked for.
        lost: of them, in this time.
        seconds: how long it went on.
        session_minutes: conversation time of all sessions together.
        turns: questions that ended in this time and whose end is known.
        outcomes: how they went, by `minmo.bench.user.Turn.outcome`.
        first_audio: from the last sample of speech sent to the first sample of the answer.
        server_first_audio: the server's part of it, by its own clock.
        stop: from the first sample said over an answer until that fell silent.
        late_frames: frames of 20 ms that came after they had to be played.
        stutter_ms: the longest silence within an answer.
        lost_samples: samples of answers that never came.
        reconnects: connections that were lost during turns and found again.
        repeats: times that a question had to be asked again.
        outages: services that the server lost during turns and looked for.
        errors: by code and reason, or by what went wrong.
        tokens: text tokens of the answers, as they were reported.
        usage: what the servers used; None where they run elsewhere.
        client_late: whether the measuring process itself was late, so that the figures are not
            only the servers'.
    """

    sessions: int
    lost: int
    seconds: float
    session_minutes: float
    turns: int
    outcomes: Mapping[str, int]
    first_audio: Latencies
    server_first_audio: Latencies
    stop: Latencies
    late_frames: int
    stutter_ms: float
    lost_samples: int
    reconnects: int
    repeats: int
    outages: int
    errors: Mapping[str, int]
    tokens: int
    usage: Usage | None
    client_late: bool

    @classmethod
    def of(
        cls,
        window: Window,
        turns: Sequence[Turn],
        *,
        lost: int,
        session_seconds: float,
        errors: Mapping[str, int],
        client_late: bool,
    ) -> Level:
        """The figures of turns that belong to a stretch of time."""
        outcomes: dict[str, int] = {}
        for turn in turns:
            if turn.outcome is not None:
                outcomes[turn.outcome] = outcomes.get(turn.outcome, 0) + 1
        reports = [turn.report for turn in turns if turn.report is not None]
        return cls(
            sessions=window.sessions,
            lost=lost,
            seconds=window.ended - window.began,
            session_minutes=session_seconds / 60,
            turns=len(turns),
            outcomes=outcomes,
            first_audio=latencies(
                [turn.first_audio_ms for turn in turns if turn.first_audio_ms is not None]
            ),
            server_first_audio=latencies(
                [report.first_audio_ms for report in reports if report.first_audio_ms > 0]
            ),
            stop=latencies([turn.stop_ms for turn in turns if turn.stop_ms is not None]),
            late_frames=sum(turn.late_frames for turn in turns),
            stutter_ms=max((turn.stutter_ms for turn in turns), default=0.0),
            lost_samples=sum(turn.lost_samples for turn in turns),
            reconnects=sum(turn.losses for turn in turns),
            repeats=sum(turn.repeats for turn in turns),
            outages=sum(turn.outages for turn in turns),
            errors=errors,
            tokens=sum(report.token_count for report in reports),
            usage=window.usage,
            client_late=client_late,
        )

    @property
    def held(self) -> int:
        """Sessions that were asked for and not lost."""
        return self.sessions - self.lost

    @property
    def answered(self) -> int:
        """Turns that went as the user wanted: heard to their end, or spoken over."""
        return _went_well(self.outcomes)

    def sustained(self, first_audio_limit_ms: float) -> bool:
        """Whether nobody was lost, all were answered in time, and nobody heard a silence."""
        return (
            self.turns > 0
            and self.lost == 0
            and self.answered == self.turns
            and self.lost_samples == 0
            and self.stutter_ms <= LATE_MS
            and self.first_audio.p95 <= first_audio_limit_ms
        )

    def cpu_seconds_a_minute(self) -> dict[str, float]:
        """Processor time for a minute of one conversation, by service: of all its replicas."""
        found: dict[str, float] = {}
        if self.usage is not None and self.session_minutes > 0:
            for name, seconds in self.usage.cpu_seconds.items():
                kind = kind_of(name)
                found[kind] = found.get(kind, 0.0) + seconds / self.session_minutes
        return found

    def memory_bytes(self) -> dict[str, int]:
        """Proportional share of memory by service: of all its replicas."""
        found: dict[str, int] = {}
        for name, size in self.usage.memory_bytes.items() if self.usage is not None else ():
            found[kind_of(name)] = found.get(kind_of(name), 0) + size
        return found

    def tokens_a_second(self) -> float:
        """Text tokens of all sessions together, as the LLMs say, or else the answers' reports."""
        tokens, seconds = self.tokens, self.seconds
        if self.usage is not None and self.usage.tokens is not None:
            tokens, seconds = self.usage.tokens, self.usage.seconds
        return tokens / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class FaultResult:
    """What users felt around a fault.

    Attributes:
        fault: as it was asked for.
        process: that it happened to.
        back_seconds: until that, or its successor, was ready; None if it was not.
        turns: that were under way until then, and for 5 s at least.
        outcomes: how these went.
        first_audio: their latency.
        late_frames: frames of 20 ms of their answers that came too late.
        stutter_ms: the longest silence within their answers.
        reconnects: connections that were lost during them.
        repeats: times that a question had to be asked again.
        outages: services that the server lost during them and looked for.
        lost: sessions that were lost from then on.
        problem: why the fault could not happen, or the process did not come back.
    """

    fault: str
    process: str
    back_seconds: float | None
    turns: int
    outcomes: Mapping[str, int]
    first_audio: Latencies
    late_frames: int
    stutter_ms: float
    reconnects: int
    repeats: int
    outages: int
    lost: int
    problem: str = ""

    @property
    def answered(self) -> int:
        """Turns that went as the user wanted."""
        return _went_well(self.outcomes)

    @classmethod
    def of(
        cls,
        fault: str,
        process: str,
        back_seconds: float | None,
        turns: Sequence[Turn],
        *,
        lost: int,
        problem: str,
    ) -> FaultResult:
        """The figures of the turns that were under way."""
        level = Level.of(
            Window(0, 0.0, 0.0, None),
            turns,
            lost=lost,
            session_seconds=0.0,
            errors={},
            client_late=False,
        )
        return cls(
            fault=fault,
            process=process,
            back_seconds=back_seconds,
            turns=level.turns,
            outcomes=level.outcomes,
            first_audio=level.first_audio,
            late_frames=level.late_frames,
            stutter_ms=level.stutter_ms,
            reconnects=level.reconnects,
            repeats=level.repeats,
            outages=level.outages,
            lost=lost,
            problem=problem,
        )


@dataclass(frozen=True)
class LoadResult:
    """All of it.

    Attributes:
        through: ``grpc`` or ``gateway``.
        replayed: whether the models' outputs were replayed from a recording.
        finished: False if it was stopped before its end.
        first_audio_limit_ms: 95th percentile up to which a level counts as sustained.
        levels: one after the other.
        total: all of them.
        faults: in the order in which they happened.
        history_problems: what is wrong with what is stored, by session; None if it was not checked.
        redis_bytes_by_session: memory that Redis needs for each session.
        own_lag_p99_ms: how late the measuring process was, 99th percentile.
        own_lag_worst_ms: at worst.
        own_frame_late_ms: how late it was to send a frame, at worst.
    """

    through: str
    replayed: bool
    finished: bool
    first_audio_limit_ms: float
    levels: tuple[Level, ...]
    total: Level
    faults: tuple[FaultResult, ...]
    history_problems: Mapping[str, Sequence[str]] | None
    redis_bytes_by_session: Mapping[str, int]
    own_lag_p99_ms: float
    own_lag_worst_ms: float
    own_frame_late_ms: float

    @property
    def outputs(self) -> str:
        """Where the models' outputs came from."""
        return REPLAYED if self.replayed else COMPUTED

    @property
    def sustained_sessions(self) -> int:
        """Sessions of the highest level that was sustained by a client that was in time; or 0."""
        return max((level.sessions for level in self.levels if self.is_sustained(level)), default=0)

    def is_sustained(self, level: Level) -> bool:
        """Whether a level was held well, and the client was in time to say so."""
        return level.sustained(self.first_audio_limit_ms) and not level.client_late

    @property
    def costed(self) -> Level | None:
        """The level whose cost stands for a session's: the highest that was sustained, or the
        first; None if nothing was measured."""
        best = [level for level in self.levels if level.usage and self.is_sustained(level)]
        any_level = [level for level in self.levels if level.usage]
        return max(best, key=lambda level: level.sessions) if best else next(iter(any_level), None)

    @property
    def whole_sessions(self) -> int | None:
        """Sessions that were neither lost nor stored otherwise than they went."""
        if self.history_problems is None:
            return None
        return self.total.sessions - self.total.lost - len(self.history_problems)

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        levels = [
            {
                "sustained": self.is_sustained(level),
                "held": level.held,
                **asdict(level),
                "tokens_a_second": level.tokens_a_second(),
                "cpu_seconds_a_minute": level.cpu_seconds_a_minute(),
            }
            for level in (*self.levels, self.total)
        ]
        found = {
            "outputs": self.outputs,
            **asdict(self),
            "sustained_sessions": self.sustained_sessions,
            "whole_sessions": self.whole_sessions,
            "levels": levels[:-1],
            "total": levels[-1],
        }
        cleaned: dict[str, Any] = _without_nan(found)
        return cleaned


def _went_well(outcomes: Mapping[str, int]) -> int:
    return outcomes.get("answered", 0) + outcomes.get("interrupted", 0)


def _without_nan(value: Any) -> Any:
    """JSON has no word for a figure that is not there but null."""
    match value:
        case dict():
            return {key: _without_nan(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_without_nan(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
