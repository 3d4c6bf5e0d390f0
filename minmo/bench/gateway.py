"""What the gateway costs: time before the first audio, idle connections, and how many may talk.

The gateway that is measured is started here, on this machine: in front of the server for what it
adds and for idle connections, and in front of `minmo.bench.replay.orchestrator` for how many it
sustains.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from aiohttp import ClientSession, ClientTimeout

from minmo.bench.arrivals import FRAME_SECONDS, LATE_MS, RATE_HZ
from minmo.bench.lines import GatewayLine, GrpcLine, Line, LineError, Question
from minmo.bench.processes import end, running_service
from minmo.bench.realtime import RealtimeClient, append_events, connect
from minmo.bench.replay import orchestrator as replay
from minmo.bench.user import Habits, SimulatedUser
from minmo.client import Recording, Target
from minmo.client.errors import ClientError

ANSWER_TOKENS = 24
_IDLE_SECONDS = 10.0
_SETTLE_SECONDS = 1.0
_CYCLES = 2

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Added:
    """What the gateway adds to the first-audio latency; medians, in milliseconds.

    Attributes:
        questions: questions that were answered both ways.
        grpc_ms: first-audio latency over gRPC.
        gateway_ms: the same over the WebSocket.
        difference_ms: of a question's two latencies; the models' own jitter is in it.
        grpc_way_ms: time that the server does not see of the latency over gRPC: there and back.
        gateway_way_ms: the same over the WebSocket.
        added_ms: difference of the two ways, question by question: what the gateway adds.
        failures: questions that were not answered, and why.
    """

    questions: int
    grpc_ms: float
    gateway_ms: float
    difference_ms: float
    grpc_way_ms: float
    gateway_way_ms: float
    added_ms: float
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Talking:
    """Connections on which everybody asks the models a question.

    Attributes:
        sessions: at the same time.
        unanswered: of them.
        first_audio_ms: median latency of the others; not a number if there were none.
        lost_out: samples of answers that did not arrive at the client.
        stutter_ms: longest silence within an answer.
    """

    sessions: int
    unanswered: int
    first_audio_ms: float
    lost_out: int
    stutter_ms: float

    @property
    def sustained(self) -> bool:
        """Whether all were answered and no frame was lost or late."""
        return self.unanswered + self.lost_out == 0 and self.stutter_ms <= LATE_MS


@dataclass(frozen=True)
class Idle:
    """Connections on which nobody speaks.

    Attributes:
        connections: that stayed open.
        memory_bytes: of the gateway for each of them.
        cpu_share: of one core that the gateway takes for all.
        beside: those who talk meanwhile, by number of sessions.
    """

    connections: int
    memory_bytes: float
    cpu_share: float
    beside: tuple[Talking, ...]


@dataclass(frozen=True)
class Active:
    """Connections on which everybody talks, the orchestrator's part replayed from a recording.

    Attributes:
        sessions: at the same time.
        lost_in: samples of microphones that did not arrive at the orchestrator, and gaps.
        lost_out: samples of answers that did not arrive at the client.
        late_in_ms: how late a microphone's frame arrived at the orchestrator, at worst.
        stutter_ms: longest silence within an answer at a client.
        cpu_share: of one core that the gateway took.
        own_late_ms: how late the measuring process itself was to send a frame, at worst.
    """

    sessions: int
    lost_in: int
    lost_out: int
    late_in_ms: float
    stutter_ms: float
    cpu_share: float
    own_late_ms: float

    @property
    def sustained(self) -> bool:
        """Whether no frame was lost or late."""
        lost = self.lost_in + self.lost_out
        return lost == 0 and max(self.late_in_ms, self.stutter_ms) <= LATE_MS


@dataclass(frozen=True)
class GatewayResult:
    """All of it.

    Attributes:
        added: time before the first audio.
        idle: idle connections, and who talks beside them.
        active: with a replayed orchestrator, by number of sessions.
        recording_seconds: length of a replayed question and answer.
        cores: that all processes of the measurement shared.
    """

    added: Added
    idle: Idle
    active: tuple[Active, ...]
    recording_seconds: float
    cores: int

    @property
    def sustained(self) -> int:
        """Most sessions without a lost or late frame; 0 if there were always some."""
        return max((step.sessions for step in self.active if step.sustained), default=0)

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        active = [{"sustained": step.sustained, **asdict(step)} for step in self.active]
        beside = [{"sustained": step.sustained, **asdict(step)} for step in self.idle.beside]
        return {
            **asdict(self),
            "idle": {**asdict(self.idle), "beside": beside},
            "active": active,
            "active_orchestrator": "replayed from a recording",
            "sustained_sessions": self.sustained,
        }


async def measure(
    target: Target,
    recordings: Sequence[Recording],
    *,
    idle: int = 50,
    talking: Sequence[int] = (1, 2, 4, 8),
    sessions: Sequence[int] = (10, 20, 40, 80),
    progress: Progress = lambda _: None,
) -> GatewayResult:
    """Measures a gateway in front of a server.

    Args:
        target: the server, without mutual TLS.
        recordings: questions, each asked once each way.
        idle: idle connections.
        talking: numbers of sessions to try beside them, until they are too many for the models.
        sessions: numbers of replayed sessions to try, until they are too many for the gateway.
        progress: hears what is being done.

    Raises:
        ClientError: no question was answered, or a process did not start.
        StatusError: the server refused or is gone.
    """
    async with AsyncExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="minmo-bench-")))
        web = await resources.enter_async_context(ClientSession(timeout=ClientTimeout(30)))
        trust = () if target.tls_ca is None else ("--upstream-ca", str(target.tls_ca))
        async with gateway(target.address, folder, *trust) as (address, process):
            added = await _added(target, address, web, recordings, progress)
            progress(f"{idle} idle connections")
            question = Question.of(recordings[0])
            idling = await _idle(address, process, web, target.token, question, idle, talking)
        progress("recording an answer")
        recording = await replay.record(target, recordings[0], ANSWER_TOKENS)
        path = folder / "recording"
        replay.write(path, recording)
        active: list[Active] = []
        for count in sessions:
            progress(f"{count} sessions with a replayed orchestrator")
            active.append(await _active(folder, path, recording, web, recordings[0], count))
            if not active[-1].sustained:
                break
    return GatewayResult(
        added, idling, tuple(active), replay.cycle_seconds(recording), len(os.sched_getaffinity(0))
    )


@asynccontextmanager
async def gateway(
    orchestrator: str, folder: Path, *arguments: str
) -> AsyncIterator[tuple[str, psutil.Process]]:
    """A gateway of its own: its address and its process.

    Args:
        orchestrator: ``host:port``.
        folder: for its ready file and log.
        arguments: more settings.

    Raises:
        ClientError: it did not start.
    """
    async with running_service(
        "gateway",
        folder,
        *("--orchestrator-address", orchestrator),
        *("--max-sessions-per-key", "100000", "--audio-seconds-per-hour", "100000000"),
        *arguments,
    ) as running:
        yield running


# --- what it adds


@dataclass(frozen=True)
class _Asked:
    """One question.

    Attributes:
        first_audio_ms: latency at the client.
        way_ms: the part of it that the server does not see.
        stutter_ms: longest silence within the answer.
        lost: samples of the answer that did not arrive.
    """

    first_audio_ms: float
    way_ms: float
    stutter_ms: float = 0.0
    lost: int = 0


_NONE = _Asked(math.nan, math.nan, math.nan)


async def _added(
    target: Target,
    address: str,
    web: ClientSession,
    recordings: Sequence[Recording],
    progress: Progress,
) -> Added:
    pairs: list[tuple[_Asked, _Asked]] = []
    questions = [Question.of(recording) for recording in recordings]
    failures: list[str] = []
    # The first of each does not count, and they take turns to be first.
    for number, question in enumerate([questions[0], *questions]):
        progress(f"question {number} of {len(recordings)}, both ways")
        try:
            if number % 2:
                direct = await _ask_grpc(target, question)
                through = await _ask_gateway(address, web, target.token, question)
            else:
                through = await _ask_gateway(address, web, target.token, question)
                direct = await _ask_grpc(target, question)
        except ClientError as error:
            failures.append(str(error))
            continue
        if number:
            pairs.append((direct, through))
    if not pairs:
        raise ClientError(f"none of {len(recordings)} questions was answered: {failures[0]}")
    return Added(
        questions=len(pairs),
        grpc_ms=median(direct.first_audio_ms for direct, _ in pairs),
        gateway_ms=median(through.first_audio_ms for _, through in pairs),
        difference_ms=median(
            through.first_audio_ms - direct.first_audio_ms for direct, through in pairs
        ),
        grpc_way_ms=median(direct.way_ms for direct, _ in pairs),
        gateway_way_ms=median(through.way_ms for _, through in pairs),
        added_ms=median(through.way_ms - direct.way_ms for direct, through in pairs),
        failures=tuple(failures),
    )


async def _ask_grpc(target: Target, question: Question) -> _Asked:
    return await _ask(GrpcLine(target, ANSWER_TOKENS, speed=math.inf), question)


async def _ask_gateway(
    address: str, web: ClientSession, token: str | None, question: Question
) -> _Asked:
    line = GatewayLine([address], web, token, ANSWER_TOKENS, at_once=True)
    return await _ask(line, question)


async def _ask(line: Line, question: Question) -> _Asked:
    """Asks a question; the answer counts as heard as soon as it has come."""
    user = SimulatedUser(0, line, [question], Habits(), random.Random(0))
    try:
        turn = await user.ask(question)
    except LineError as error:
        raise ClientError(f"{question.name}: {error}") from None
    # Positions are those of a stream that is over, and are kept with it.
    ended = line.sent_at(turn.turn_ended_ms)
    if turn.first_audio is None or turn.first_audio_ms is None or turn.report is None:
        raise ClientError(f"{question.name} was not answered aloud but {turn.outcome}")
    assert ended is not None, "what was heard was sent"
    way_ms = (turn.first_audio - ended) * 1000 - turn.report.first_audio_ms
    return _Asked(turn.first_audio_ms, way_ms, turn.stutter_ms, turn.lost_samples)


# --- idle connections


async def _idle(
    address: str,
    process: psutil.Process,
    web: ClientSession,
    token: str | None,
    question: Question,
    count: int,
    talking: Sequence[int],
) -> Idle:
    before = process.memory_info().rss
    beside: list[Talking] = []
    async with AsyncExitStack() as connections:
        clients: list[RealtimeClient] = [
            await connections.enter_async_context(connect(address, web, token=token))
            for _ in range(count)
        ]
        await asyncio.sleep(_SETTLE_SECONDS)
        memory = process.memory_info().rss - before
        cpu = await _cpu_share(process, _IDLE_SECONDS)
        for sessions in talking:
            asked = await asyncio.gather(
                *(_ask_gateway(address, web, token, question) for _ in range(sessions)),
                return_exceptions=True,
            )
            answered = [one for one in asked if isinstance(one, _Asked)]
            beside.append(
                Talking(
                    sessions=sessions,
                    unanswered=sessions - len(answered),
                    first_audio_ms=median(one.first_audio_ms for one in answered or [_NONE]),
                    lost_out=sum(one.lost for one in answered),
                    stutter_ms=max(one.stutter_ms for one in answered or [_NONE]),
                )
            )
            if not beside[-1].sustained:
                break
        closed = sum(client.closed for client in clients)
    return Idle(count - closed, memory / max(1, count), cpu, tuple(beside))


async def _cpu_share(process: psutil.Process, seconds: float) -> float:
    before = sum(process.cpu_times()[:2])
    await asyncio.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / seconds


# --- active connections


async def _active(
    folder: Path,
    path: Path,
    recording: list[replay.Replayed],
    web: ClientSession,
    question: Recording,
    count: int,
) -> Active:
    frames = append_events(question)
    seconds = _CYCLES * replay.cycle_seconds(recording)
    expected = sum(len(one.response.audio.data) // 2 for one in recording)
    orchestrator = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "minmo.bench.replay.orchestrator", str(path)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert orchestrator.stdout is not None
    try:
        upstream = json.loads(await orchestrator.stdout.readline())["address"]
        # What was made ahead of its time is to be sent ahead, too: so it was recorded.
        async with gateway(upstream, folder, "--max-lead-seconds", "600") as (address, process):
            async with AsyncExitStack() as connections:
                clients = [
                    await connections.enter_async_context(connect(address, web))
                    for _ in range(count)
                ]
                talking = [
                    asyncio.create_task(_talk(client, frames, seconds, number / count))
                    for number, client in enumerate(clients)
                ]
                cpu = await _cpu_share(process, seconds)
                await asyncio.gather(*talking)
                # Let the last frames arrive.
                await asyncio.sleep(_SETTLE_SECONDS)
            heard = [json.loads(await orchestrator.stdout.readline()) for _ in range(count)]
    finally:
        await end(orchestrator)
    sent = sum(round(client.sent_ms * RATE_HZ / 1000) for client in clients)
    answers = [list(client.arrived.values())[:_CYCLES] for client in clients]
    arrived = sum(answer.samples for all_of_one in answers for answer in all_of_one)
    return Active(
        sessions=count,
        lost_in=sent - sum(one["samples"] for one in heard) + sum(one["gaps"] for one in heard),
        lost_out=_CYCLES * count * expected - arrived,
        late_in_ms=max(one["late_max_ms"] for one in heard),
        stutter_ms=max(answer.stutter_ms() for all_of_one in answers for answer in all_of_one),
        cpu_share=cpu,
        own_late_ms=max(client.late_ms for client in clients),
    )


async def _talk(
    client: RealtimeClient, frames: Sequence[str], seconds: float, phase: float
) -> None:
    """Speaks for some time; not all begin a frame at the same moment."""
    await asyncio.sleep(phase * FRAME_SECONDS)
    speaking = asyncio.create_task(client.speak(frames))
    await asyncio.sleep(seconds)
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)


def lines(result: GatewayResult) -> list[str]:
    """The figures for people."""
    added, idle = result.added, result.idle
    found = [
        f"first audio over gRPC, median of {added.questions}       {added.grpc_ms:7.0f} ms",
        f"first audio through the gateway            {added.gateway_ms:7.0f} ms",
        f"way there and back over gRPC               {added.grpc_way_ms:7.1f} ms",
        f"way there and back through the gateway     {added.gateway_way_ms:7.1f} ms",
        f"added by the gateway, median of the pairs  {added.added_ms:7.1f} ms",
        f"{idle.connections} idle connections: {idle.memory_bytes / 1e3:.0f} kB and "
        f"{100 * idle.cpu_share / max(1, idle.connections):.2f} % of a core each; beside them:",
        *(
            f"  {step.sessions:4d}  {_verdict(step)}: first audio {step.first_audio_ms:.0f} ms, "
            f"{step.unanswered} without an answer, lost {step.lost_out} samples, stutter "
            f"{step.stutter_ms:.0f} ms"
            for step in idle.beside
        ),
        f"active sessions, orchestrator replayed from a recording ({result.cores} cores for all):",
    ]
    found += [_line(step) for step in result.active]
    found += [f"no answer: {failure}" for failure in added.failures]
    return [*found, f"sustained without a lost or late frame: {result.sustained}"]


def _line(step: Active) -> str:
    return (
        f"  {step.sessions:4d}  {_verdict(step)}: lost {step.lost_in} samples in, {step.lost_out} "
        f"out; late in {step.late_in_ms:.0f} ms, stutter {step.stutter_ms:.0f} ms; gateway "
        f"{100 * step.cpu_share:.0f} % of a core; this process late by {step.own_late_ms:.0f} ms"
    )


def _verdict(step: Active | Talking) -> str:
    return "ok" if step.sustained else "no"
