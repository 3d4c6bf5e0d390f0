"""Many people talk at the same time: how many are held, what they feel, and what it costs.

Simulated users (`minmo.bench.user`) come level by level and stay. Each is a session in real time.
Their turns count where their questions ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from redis.exceptions import RedisError

from minmo.bench import history
from minmo.bench.faults import Fault
from minmo.bench.lag import LagProbe
from minmo.bench.lines import GatewayLine, GrpcLine, Line, Question
from minmo.bench.load_result import FaultResult, Level, LoadResult, Window
from minmo.bench.usage import Meter, Processes, Usage, redis_bytes
from minmo.bench.user import Habits, SimulatedUser, Turn
from minmo.client import Target, sessions
from minmo.client.errors import ClientError
from minmo.rpc.errors import StatusError
from minmo.stack import Stack, StackError

Through = Literal["grpc", "gateway"]
Progress = Callable[[str], None]

LEAVE_SECONDS = 45.0
"""Longest time that users have to end their last turn."""
READY_SECONDS = 90.0
"""Longest time until a process is ready again after a fault."""
_ARRIVAL_SECONDS = 0.2
_ARRIVAL_SHARE = 0.2
_CHECKS_AT_ONCE = 16
# What differs between errors of one kind.
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NOT_ANSWERED = {
    "cut": "answer cut: its rest went with a connection",
    "unanswered": "question without an answer",
    "unheard": "question without words: nothing was recognised",
}
_SETTLE_SECONDS = 0.3
_LEAST_FAULT_SECONDS = 5.0
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class Stage:
    """So many sessions for so long."""

    sessions: int
    seconds: float


@dataclass(frozen=True)
class LoadPlan:
    """What is to be measured.

    Attributes:
        stages: one after the other; users who came stay until there are to be fewer.
        through: how users talk.
        habits: of the users.
        answer_tokens: most text tokens of an answer.
        seed: of all that is drawn.
        faults: what is done to the stack meanwhile.
        first_audio_limit_ms: 95th percentile of the first-audio latency up to which a level counts
            as sustained.
    """

    stages: tuple[Stage, ...]
    through: Through = "grpc"
    habits: Habits = field(default_factory=Habits)
    answer_tokens: int = 24
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    first_audio_limit_ms: float = 1500.0


@dataclass(frozen=True)
class Servers:
    """What is loaded.

    Attributes:
        target: the orchestrators, for gRPC and for what is stored.
        gateways: ``host:port`` of each, for users who talk through them.
        pids: processes whose use is measured, by name; None where they run elsewhere.
        metrics_urls: of the LLMs, for their tokens.
        redis_url: for what sessions take there.
        stack: where faults are to happen.
        replayed: whether the models' outputs are replayed from a recording.
    """

    target: Target
    gateways: tuple[str, ...] = ()
    pids: Callable[[], Mapping[str, int]] | None = None
    metrics_urls: tuple[str, ...] = ()
    redis_url: str | None = None
    stack: Stack | None = None
    replayed: bool = False


def ramp(sessions: int, every_seconds: float) -> tuple[Stage, ...]:
    """One session more every so many seconds."""
    return tuple(Stage(count, every_seconds) for count in range(1, sessions + 1))


@dataclass
class _Guest:
    """A user, from coming to going; times are of the monotonic clock."""

    user: SimulatedUser
    task: asyncio.Task[None]
    came: float
    went: float | None = None


@dataclass
class _Measured:
    """A stage as it went."""

    stage: Stage
    began: float
    lag_place: int
    ended: float | None = None
    usage: Usage | None = None


@dataclass
class _Happened:
    """A fault as it went."""

    fault: Fault
    at: float
    process: str = ""
    back: float | None = None
    problem: str = ""


class Load:
    """Loads servers; `run` it once, and ask for the `result` at any time.

    Args:
        plan: what to measure.
        servers: what to load.
        questions: that users may ask.
        progress: hears how it goes.
    """

    def __init__(
        self,
        plan: LoadPlan,
        servers: Servers,
        questions: Sequence[Question],
        progress: Progress = lambda _: None,
    ) -> None:
        self._plan = plan
        self._servers = servers
        self._questions = questions
        self._progress = progress
        self._guests: list[_Guest] = []
        self._turns: list[Turn] = []
        self._measured: list[_Measured] = []
        self._happened: list[_Happened] = []
        self._lag = LagProbe()
        self._problems: dict[str, list[str]] | None = None
        self._redis_bytes: dict[str, int] = {}
        self._finished = False
        self._stopped = False

    async def run(self) -> None:
        """Runs all levels, lets the users end their turns, and checks what is stored of them.

        Raises:
            StackError: a fault is for a process that is not there.
            ClientError: users are to talk through a gateway, and none is known.
        """
        self._check_faults()
        if self._plan.through == "gateway" and not self._servers.gateways:
            raise ClientError("no gateway is known there: give its --gateway-address")
        processes = None if self._servers.pids is None else Processes(self._servers.pids)
        meter = Meter(processes, self._servers.metrics_urls, self._servers.redis_url)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as web:
            beside = [self._lag.run(), self._tell()]
            if processes is not None:
                beside.append(processes.run())
            async with _beside(beside):
                faults = [asyncio.create_task(self._happen(fault)) for fault in self._plan.faults]
                try:
                    await meter.begin()
                    for stage in self._plan.stages:
                        await self._hold(stage, meter, web)
                    await self._let_leave(self._present(), LEAVE_SECONDS)
                    await asyncio.gather(*faults)
                finally:
                    await self._end_all(faults)
        await asyncio.sleep(_SETTLE_SECONDS)
        await self._check()
        self._finished = True

    @property
    def began(self) -> bool:
        """Whether there is anything to show."""
        return bool(self._measured)

    def result(self) -> LoadResult:
        """What was measured so far."""
        lag = self._lag.since()
        return LoadResult(
            through=self._plan.through,
            replayed=self._servers.replayed,
            finished=self._finished,
            first_audio_limit_ms=self._plan.first_audio_limit_ms,
            levels=tuple(map(self._level, self._measured)),
            total=self._total(),
            faults=tuple(map(self._fault_result, self._happened)),
            history_problems=self._problems,
            redis_bytes_by_session=self._redis_bytes,
            own_lag_p99_ms=lag.p99_ms,
            own_lag_worst_ms=lag.worst_ms,
            own_frame_late_ms=max(
                (guest.user.microphone.late_ms for guest in self._guests), default=0.0
            ),
        )

    # --- users

    async def _hold(self, stage: Stage, meter: Meter, web: aiohttp.ClientSession) -> None:
        """So many users, for so long."""
        measured = _Measured(stage, time.monotonic(), self._lag.count)
        self._measured.append(measured)
        present = self._present()
        for guest in present[stage.sessions :]:
            guest.user.leave()
        try:
            # People do not come at the same instant; who does from one process gets one replica.
            missing = max(0, stage.sessions - len(present))
            gap = min(_ARRIVAL_SECONDS, _ARRIVAL_SHARE * stage.seconds / max(1, missing))
            for _ in range(missing):
                self._invite(web)
                await asyncio.sleep(gap)
            await asyncio.sleep(stage.seconds - missing * gap)
        finally:
            measured.ended = time.monotonic()
        measured.usage = await meter.next()

    def _invite(self, web: aiohttp.ClientSession) -> None:
        number = len(self._guests)
        drawn = random.Random(f"{self._plan.seed} {number}")
        line, habits = self._line(number, web), self._plan.habits
        user = SimulatedUser(number, line, self._questions, habits, drawn, self._on_turn)
        guest = _Guest(user, asyncio.create_task(user.run()), time.monotonic())
        guest.task.add_done_callback(lambda _: setattr(guest, "went", time.monotonic()))
        self._guests.append(guest)

    def _line(self, number: int, web: aiohttp.ClientSession) -> Line:
        plan, servers = self._plan, self._servers
        if plan.through == "grpc":
            return GrpcLine(servers.target, plan.answer_tokens)
        # A balancer in front of gateways would let them take turns.
        first = number % len(servers.gateways)
        addresses = servers.gateways[first:] + servers.gateways[:first]
        return GatewayLine(addresses, web, servers.target.token, plan.answer_tokens)

    def _present(self) -> list[_Guest]:
        return [guest for guest in self._guests if guest.went is None]

    async def _let_leave(self, guests: Sequence[_Guest], seconds: float) -> None:
        for guest in guests:
            guest.user.leave()
        if guests:
            await asyncio.wait([guest.task for guest in guests], timeout=seconds)

    async def _end_all(self, faults: Sequence[asyncio.Task[None]]) -> None:
        # Turns that end now end because nobody waits for them any more.
        self._stopped = True
        tasks = [*faults, *(guest.task for guest in self._guests)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_turn(self, turn: Turn) -> None:
        if not self._stopped:
            self._turns.append(turn)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            if self._measured:
                level = self._level(self._measured[-1])
                what = "outputs replayed" if self._servers.replayed else "models"
                first = f", first audio {level.first_audio.p50:.0f} ms" if level.turns else ""
                self._progress(
                    f"{level.sessions} sessions ({what}): {level.turns} turns{first}, "
                    f"{level.lost} lost"
                )

    # --- faults

    def _check_faults(self) -> None:
        stack = self._servers.stack
        names = [] if stack is None else stack.names
        for fault in self._plan.faults:
            if fault.kind != "add" and fault.process not in names:
                raise StackError(
                    f"{fault}: there is no process {fault.process!r}; there are: {', '.join(names)}"
                )

    async def _happen(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_seconds)
        stack = self._servers.stack
        assert stack is not None, "faults happen to a stack of one's own"
        happened = _Happened(fault, time.monotonic(), fault.process)
        self._happened.append(happened)
        self._progress(f"{fault}")
        try:
            happened.process = await fault.happen(stack, READY_SECONDS)
            happened.back = time.monotonic()
        except StackError as error:
            happened.problem = str(error)

    # --- what is stored

    async def _check(self) -> None:
        limit = asyncio.Semaphore(_CHECKS_AT_ONCE)
        found: dict[str, list[str]] = {}

        async def check(user: SimulatedUser) -> None:
            session_id = user.line.session_id
            async with limit:
                try:
                    session = await sessions.get_session(self._servers.target, session_id)
                    found[session_id] = history.problems(user.told, session)
                except StatusError as error:
                    found[session_id] = [f"it cannot be read: {error}"]

        known = [guest.user for guest in self._guests if guest.user.line.session_id]
        await asyncio.gather(*map(check, known))
        self._problems = {session: wrong for session, wrong in found.items() if wrong}
        if self._servers.redis_url is not None:
            with contextlib.suppress(RedisError, OSError):
                ids = [user.line.session_id for user in known]
                self._redis_bytes = await redis_bytes(self._servers.redis_url, ids)

    # --- figures

    def _level(self, measured: _Measured) -> Level:
        began = measured.began
        ended = time.monotonic() if measured.ended is None else measured.ended
        return self._window(
            Window(measured.stage.sessions, began, ended, measured.usage),
            self._lag.since(measured.lag_place).is_late,
        )

    def _total(self) -> Level:
        if not self._measured:
            now = time.monotonic()
            return self._window(Window(0, now, now, None), False)
        usage: Usage | None = None
        for measured in self._measured:
            if measured.usage is not None:
                usage = measured.usage if usage is None else usage.plus(measured.usage)
        window = Window(len(self._guests), self._measured[0].began, time.monotonic(), usage)
        return self._window(window, self._lag.since().is_late)

    def _window(self, window: Window, client_late: bool) -> Level:
        turns = [
            turn
            for turn in self._turns
            if turn.spoken is not None and window.began <= turn.spoken < window.ended
        ]
        there = [
            guest
            for guest in self._guests
            if guest.came < window.ended and (guest.went is None or guest.went >= window.began)
        ]
        lost = [
            guest
            for guest in there
            if guest.user.lost is not None and guest.went is not None and guest.went < window.ended
        ]
        errors = Counter(guest.user.lost.reason for guest in lost if guest.user.lost is not None)
        for turn in turns:
            if turn.outcome == "failed":
                detail = turn.report.detail if turn.report is not None else ""
                kind = _NUMBER.sub("N", detail) or "nothing was said"
                errors[f"answer failed: {kind}"[:100]] += 1
            elif turn.outcome in _NOT_ANSWERED:
                errors[_NOT_ANSWERED[turn.outcome]] += 1
        return Level.of(
            window,
            turns,
            lost=len(lost),
            session_seconds=sum(
                min(guest.went or window.ended, window.ended) - max(guest.came, window.began)
                for guest in there
            ),
            errors=dict(errors),
            client_late=client_late,
        )

    def _fault_result(self, happened: _Happened) -> FaultResult:
        back = time.monotonic() if happened.back is None else happened.back
        until = max(back, happened.at + _LEAST_FAULT_SECONDS)
        in_flight = [
            turn for turn in self._turns if turn.began < until and turn.ended > happened.at
        ]
        lost = [
            guest
            for guest in self._guests
            if guest.user.lost is not None
            and guest.went is not None
            and happened.at <= guest.went < until + LEAVE_SECONDS
        ]
        return FaultResult.of(
            str(happened.fault),
            happened.process,
            None if happened.back is None else happened.back - happened.at,
            in_flight,
            lost=len(lost),
            problem=happened.problem,
        )


@asynccontextmanager
async def _beside(works: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Does works beside the body, and ends them with it."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
