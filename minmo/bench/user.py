"""A simulated user: asks recordings in real time, listens, thinks, and now and then interrupts."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from minmo.bench.arrivals import FRAME_SECONDS, RATE_HZ, Arrived, Gap
from minmo.bench.history import Answer, Told
from minmo.bench.lines import QUIET, Frame, Line, LineError, LineEvent, Question, Sound
from minmo.client.events import (
    Disconnected,
    Happening,
    Reconnected,
    StopPlayback,
    TurnDeleted,
    TurnEvent,
    TurnReport,
    UserText,
)

Outcome = Literal["answered", "interrupted", "cut", "failed", "unheard", "unanswered"]
_Verdict = Literal["done", "over", "again"]

NEWS_SECONDS = 30.0
"""Longest time without any news after which a question counts as unanswered."""
_AGAIN_SECONDS = 6.0
"""Time without news after a lost connection after which a question is asked again: its audio, or
the rest of its answer, went with the connection."""
_MOST_REPEATS = 3
_LONGEST_THOUGHT_SECONDS = 10.0
_SPREAD = 0.5
_STEP_SECONDS = 0.1
# An answer that is nearly over is let end.
_TOO_LATE_TO_SPEAK_OVER_SECONDS = 0.5
_OUTCOMES: Mapping[str, Outcome] = {
    "completed": "answered",
    "interrupted": "interrupted",
    "failed": "failed",
}


@dataclass(frozen=True)
class Habits:
    """How users behave; what is drawn is drawn from a generator with a seed.

    Attributes:
        think_seconds: median of the pause before a question; drawn from a log-normal distribution.
        interrupt_share: share of the answers that are spoken over.
        interrupt_after_seconds: an answer is spoken over when so much of it was heard, between the
            two.
    """

    think_seconds: float = 1.0
    interrupt_share: float = 0.1
    interrupt_after_seconds: tuple[float, float] = (0.5, 2.0)

    def thought(self, drawn: random.Random) -> float:
        """Time to think before a question."""
        if self.think_seconds == 0:
            return 0.0
        seconds = drawn.lognormvariate(math.log(self.think_seconds), _SPREAD)
        return min(seconds, _LONGEST_THOUGHT_SECONDS)

    def interruption(self, drawn: random.Random) -> float | None:
        """How much of an answer is heard before it is spoken over; None if it is not."""
        share, after = drawn.random(), drawn.uniform(*self.interrupt_after_seconds)
        return after if share < self.interrupt_share else None


@dataclass
class Turn:
    """A question, and what the user got; times are of the monotonic clock.

    Attributes:
        user: number of the user.
        question: name of the recording.
        began: when the user began to speak.
        spoken: when the last sample of speech was sent, of the first time that it was asked whole.
        turn_ended: when the server said that the turn had ended.
        turn_ended_ms: where it ended, in the server's stream.
        first_audio: when the first audio of the answer came.
        ended: when the answer had been heard, or was given up.
        outcome: ``answered`` (heard to its end), ``interrupted`` (by the user), ``cut`` (the rest
            went with a connection), ``failed`` (the server says so), ``unheard`` (the server heard
            no words), ``unanswered`` (no news for `NEWS_SECONDS`).
        stop_ms: from the first sample said over the answer until it fell silent.
        gaps: silences within the answer.
        repeats: times that the question was asked again because a connection was lost.
        losses: connections that were lost meanwhile.
        outages: services that the server lost meanwhile and looked for.
        report: the server's, if it came.
    """

    user: int
    question: str
    began: float = 0.0
    spoken: float | None = None
    turn_ended: float | None = None
    turn_ended_ms: int = 0
    first_audio: float | None = None
    ended: float = 0.0
    outcome: Outcome | None = None
    utterance_id: str = ""
    stop_ms: float | None = None
    gaps: list[Gap] = field(default_factory=list)
    lost_samples: int = 0
    repeats: int = 0
    losses: int = 0
    outages: int = 0
    report: TurnReport | None = None

    @property
    def first_audio_ms(self) -> float | None:
        """From the last sample of speech sent to the first sample of the answer that came."""
        if self.spoken is None or self.first_audio is None:
            return None
        return (self.first_audio - self.spoken) * 1000

    @property
    def stutter_ms(self) -> float:
        """The longest silence within the answer."""
        return 1000 * max((gap.seconds for gap in self.gaps), default=0.0)

    @property
    def late_frames(self) -> int:
        """Frames of 20 ms of the answer that came after they had to be played."""
        return sum(gap.frames for gap in self.gaps)


class Microphone:
    """Sends a frame every 20 ms: what is to be said, and silence otherwise.

    Args:
        line: gets the frames.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._frames: Sequence[Frame] = ()
        self._next = 0
        self._spoken_frames = 0
        self._spoken: asyncio.Future[float] | None = None
        self.late_ms = 0.0
        """How late this process was to send a frame, at worst."""

    def say(self, question: Question) -> asyncio.Future[float]:
        """Says a question; gives the time at which the last frame with speech in it was sent."""
        self.fall_silent()
        self._frames, self._next = question.frames, 0
        self._spoken_frames = question.spoken_frames
        self._spoken = asyncio.get_running_loop().create_future()
        return self._spoken

    def fall_silent(self) -> None:
        """Says no more of a question."""
        self._frames = ()
        if self._spoken is not None and not self._spoken.done():
            self._spoken.cancel()

    async def run(self) -> None:
        """Sends until it is cancelled."""
        due = time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.late_ms = max(self.late_ms, (time.monotonic() - due) * 1000)
            due += FRAME_SECONDS
            await self._line.send(self._frame())
            spoken = self._spoken
            if self._next >= self._spoken_frames and spoken is not None and not spoken.done():
                spoken.set_result(time.monotonic())

    def _frame(self) -> Frame:
        if self._next >= len(self._frames):
            return QUIET
        self._next += 1
        return self._frames[self._next - 1]


