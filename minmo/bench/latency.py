"""How long after the user's last word the answer is heard, over many spoken questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from minmo import pictures
from minmo.bench.components import (
    BETWEEN,
    FIVE_TOKENS,
    PAPER_MS,
    PARTS,
    PRACTICE,
    PREDICTOR,
    SPEECH_TOKENS,
    SUM,
    TOKEN2WAV,
    Components,
    at_rank,
    components,
    percentile,
    rows,
)
from minmo.client import Conversation, Recording, TalkTurn, Target, ask
from minmo.client.errors import ClientError, RecordingError
from minmo.v1 import conversation_pb2

_ENDINGS = (".ogg", ".opus", ".wav", ".flac")


@dataclass(frozen=True)
class LatencyResult:
    """What was measured; times in milliseconds.

    Attributes:
        first_audio_ms: of each question, at the client, from the end of its speech.
        first_token_ms: of each question, from the decision that the user's turn has ended to the
            first text token: what listening itself costs (`after_decision_ms`).
        hops_ms: median of each hop of the waterfall.
        tokens_per_second: median over the answers.
        memory_bytes: proportional share of memory (PSS) of all processes of the stack, after the
            last question; None if it runs elsewhere.
        memory_by_process: the same of each process, by its name.
        failures: questions without an answer, and why.
        components: what the latency of each question was made of.
    """

    first_audio_ms: tuple[float, ...]
    first_token_ms: tuple[float, ...]
    hops_ms: dict[str, float]
    tokens_per_second: float | None
    memory_bytes: int | None
    memory_by_process: dict[str, int]
    failures: tuple[str, ...]
    components: tuple[Components, ...] = ()

    @property
    def median_ms(self) -> float:
        """Median of the first-audio latency."""
        return median(self.first_audio_ms)

    @property
    def first_token_median_ms(self) -> float | None:
        """Median of the time from the end of the turn to the first text token."""
        return median(self.first_token_ms) if self.first_token_ms else None

    @property
    def p95_ms(self) -> float:
        """95th percentile of the first-audio latency, by nearest rank."""
        return percentile(self.first_audio_ms, 0.95)

    def to_json(self) -> dict[str, Any]:
        """Everything, with medians, 95th percentile, and the paper's table 21."""
        return {
            "median_ms": self.median_ms,
            "p95_ms": self.p95_ms,
            "first_token_median_ms": self.first_token_median_ms,
            "table_21": [asdict(row) for row in rows(self.components)],
            **asdict(self),
        }


def after_decision_ms(turn: TalkTurn) -> float | None:
    """From listening to the first text token, in milliseconds.

    From the moment when it was decided that the user's turn has ended (the silence before is the
    decision's, not the model's) until the LLM's first token was there: the rest of listening, the
    rest of what the LLM reads, and one token. None where there was none.
    """
    ends = {span.hop: span.start_ms + span.duration_ms for span in turn.waterfall}
    if "endpointing" not in ends or "first_token" not in ends:
        return None
    return ends["first_token"] - ends["endpointing"]


