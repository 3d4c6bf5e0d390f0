"""What `minmo bench load` makes of what it sees; no server runs."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from typer.testing import CliRunner

from minmo.bench.arrivals import RATE_HZ, Arrived
from minmo.bench.faults import Fault, added, one_of_each, parse_faults
from minmo.bench.figures import latencies, percentile
from minmo.bench.history import Answer, Told, problems
from minmo.bench.lag import Lag
from minmo.bench.lines import Frame, Line, LineError, LineEvent, Question, Sound
from minmo.bench.load import Stage, ramp
from minmo.bench.load_result import FaultResult, Level, LoadResult, Window
from minmo.bench.replay import encoder, stand_ins
from minmo.bench.replay import recording as recorded
from minmo.bench.replay.llm import Branch, RefusedError
from minmo.bench.usage import OWN, Usage
from minmo.bench.user import Habits, SimulatedUser, Turn
from minmo.cli.main import app
from minmo.client import Recording
from minmo.client.errors import RecordingError
from minmo.client.events import (
    Disconnected,
    Happening,
    Ready,
    Reconnected,
    StopPlayback,
    TurnEvent,
    TurnReport,
    UserText,
)
from minmo.v1 import common_pb2, llm_pb2
from minmo.v1.conversation_pb2 import Session
from minmo.v1.conversation_pb2 import Turn as StoredTurn

PIECE = RATE_HZ // 5
"""Samples of 200 ms."""


# --- figures


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(value) for value in range(1, 21)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [10, 19, 20, 20]
    assert percentile([7.0], 0.5) == 7
    assert math.isnan(percentile([], 0.5))
    found = latencies([300.0, 100.0, 200.0])
    assert (found.count, found.p50, found.p95, found.worst) == (3, 200, 300, 300)


# --- late audio


def test_audio_that_comes_after_it_had_to_be_played_is_late_frame_by_frame() -> None:
    answer = Arrived([(1.0, PIECE), (1.25, PIECE), (1.60, PIECE), (1.61, PIECE)])
    assert [gap.seconds for gap in answer.gaps()] == pytest.approx([0.05, 0.15])
    assert [gap.at_seconds for gap in answer.gaps()] == pytest.approx([1.2, 1.45])
    # 50 ms are two frames and a half: three had nothing to play.
    assert answer.late_frames() == 3 + 8
    assert answer.stutter_ms() == pytest.approx(150)
    assert answer.ends_at == pytest.approx(2.0)


def test_what_comes_in_time_is_played_without_a_silence() -> None:
    answer = Arrived([(1.0, PIECE), (1.01, PIECE), (1.4, PIECE)])
    assert answer.late_frames() == 0
    assert answer.played(0.9) == 0
    assert answer.played(1.1) == pytest.approx(PIECE / 2, abs=1)
    assert answer.played(9.0) == 3 * PIECE
    assert Arrived().gaps() == []
    assert Arrived().first_at is None


def test_a_silence_behind_the_end_of_an_answer_that_was_stopped_is_none() -> None:
    answer = Arrived([(1.0, PIECE), (1.5, PIECE)], stopped_at=1.3)
    assert [gap.seconds for gap in answer.gaps()] == pytest.approx([0.1])
    assert Arrived([(1.0, PIECE), (1.5, PIECE)], stopped_at=1.1).gaps() == []
    assert answer.played(9.0) == PIECE


# --- faults


def test_faults_are_read_in_the_order_of_time() -> None:
    faults = parse_faults("drain:orchestrator-2@20s, kill:voice-decoder@10s,add:llm@30")
    assert faults == [
        Fault("kill", "voice_decoder", 10.0),
        Fault("drain", "orchestrator-2", 20.0),
        Fault("add", "llm", 30.0),
    ]
    assert str(faults[0]) == "kill:voice_decoder@10s"
    assert added([*faults, Fault("add", "llm", 40.0)]) == {"llm": 2}
    assert parse_faults("kill:triton-2@1.5s") == [Fault("kill", "triton-2", 1.5)]


def test_all_faults_are_one_of_each_kind_for_each_service() -> None:
    faults = one_of_each({"llm": 2}, 130.0, gateway=False)
    assert [fault.at_seconds for fault in faults] == [10.0 * place for place in range(1, 13)]
    assert [(fault.kind, fault.process) for fault in faults if "llm" in fault.process] == [
        ("kill", "llm"),
        ("drain", "llm-2"),
        ("add", "llm"),
    ]
    assert ("drain", "encoder") in [(fault.kind, fault.process) for fault in faults]
    assert len(one_of_each({}, 160.0, gateway=True)) == 15


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("stop:encoder@10s", "kill"),
        ("kill:encoder", "@SECONDS"),
        ("kill:encoder@soon", "@SECONDS"),
        ("kill:encoder@1.2.3s", "no time"),
        ("kill:speaker@10s", "no service 'speaker'"),
        ("add:llm-2@10s", "name the service alone"),
        ("add:redis@10s", "only services"),
        ("", "@SECONDS"),
    ],
)
def test_a_fault_that_is_not_understood_says_what_is(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_faults(text)


# --- the history


def session(*turns: tuple[common_pb2.Role.ValueType, str]) -> Session:
    return Session(
        session_id="s",
        turns=[
            StoredTurn(index=index, role=role, text=text)
            for index, (role, text) in enumerate(turns)
        ],
    )


USER, ASSISTANT = common_pb2.ROLE_USER, common_pb2.ROLE_ASSISTANT


def test_a_history_is_whole_when_all_that_was_told_is_stored() -> None:
    stored = session((USER, "Who?"), (ASSISTANT, "Me."), (USER, "Why?"), (ASSISTANT, "Bec"))
    told = Told({0: "Who?", 2: "Why?"}, [Answer("Me."), Answer("Bec", "Bec")])
    assert problems(told, stored) == []
    # What is told without numbers is looked for in its order.
    assert problems(Told({-1: "Who?", -2: "Why?"}, told.answers), stored) == []


def test_whatever_differs_from_what_was_told_is_named() -> None:
    stored = session((USER, "Who?"), (ASSISTANT, "Me."))
    assert problems(Told({0: "What?"}, [Answer("Me.")]), stored) == [
        "turn 0 was 'What?' and is stored as 'Who?'"
    ]
    assert problems(Told({0: "Who?", 2: "Why?"}, [Answer("Me.")]), stored) == [
        "turn 2, 'Why?', is not stored"
    ]
    assert problems(Told({-1: "Why?", -2: "Who?"}, [Answer("Me.")]), stored) == [
        "the question 'Why?' is not stored in its place"
    ]
    assert problems(Told({}, [Answer("You.")]), stored) == [
        "the answer 'You.' is not stored in its place"
    ]
    # What the client itself has heard is what counts.
    assert problems(Told({}, [Answer("Me.", "M")]), stored) == [
        "the answer 'M' is not stored in its place"
    ]
    assert problems(Told({}, [Answer("M", "Me.")]), stored) == []


def test_each_lost_connection_may_leave_one_answer_untold_and_no_more() -> None:
    stored = session(*[(ASSISTANT, text) for text in ("a", "b", "c", "d")])
    told = Told({}, [Answer("a"), Answer("d")], losses=1)
    assert problems(told, stored) == []
    assert problems(replace(told, losses=0), stored) == [
        "2 answers are stored that the client was never told of"
    ]


def test_an_answer_of_which_nothing_was_heard_is_not_looked_for() -> None:
    told = Told()
    told.heard(Answer("  "))
    told.heard(Answer("Me.", ""))
    assert told.answers == []


# --- levels


def report(text: str = "Yes.", *, outcome: str = "completed", answer: str = "u") -> TurnReport:
    return TurnReport(
        utterance_id=answer,
        user_turn_index=0,
        assistant_turn_index=1,
        outcome=outcome,  # type: ignore[arg-type]
        heard_text=text,
        generated_text=text,
        first_audio_ms=600.0,
        waterfall=(),
        token_count=10,
        audio_ms=1000,
        voice_compute_ms=1.0,
        generate_ms=1.0,
        detail="",
    )


def turn(first_audio_ms: float = 700.0, **changes: object) -> Turn:
    made = Turn(0, "q", 0.0, 1.0, first_audio=1.0 + first_audio_ms / 1000, outcome="answered")
    return replace(made, report=report(), **changes)  # type: ignore[arg-type]


def level(*turns: Turn, usage: Usage | None = None, **changes: object) -> Level:
    values: dict[str, object] = {
        "lost": 0,
        "session_seconds": 120.0,
        "errors": {},
        "client_late": False,
    }
    window = Window(4, 10.0, 40.0, usage)
    return Level.of(window, turns, **(values | changes))  # type: ignore[arg-type]


def result(*levels: Level) -> LoadResult:
    return LoadResult(
        through="grpc",
        replayed=True,
        finished=True,
        first_audio_limit_ms=1000.0,
        levels=levels,
        total=levels[-1],
        faults=(),
        history_problems={"s": ["wrong"]},
        redis_bytes_by_session={"s": 3000},
        own_lag_p99_ms=1.0,
        own_lag_worst_ms=2.0,
        own_frame_late_ms=3.0,
    )


def test_a_level_counts_what_its_turns_were() -> None:
    gap = Arrived([(0.0, PIECE), (0.25, PIECE)]).gaps()
    found = level(
        turn(700.0),
        turn(900.0, gaps=gap, losses=1, repeats=2),
        turn(800.0, outcome="interrupted", stop_ms=250.0),
        turn(outcome="cut", first_audio=None),
        lost=1,
    )
    assert (found.turns, found.answered, found.held) == (4, 3, 3)
    assert found.outcomes == {"answered": 2, "interrupted": 1, "cut": 1}
    assert (found.first_audio.count, found.first_audio.p50) == (3, pytest.approx(800))
    assert (found.late_frames, found.reconnects, found.repeats) == (3, 1, 2)
    assert found.stop.p50 == 250
    assert found.tokens == 40


@pytest.mark.parametrize(
    ("turns", "changes", "good"),
    [
        ([turn()], {}, True),
        ([], {}, False),
        ([turn(1001.0)], {}, False),
        ([turn(outcome="unanswered")], {}, False),
        ([turn(lost_samples=1)], {}, False),
        ([turn(gaps=Arrived([(0.0, PIECE), (0.31, PIECE)]).gaps())], {}, False),
        ([turn()], {"lost": 1}, False),
        ([turn()], {"client_late": True}, False),
    ],
)
def test_a_level_is_good_while_nobody_suffers_and_the_client_is_in_time(
    turns: list[Turn], changes: dict[str, object], good: bool
) -> None:
    one = level(*turns, **changes)
    assert result(one).is_sustained(one) is good
    assert result(one).sustained_sessions == (4 if good else 0)


def test_a_client_is_late_when_it_is_by_a_frame() -> None:
    assert not Lag(20.0, 500.0).is_late
    assert Lag(20.1, 21.0).is_late


def test_replicas_of_a_service_cost_together_what_the_service_costs() -> None:
    usage = Usage(30.0, {"llm": 1.0, "llm-2": 3.0, OWN: 2.0}, {"llm": 10, "llm-2": 20}, 60, 4000)
    one = level(turn(), usage=usage)
    assert one.cpu_seconds_a_minute() == {"llm": 2.0, OWN: 1.0}
    assert one.memory_bytes() == {"llm": 30}
    assert one.tokens_a_second() == 2.0
    assert level(turn()).tokens_a_second() == pytest.approx(10 / 30)


def test_what_two_stretches_used_is_added_up() -> None:
    both = Usage(10.0, {"a": 1.0}, {"a": 5}, 7, 100).plus(
        Usage(20.0, {"a": 2.0, "b": 4.0}, {"a": 3}, None, 50)
    )
    assert both == Usage(30.0, {"a": 3.0, "b": 4.0}, {"a": 5}, None, 150)


def test_the_cost_of_a_session_is_that_of_the_highest_good_level() -> None:
    usage = Usage(30.0, {"llm": 1.0})
    low, high = level(turn(), usage=usage), level(turn(1001.0), usage=usage)
    assert result(low, high).costed is low
    assert result(high).costed is high
    assert result(level(turn())).costed is None


def test_programs_get_all_figures_and_no_number_that_json_has_not() -> None:
    found = json.loads(json.dumps(result(level(turn())).to_json(), allow_nan=False))
    assert found["outputs"] == "model outputs replayed from a recording"
    assert found["levels"][0]["sustained"] is True
    assert found["levels"][0]["stop"]["p50"] is None
    assert found["total"]["held"] == 4
    # One of four is stored otherwise than it went.
    assert found["whole_sessions"] == 3


def test_what_was_felt_around_a_fault_is_that_of_the_turns_under_way() -> None:
    felt = FaultResult.of(
        "kill:llm@1s", "llm", 2.0, [turn(), turn(3000.0, losses=1)], lost=1, problem=""
    )
    assert (felt.turns, felt.answered, felt.reconnects, felt.lost) == (2, 2, 1, 1)
    assert felt.first_audio.worst == pytest.approx(3000)


def test_a_ramp_has_one_session_more_each_time() -> None:
    assert ramp(3, 5.0) == (Stage(1, 5.0), Stage(2, 5.0), Stage(3, 5.0))


# --- users


def question(seconds: float = 0.2, quiet: float = 0.1) -> Question:
    """Sound, then silence."""
    samples = np.zeros(round((seconds + quiet) * RATE_HZ), np.float32)
    samples[: round(seconds * RATE_HZ)] = 0.5
    return Question.of(Recording(Path("q.wav"), samples, RATE_HZ))


class ScriptedLine(Line):
    """A server that answers 100 ms after the sound has ended, with one second of audio."""

    def __init__(self, *, report_after: float = 0.1, fail: LineError | None = None) -> None:
        super().__init__()
        self.session_id = "s"
        self.asked = 0
        self.on_sound: Callable[[int], None] = lambda _: None
        self._report_after = report_after
        self._fail = fail
        self._events: asyncio.Queue[LineEvent | LineError] = asyncio.Queue()
        self._quiet = 0
        self._loud = 0

    async def __aenter__(self) -> Self:
        if self._fail is not None:
            raise self._fail
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def tell(self, *events: LineEvent | LineError) -> None:
        for event in events:
            self._events.put_nowait(event)

    async def events(self) -> AsyncIterator[LineEvent]:
        while True:
            event = await self._events.get()
            if isinstance(event, LineError):
                raise event
            yield event

    async def send(self, frame: Frame) -> None:
        if np.abs(frame.samples).max() > 0.1:
            self._loud += 1
            self._quiet = 0
            self.on_sound(self._loud)
        elif self._loud:
            self._quiet += 1
            if self._quiet == 5:
                self._loud = 0
                self._answer()

    def forget(self) -> None:
        """What was said so far went with the connection."""
        self._loud = 0

    def _answer(self) -> None:
        name, now = f"u{self.asked}", asyncio.get_running_loop().time()
        self.asked += 1
        self.answers[name] = Arrived([(now, RATE_HZ)])
        self.tell(
            TurnEvent(Happening.USER_TURN_ENDED, 200, "", "", now),
            UserText(2 * self.asked - 2, "What?", True),
            Sound(name, now),
        )
        loop = asyncio.get_running_loop()
        loop.call_later(self._report_after, self.tell, report("It.", answer=name))

    def sent_at(self, position_ms: float) -> float | None:
        return None


PATIENT = Habits(0.0, 0.0)


def user(line: Line, habits: Habits = PATIENT, **kwargs: object) -> SimulatedUser:
    drawn = random.Random(0)
    return SimulatedUser(0, line, [question()], habits, drawn, **kwargs)  # type: ignore[arg-type]


def test_a_recording_is_cut_into_frames_up_to_the_end_of_its_speech() -> None:
    made = question(0.2, 0.11)
    assert (len(made.frames), made.spoken_frames) == (16, 10)
    assert {len(frame.samples) for frame in made.frames} == {480}


async def test_latency_is_counted_from_the_last_sample_of_speech() -> None:
    line = ScriptedLine()
    async with asyncio.timeout(10):
        asked = await user(line).ask(question())
    assert asked.outcome == "answered"
    assert asked.first_audio_ms is not None
    # Five frames of silence, and what a busy machine adds.
    assert 90 <= asked.first_audio_ms <= 400
    assert (asked.turn_ended_ms, asked.repeats, asked.losses) == (200, 0, 0)


async def test_a_question_whose_connection_was_lost_is_asked_again() -> None:
    line = ScriptedLine()

    def lose(frames: int) -> None:
        if frames == 3:
            line.on_sound = lambda _: None
            line.forget()
            line.tell(Disconnected("gone"), Reconnected(0.1, Ready("s", True, 0, "")))

    line.on_sound = lose
    async with asyncio.timeout(10):
        asked = await user(line).ask(question())
    assert (asked.outcome, asked.repeats, asked.losses) == ("answered", 1, 1)


async def test_who_speaks_over_an_answer_asks_on_at_once() -> None:
    line = ScriptedLine(report_after=60)
    turns: list[Turn] = []

    def stop(frames: int) -> None:
        if frames == 4 and line.asked == 1:
            line.answers["u0"].stopped_at = asyncio.get_running_loop().time()
            line.tell(StopPlayback("u0"), report("I", outcome="interrupted", answer="u0"))
            talking.leave()

    line.on_sound = stop
    habits = Habits(0.0, 1.0, (0.1, 0.1))
    talking = user(line, habits, on_turn=turns.append)
    running = asyncio.create_task(talking.run())
    async with asyncio.timeout(10):
        while not turns:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert turns[0].outcome == "interrupted"
    assert turns[0].stop_ms is not None
    assert 40 <= turns[0].stop_ms <= 400
    assert talking.told.answers == [Answer("I")]


async def test_a_session_that_is_refused_or_lost_says_why() -> None:
    refused = user(ScriptedLine(fail=LineError("RESOURCE_EXHAUSTED", "full")))
    line = ScriptedLine()
    lost = user(line)
    line.tell(LineError("ABORTED SESSION_TAKEN_OVER", "taken"))
    async with asyncio.timeout(10):
        await asyncio.gather(refused.run(), lost.run())
    assert refused.lost is not None
    assert lost.lost is not None
    assert [refused.lost.reason, lost.lost.reason] == [
        "RESOURCE_EXHAUSTED",
        "ABORTED SESSION_TAKEN_OVER",
    ]


def test_pauses_are_drawn_around_their_median_and_the_same_for_the_same_seed() -> None:
    habits = Habits(think_seconds=1.0, interrupt_share=0.25)
    drawn = random.Random(1)
    pauses = [habits.thought(drawn) for _ in range(400)]
    assert 0.85 <= percentile(pauses, 0.5) <= 1.15
    assert max(pauses) <= 10
    again = random.Random(1)
    assert pauses == [habits.thought(again) for _ in range(400)]
    overs = [habits.interruption(drawn) for _ in range(400)]
    assert 0.15 <= sum(over is not None for over in overs) / 400 <= 0.35
    assert all(0.5 <= over <= 2 for over in overs if over is not None)


# --- replayed outputs


def heard(
    seconds: float, *, speaking: bool, start: int | None, end: int | None
) -> recorded.Activity:
    return recorded.Activity(
        seconds=seconds, probability=0.9, speaking=speaking, speech_start=start, speech_end=end
    )


LOUD = [bytes([number]) * 960 for number in (1, 2)]
QUIET = bytes(960)


def recording() -> recorded.Recording:
    """One question of two frames, answered with three tokens in two pieces."""
    return recorded.Recording(
        version="0",
        model=llm_pb2.GetModelResponse(context_length=100).SerializeToString(),
        prefills=((10, 0.1), (100, 0.3)),
        branch_seconds=0.01,
        questions=(
            recorded.Question(
                name="q.wav",
                frames=tuple(recorded.digest(frame) for frame in LOUD),
                heard=(
                    heard(0.01, speaking=False, start=None, end=None),
                    heard(0.02, speaking=True, start=100, end=640),
                    heard(0.03, speaking=False, start=100, end=650),
                ),
                words=(
                    recorded.Words(end=320, text="What", seconds=0.1, compute_ms=90.0),
                    recorded.Words(end=960, text="What now?", seconds=0.2, compute_ms=180.0),
                ),
                text="What now?",
                tokens=tuple(
                    recorded.Token(seconds=0.1 * place, text=f"t{place}") for place in (1, 2, 3)
                ),
                finish_reason=llm_pb2.FINISH_REASON_STOP,
                pieces=(
                    recorded.Piece(
                        tokens=2,
                        ended=False,
                        seconds=0.1,
                        first_sample=0,
                        data=bytes(20),
                        marks=((2, 10),),
                    ),
                    recorded.Piece(
                        tokens=3,
                        ended=True,
                        seconds=0.1,
                        first_sample=10,
                        data=bytes(20),
                        marks=((3, 20),),
                    ),
                ),
                done_seconds=0.0,
                compute_ms=5.0,
            ),
        ),
    )


def test_a_recording_comes_back_as_it_was_written(tmp_path: Path) -> None:
    recording().write(tmp_path / "r")
    assert recorded.Recording.read(tmp_path / "r") == recording()
    (tmp_path / "other").write_text("{}")
    for name in ("other", "none"):
        with pytest.raises(RecordingError, match=f"{name} is no recording"):
            recorded.Recording.read(tmp_path / name)


def test_a_replayed_encoder_says_of_a_frame_what_was_said_of_it_wherever_it_comes() -> None:
    ear = encoder.Ear(recording(), 6400)
    answers = [ear.hear(frame) for frame in (QUIET, *LOUD, QUIET, QUIET)]
    assert [activity.end_sample for activity, _ in answers] == [6720, 7040, 7360, 7680, 8000]
    assert [activity.speaking for activity, _ in answers] == [False, False, True, False, False]
    assert [seconds for _, seconds in answers] == [0, 0.01, 0.02, 0.03, 0]
    # The question began at 6720.
    assert [activity.speech_start_sample for activity, _ in answers] == [0, 0, 6820, 6820, 6820]
    assert [activity.speech_end_sample for activity, _ in answers] == [0, 0, 7360, 7370, 7370]
    assert ear.words(6700, 7100) == ("What", 0.1, 90.0)
    assert ear.words(6700, 7700) == ("What now?", 0.2, 180.0)
    assert ear.words(7700, 8000)[0] == ""


def test_an_encoder_that_begins_in_the_middle_of_a_question_knows_where_it_is() -> None:
    ear = encoder.Ear(recording(), 3200)
    activity, _ = ear.hear(LOUD[1])
    assert activity.speech_start_sample == 3200 - 320 + 100


def prefill(position: int, *parts: llm_pb2.PromptPart) -> llm_pb2.Prefill:
    return llm_pb2.Prefill(position=position, parts=parts)


def said(role: common_pb2.Role.ValueType, text: str) -> list[llm_pb2.PromptPart]:
    return [
        llm_pb2.PromptPart(role_start=role),
        llm_pb2.PromptPart(text=text),
        llm_pb2.PromptPart(turn_end=llm_pb2.TurnEnd()),
    ]


def test_a_replayed_llm_keeps_count_of_what_it_has_read() -> None:
    branch = Branch()
    ends = branch.read(prefill(0, *said(USER, "What now?")))
    assert ends == [3, 5, 7]
    with pytest.raises(RefusedError, match="position is 3 where the branch ends at 7") as wrong:
        branch.read(prefill(3, *said(USER, "No")))
    assert (wrong.value.reason, wrong.value.position) == ("WRONG_POSITION", 7)
    branch.cut(4)
    assert branch.length == 4


def test_a_replayed_llm_answers_the_latest_question_and_goes_on_where_it_was() -> None:
    branch = Branch()
    branch.read(prefill(0, *said(common_pb2.ROLE_SYSTEM, "Be brief."), *said(USER, "What now?")))
    branch.read(prefill(branch.length, llm_pb2.PromptPart(role_start=ASSISTANT)))
    assert branch.next_token(recording()) == (0, 0)
    first, second, _ = recording().token_ids(0)
    tokens = llm_pb2.PromptPart(tokens=llm_pb2.TokenIds(ids=[first, second]))
    branch.read(prefill(branch.length, tokens))
    assert branch.next_token(recording()) == (0, 2)
    assert recorded.token_place(second) == (0, 1)
    assert recorded.token_place(3) is None


def test_reading_takes_as_long_as_something_of_its_size_took() -> None:
    assert recording().prefill_seconds(20) == 0.1
    assert recording().prefill_seconds(1000) == 0.3


def test_a_question_behind_others_is_known_by_its_end() -> None:
    assert recording().answer_to("Well then. What now?") == 0
    assert recording().answer_to("something else") == 0


def test_the_services_with_models_have_stand_ins(tmp_path: Path) -> None:
    found = stand_ins(tmp_path / "r")
    assert set(found) == {"encoder", "llm", "voice_decoder"}
    assert found["llm"] == (
        *("-m", "minmo.bench.replay", "llm"),
        *("--recording", str(tmp_path / "r")),
    )


# --- the command


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--sessions", "1,x"], "--sessions"),
        (["--ramp", "3", "--every", "soon"], "--every"),
        (["--faults", "kill:encoder@100s", "--seconds", "30"], "all is over after 90 s"),
        (["--faults", "burn:encoder@1s"], "--faults"),
        (["--replicas", "encoder=0"], "--replicas"),
        (["--replayed", "--address", "127.0.0.1:1"], "leave --address out"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    arguments: list[str], why: str
) -> None:
    refused = CliRunner().invoke(app, ["bench", "load", *arguments])
    assert why in str(refused.exception)


def test_help_names_the_commands_of_the_capacity_tables() -> None:
    shown = CliRunner().invoke(app, ["bench", "load", "--help"]).output
    for command in ("--sessions 1,2,3,4", "--through gateway", "--faults all"):
        assert command in " ".join(shown.split())