class SimulatedUser:
    """Talks in one session.

    Args:
        number: of the user, for the turns.
        line: how to talk; it is entered and left here.
        questions: what may be asked.
        habits: how the user behaves.
        drawn: what is drawn is drawn from it.
        on_turn: gets each turn that is over.

    Attributes:
        told: what the server said of the history.
        microphone: the user's.
        lost: why the session was lost; None if it was not.
    """

    def __init__(
        self,
        number: int,
        line: Line,
        questions: Sequence[Question],
        habits: Habits,
        drawn: random.Random,
        on_turn: Callable[[Turn], None] = lambda _: None,
    ) -> None:
        self.number = number
        self.line = line
        self.told = Told()
        self.microphone = Microphone(line)
        self.lost: LineError | None = None
        self._questions = questions
        self._habits = habits
        self._drawn = drawn
        self._on_turn = on_turn
        self._leaving = asyncio.Event()
        self._connected = asyncio.Event()
        self._changed = asyncio.Event()
        self._turn: Turn | None = None
        self._speaking = False
        self._end_was_heard = False
        self._must_repeat = False
        self._lost_at: float | None = None
        self._news = 0.0
        self._spoken_over: dict[str, Turn] = {}

    def leave(self) -> None:
        """The user goes after the turn that is under way."""
        self._leaving.set()

    async def run(self) -> None:
        """Talks until `leave`, or until the session is lost: then `lost` says why."""
        try:
            await self._with_line(self._talk())
        except LineError as lost:
            self.lost = lost
        finally:
            self._give_up()

    async def ask(self, question: Question) -> Turn:
        """Asks one question, waits until the answer was heard, and goes.

        Raises:
            LineError: the session is lost.
        """
        turn = Turn(self.number, question.name)
        await self._with_line(self._ask(turn, question, None))
        return turn

    # --- what the user does

    async def _with_line(self, talk: Coroutine[Any, Any, object]) -> None:
        """Talks while the microphone is on and somebody listens. Raises LineError."""
        talking = None
        try:
            async with self.line:
                self._connected.set()
                talking = asyncio.create_task(talk)
                tasks = [
                    talking,
                    asyncio.create_task(self.microphone.run()),
                    asyncio.create_task(self._listen()),
                ]
                try:
                    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in ended:
                        task.result()
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            if talking is None:
                talk.close()

    async def _talk(self) -> None:
        at_once = False
        while True:
            if not at_once:
                await self._think()
            await self._connected.wait()
            if self._leaving.is_set():
                return
            question = self._drawn.choice(self._questions)
            over = self._habits.interruption(self._drawn)
            at_once = await self._ask(Turn(self.number, question.name), question, over)

    async def _think(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._habits.thought(self._drawn)):
                await self._leaving.wait()

    async def _ask(self, turn: Turn, question: Question, over: float | None) -> bool:
        """Asks until it is answered; whether the user now speaks over the answer.

        Args:
            over: how much of the answer is heard before; None lets it be heard to its end.
        """
        self._turn, turn.began = turn, time.monotonic()
        verdict: _Verdict = "again"
        for turn.repeats in range(_MOST_REPEATS + 1):
            await self._connected.wait()
            verdict = await self._attempt(turn, question, over)
            if verdict != "again":
                break
        self._turn = None
        if verdict == "over":
            self._spoken_over[turn.utterance_id] = turn
            return True
        self._finish(turn, turn.outcome or "unanswered")
        return False

    async def _attempt(self, turn: Turn, question: Question, over: float | None) -> _Verdict:
        self._speaking, self._end_was_heard, self._must_repeat = True, False, False
        self._lost_at = None
        spoken = self.microphone.say(question)
        spoken.add_done_callback(lambda _: self._changed.set())
        while not spoken.done():
            if self._must_repeat:
                self.microphone.fall_silent()
                return "again"
            await self._step()
        self._speaking, self._news = False, time.monotonic()
        if turn.spoken is None:
            turn.spoken = spoken.result()
        while turn.outcome is None:
            answer = self.line.answers.get(turn.utterance_id)
            if over is not None and answer is not None and _heard_enough(answer, over):
                if answer.ends_at > time.monotonic() + _TOO_LATE_TO_SPEAK_OVER_SECONDS:
                    return "over"
                over = None
            self._lose_patience(turn, answer)
            if self._must_repeat:
                return "again"
            await self._step()
        return "done"

    def _lose_patience(self, turn: Turn, answer: Arrived | None) -> None:
        """Without news for long, the user asks again or gives up."""
        now = time.monotonic()
        if answer is not None:
            self._news = max(self._news, min(now, answer.ends_at))
        if self._lost_at is not None and now - self._news > _AGAIN_SECONDS:
            if turn.utterance_id:
                turn.outcome = "cut"
            else:
                self._must_repeat = True
        elif now - self._news > NEWS_SECONDS:
            turn.outcome = "unanswered"

    async def _step(self) -> None:
        """Waits until something has happened, or for a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STEP_SECONDS):
                await self._changed.wait()
        self._changed.clear()

    def _finish(self, turn: Turn, outcome: Outcome) -> None:
        turn.outcome, turn.ended = outcome, time.monotonic()
        answer = self.line.answers.get(turn.utterance_id)
        if answer is not None:
            turn.gaps += answer.gaps()
            if turn.report is not None and outcome == "answered":
                whole = turn.report.audio_ms * RATE_HZ // 1000
                turn.lost_samples = max(0, whole - answer.samples - RATE_HZ // 1000)
        self._on_turn(turn)

    def _give_up(self) -> None:
        """Nothing more will be heard of what is under way."""
        for over in self._spoken_over.values():
            self._finish(over, "interrupted")
        self._spoken_over.clear()
        turn, self._turn = self._turn, None
        if turn is not None and turn.spoken is not None:
            self._finish(turn, "cut" if turn.utterance_id else "unanswered")

    # --- what happens

    async def _listen(self) -> None:
        async for event in self.line.events():
            self._take(event)
            self._news = time.monotonic()
            self._changed.set()
        raise LineError("ENDED", "the server ended the conversation")

    def _take(self, event: LineEvent) -> None:
        turn = self._turn
        match event:
            case Sound():
                self._sound(event)
            case TurnReport():
                self._reported(event)
            case UserText(final=True):
                self.told.user[event.turn_index] = event.text
            case TurnDeleted():
                self.told.user.pop(event.turn_index, None)
            case StopPlayback() if event.utterance_id in self._spoken_over and turn is not None:
                stopped = self._spoken_over[event.utterance_id]
                stopped.stop_ms = (time.monotonic() - turn.began) * 1000
            case TurnEvent() if turn is not None:
                self._happened(event, turn)
            case Disconnected():
                self._disconnected()
            case Reconnected():
                self._reconnected()
            case _:
                pass

    def _sound(self, event: Sound) -> None:
        """An answer begins: to the question, unless it was already under way meanwhile."""
        turn = self._turn
        if turn is None or turn.spoken is None or self._speaking:
            return
        if not turn.utterance_id:
            turn.utterance_id, turn.first_audio = event.utterance_id, event.at_seconds
        elif self._lost_at is not None:
            # The rest went with the connection, and the question is answered anew.
            before = self.line.answers[turn.utterance_id]
            silent_from = min(before.ends_at, event.at_seconds)
            turn.gaps += [*before.gaps(), Gap(silent_from, event.at_seconds - silent_from)]
            turn.utterance_id, self._lost_at = event.utterance_id, None

    def _happened(self, event: TurnEvent, turn: Turn) -> None:
        match event.kind:
            case Happening.USER_TURN_ENDED:
                turn.turn_ended, turn.turn_ended_ms = event.at_seconds, event.audio_ms
                self._end_was_heard = not self._speaking
            case Happening.NOTHING_SAID if not self._speaking and not turn.utterance_id:
                turn.outcome = "unheard"
            case Happening.RECOVERING:
                turn.outages += 1
            case _:
                pass

    def _reported(self, report: TurnReport) -> None:
        own = None
        if report.outcome == "interrupted":
            own = self.line.heard_text(report.utterance_id)
        self.told.heard(Answer(report.heard_text, own))
        over = self._spoken_over.pop(report.utterance_id, None)
        if over is not None:
            over.report = report
            self._finish(over, _OUTCOMES.get(report.outcome, "failed"))
            return
        turn = self._turn
        if turn is None or turn.spoken is None or self._speaking:
            return
        if report.utterance_id == turn.utterance_id:
            turn.report, turn.outcome = report, _OUTCOMES.get(report.outcome, "failed")
        elif not turn.utterance_id and report.outcome in ("completed", "failed"):
            # An answer of which nothing could be heard.
            turn.report, turn.outcome = report, "failed"

    def _disconnected(self) -> None:
        self._connected.clear()
        self._lost_at = time.monotonic()
        self.told.losses += 1
        if self._turn is not None:
            self._turn.losses += 1

    def _reconnected(self) -> None:
        self._connected.set()
        for turn in self._spoken_over.values():
            self._finish(turn, "interrupted")
        self._spoken_over.clear()
        # Audio that was sent before is of a stream that is over.
        self._must_repeat = self._speaking or not self._end_was_heard


def _heard_enough(answer: Arrived, seconds: float) -> bool:
    return answer.first_at is not None and time.monotonic() >= answer.first_at + seconds