def read_questions(folder: Path, count: int) -> list[Recording]:
    """The first recordings of a folder by name; from the start again if there are too few.

    Raises:
        RecordingError: there are none, or one cannot be read.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    if not paths:
        raise RecordingError(f"{folder} holds no recordings ({', '.join(_ENDINGS)})")
    return [Recording.read(paths[number % len(paths)]) for number in range(count)]


async def measure(
    target: Target,
    recordings: Sequence[Recording],
    *,
    silence_ms: int = 0,
    supervisor_pid: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> LatencyResult:
    """Asks each question in a session of its own, in real time, after one that does not count.

    Answers are not played in real time: the next question comes when the answer was made.

    Args:
        target: the server.
        recordings: the questions.
        silence_ms: silence that ends a question; 0 for the server's own.
        supervisor_pid: process whose descendants are the stack, to measure their memory.
        progress: hears how many questions were asked.

    Raises:
        ClientError: no question was answered.
        StatusError: the server refused or is gone.
    """
    turns: list[TalkTurn] = []
    failures: list[str] = []
    settings = conversation_pb2.SessionSettings(end_of_turn_silence_ms=silence_ms)
    await _ask(target, recordings[0], settings)
    for number, recording in enumerate(recordings, start=1):
        try:
            turns += await _ask(target, recording, settings)
        except ClientError as error:
            failures.append(f"{recording.path.name}: {error}")
        progress(number)
    latencies = tuple(turn.first_audio_ms for turn in turns if turn.first_audio_ms is not None)
    if not latencies:
        raise ClientError(f"none of {len(recordings)} questions was answered: {failures[0]}")
    memory = {} if supervisor_pid is None else memory_by_process(supervisor_pid)
    speeds = [turn.tokens_per_second for turn in turns if turn.tokens_per_second is not None]
    return LatencyResult(
        first_audio_ms=latencies,
        first_token_ms=tuple(
            taken for turn in turns if (taken := after_decision_ms(turn)) is not None
        ),
        hops_ms=_hops(turns),
        tokens_per_second=median(speeds) if speeds else None,
        memory_bytes=sum(memory.values()) if memory else None,
        memory_by_process=memory,
        failures=tuple(failures),
        components=tuple(parts for turn in turns if (parts := components(turn)) is not None),
    )


def draw(result: LatencyResult, path: Path) -> None:
    """Draws what lies between the last word and first audio, as SVG or PNG by the file's name.

    The paper's figures, then two of the questions: that of the median and that of the 95th
    percentile. `minmo.pictures.check` says beforehand whether that is possible.

    Raises:
        ClientError: no turn said what its latency was made of.
        OSError: the file cannot be written.
    """
    if not result.components:
        raise ClientError(f"no turn has a waterfall: {path} is not drawn")
    paper = dict.fromkeys(PARTS, 0.0)
    paper |= {part: PAPER_MS[part] for part in (PREDICTOR, FIVE_TOKENS, SPEECH_TOKENS, TOKEN2WAV)}
    bars = [("paper, L20", {**paper, BETWEEN: PAPER_MS[PRACTICE] - PAPER_MS[SUM]})]
    for name, share in (("median", 0.5), ("95th percentile", 0.95)):
        question = at_rank(result.components, share)
        bars.append((name, {**question.parts, BETWEEN: question.between_ms}))
    pictures.stacked_bars(
        path, bars, title=f"to first audio, {len(result.components)} questions", unit="ms"
    )


def memory_by_process(supervisor_pid: int) -> dict[str, int]:
    """Proportional share of memory (PSS, in bytes) of a process and its descendants, by name.

    Nothing if the process has ended.
    """
    shares: dict[str, int] = {}
    try:
        supervisor = psutil.Process(supervisor_pid)
        processes = [supervisor, *supervisor.children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    for process in processes:
        try:
            name = "supervisor" if process == supervisor else _name(process.cmdline())
            shares[name] = shares.get(name, 0) + process.memory_full_info().pss
        except psutil.Error:
            continue  # it has just ended, or is not ours to look into
    return shares


def _name(command: list[str]) -> str:
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1].rpartition(".")[2]
    # Valkey writes its address behind its name.
    return Path(command[0].split(" ")[0]).name if command else "unknown"


async def _ask(
    target: Target, recording: Recording, settings: conversation_pb2.SessionSettings
) -> list[TalkTurn]:
    async with Conversation(
        target, input_rate_hz=recording.rate_hz, settings=settings, speed=math.inf
    ) as conversation:
        return await ask(conversation, recording)


def _hops(turns: Sequence[TalkTurn]) -> dict[str, float]:
    times: dict[str, list[float]] = {}
    for turn in turns:
        for span in turn.waterfall:
            times.setdefault(span.hop, []).append(span.duration_ms)
        if turn.network_ms is not None:
            times.setdefault("network", []).append(turn.network_ms)
    return {hop: median(values) for hop, values in times.items()}
