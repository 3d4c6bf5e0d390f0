"""`minmo eval duplex`: what is asked in scenes, who decides how, and what comes of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from minmo.cli.errors import InputError
from minmo.cli.main import app
from minmo.engine.listening import Schedule
from minmo.evaluation import duplex as suite
from minmo.evaluation.duplex import DuplexReport, measure, write_curves
from minmo.evaluation.duplex_deciders import (
    EndpointModel,
    FullDuplex,
    Scores,
    Setting,
    SilenceTimer,
    Trial,
    Voice,
)
from minmo.evaluation.duplex_outcomes import dominated
from minmo.evaluation.duplex_picture import draw
from minmo.evaluation.duplex_questions import questions
from minmo.evaluation.errors import EvaluationError
from minmo.training import duplex as stage_module
from minmo.training import duplex_hearing
from minmo.training.data.duplex import make_scenes
from minmo.training.data.duplex_scenes import Pause, Scene, Sounding, Span
from minmo.training.duplex_hearing import known_at, later_answer
from minmo.weights import aligned
from minmo.weights import duplex as duplex_weights
from minmo.weights.duplex import write_duplex
from minmo.weights.load import weights_folder
from minmo.weights.modules import random_module, write_module
from tests.unit.test_training_duplex import write_listening
from tests.unit.test_training_speech_to_text import write_tokenizer
from tests.unit.tiny_conversations import loud_gate, said, scene, spoken, write_speech
from tests.unit.tiny_presets import write_preset

RATE = 16_000
STEP = 0.144
FRAME = 0.032
HANGOVER = 3 * FRAME


def asked(one: Scene) -> list[tuple[str, str, float, float]]:
    return [(q.kind, q.wanted, round(q.start, 3), round(q.end, 3)) for q in questions(one)]


def turn_scene() -> Scene:
    """A turn of 1 to 4 s with a pause in it, answered at 7 s."""
    return scene(
        7.5,
        user=(spoken(1, 4, "a cat"),),
        assistant=(spoken(7, 7.5, "the mat"),),
        pauses=(Pause(2, 3, complete=False),),
    )


def interruption_scene() -> Scene:
    return scene(
        8.5,
        kind="interruption",
        user=(spoken(2, 4, "stop"),),
        assistant=(spoken(0, 2.9, "the mat"), spoken(7, 8.5, "a cat")),
    )


def back_channel_scene() -> Scene:
    return scene(
        12,
        kind="back-channel",
        user=(spoken(6, 8, "a cat"),),
        assistant=(spoken(0, 5, "the mat"), spoken(11, 12, "a cat")),
        back_channels=(Span(1, 1.5), Span(4.6, 4.9)),
    )


def noise_scene() -> Scene:
    return scene(
        12,
        kind="noise",
        user=(spoken(6, 8, "a cat"),),
        assistant=(spoken(0, 5, "the mat"), spoken(11, 12, "a cat")),
        said=(said("train-0-0", 2.0, 1.0), said("train-1-0", 6.0, 2.0)),
        sounds=(Sounding("cough", 4.0, 0.5, -30.0, 1),),
    )


# --- questions


def test_a_turn_asks_about_its_pauses_its_whole_and_its_end() -> None:
    assert asked(turn_scene()) == [
        ("pause", "answer", 2, 3),
        ("within", "answer", 1, 4),
        ("end", "answer", 4, 7),
    ]


def test_an_interruption_asks_to_stop_and_then_to_answer() -> None:
    assert asked(interruption_scene()) == [
        ("within", "answer", 2, 4),
        ("end", "answer", 4, 7),
        ("end of interruption", "answer", 4, 7),
        ("interruption", "stop", 2, 4.6),
        ("nobody", "stop", 0, 2),
    ]


def test_what_is_around_is_asked_about_while_the_answer_lasts() -> None:
    assert asked(back_channel_scene())[2:] == [
        ("back-channel", "stop", 1, 2.1),
        ("back-channel", "stop", 4.6, 5),
        ("nobody", "stop", 0, 1),
    ]
    assert asked(noise_scene())[2:] == [
        ("other speech", "stop", 2, 3.6),
        ("other sound", "stop", 4, 5),
        ("nobody", "stop", 0, 2),
    ]
    # Before the user has said anything, a noise must not be answered.
    alone = scene(6, kind="noise", user=(spoken(2, 3, "a cat"),), assistant=(spoken(5, 6, "the"),))
    assert asked(alone)[-1] == ("noise", "answer", 0, 2)


# --- deciders


@dataclass(frozen=True)
class Said:
    heard: NDArray[np.float64]
    known: NDArray[np.float64]
    answer: NDArray[np.float64]
    stop: NDArray[np.float64]


def voice(start: float, end: float) -> Voice:
    """As the detector notices speech: late, by three frames at either side."""
    return Voice(start, start + HANGOVER, end + HANGOVER)


def trial(
    one: Scene,
    voices: Sequence[Voice],
    answer: Sequence[tuple[float, float]] = (),
    stop: Sequence[tuple[float, float]] = (),
    name: str = "one",
) -> Trial:
    """A scene in which the predictor is sure of a yes in some stretches, and of a no elsewhere."""
    heard = np.arange(1, int(one.seconds / STEP) + 1) * STEP
    yes = [np.full(len(heard), 0.1) for _ in range(2)]
    for values, stretches in zip(yes, (answer, stop), strict=True):
        for start, end in stretches:
            values[(heard >= start) & (heard < end)] = 0.9
    user = np.zeros(round(one.seconds * RATE), np.float32)
    return Trial(name, one, user, voices, Said(heard, heard + 0.03, *yes))


def test_a_decision_falls_where_the_score_first_reaches_the_knob() -> None:
    times = np.array([1.0, 2.0, 3.0, 4.0])
    scores = Scores(times - 0.5, times, np.array([0.9, 0.2, 0.6, 0.4]))
    found = scores.first(1.5, 4.0, np.array([0.1, 0.5, 0.7]))
    np.testing.assert_allclose(found, [0.5, 1.5, np.inf])
    np.testing.assert_array_equal(scores.first(8.0, 9.0, np.array([0.1])), [np.inf])
    # 0.5 s and 1.5 s end the steps 0 and 2.
    np.testing.assert_allclose(scores.on_steps(0.5, 6), [0.9, 0, 0.2, 0, 0.6, 0])


def test_the_timer_answers_after_its_silence_and_stops_after_its_speech() -> None:
    timer = SilenceTimer()
    one = trial(turn_scene(), [voice(1, 2), voice(3, 4)])
    scores = timer.answering(one)
    pause = scores.first(2, 3, np.array([0.5, 1.5]))
    assert pause[0] == pytest.approx(0.5, abs=FRAME)
    assert pause[1] == np.inf
    assert scores.first(4, 7, np.array([1.5]))[0] == pytest.approx(1.5, abs=FRAME)
    over = trial(interruption_scene(), [voice(2, 4)])
    stops = timer.stopping(over).first(2, 4.6, np.array([0.05, 0.2, 1.0, 2.5]))
    np.testing.assert_allclose(stops[:3], [HANGOVER, 0.2, 1.0], atol=2 * FRAME)
    assert stops[3] == np.inf


def test_the_predictor_answers_nobody_who_speaks_unless_it_decides_alone() -> None:
    one = trial(turn_scene(), [voice(1, 2), voice(3, 4)], answer=[(3.5, 7)])
    settings = (Setting("usual", 0.5, 0.5),)
    knob = np.array([0.5])
    behind = FullDuplex(settings).answering(one)
    # It was sure while the user spoke: the decision falls when the detector notices the silence.
    assert behind.first(1, 4, knob)[0] == np.inf
    assert behind.first(4, 7, knob)[0] == pytest.approx(HANGOVER)
    alone = FullDuplex(settings, into_speech=True).answering(one)
    assert alone.first(1, 4, knob)[0] == pytest.approx(2.5 + 0.1 + 0.03, abs=STEP / 2)
    with pytest.raises(ValueError, match="was not asked about scene one"):
        FullDuplex(settings).answering(Trial("one", turn_scene(), one.user, one.voices))


def test_a_model_is_asked_at_each_silence_with_the_turn_so_far() -> None:
    heard: list[int] = []

    def turn_end(samples: NDArray[np.float32]) -> float:
        heard.append(len(samples))
        return 0.8 if len(heard) == 3 else 0.2

    one = trial(turn_scene(), [voice(0.2, 0.4), voice(1, 2), voice(3, 4)])
    model = EndpointModel("model", turn_end)
    scores = model.answering(one)
    knob = np.array([0.1, 0.5])
    np.testing.assert_allclose(scores.first(2, 3, knob), [0.2, np.inf], atol=FRAME)
    np.testing.assert_allclose(scores.first(4, 7, knob), [0.2, 0.2], atol=FRAME)
    # From half a second before the turn to 0.2 s behind the speech; what was before is not of it.
    assert heard == [round(seconds * RATE) for seconds in (0.6, 1.7, 3.7)]
    assert model.stopping(one) is None


# --- what comes of it


def perfect() -> list[Trial]:
    return [
        trial(turn_scene(), [voice(1, 2), voice(3, 4)], answer=[(4, 7)], name="turn"),
        trial(
            interruption_scene(),
            [voice(2, 4)],
            answer=[(4, 7)],
            stop=[(2.6, 4)],
            name="interruption",
        ),
        trial(
            back_channel_scene(),
            [voice(1, 1.5), voice(6, 8)],
            answer=[(8, 11)],
            name="back-channel",
        ),
        trial(noise_scene(), [voice(2, 3), voice(6, 8)], answer=[(8, 11)], name="noise"),
    ]


def found(trials: list[Trial]) -> DuplexReport:
    deciders = [FullDuplex((Setting("usual", 0.5, 0.5),)), SilenceTimer()]
    return measure(
        trials, deciders, step_seconds=STEP, total=len(trials), ours="predictor", resamples=20
    )


def test_a_predictor_that_is_right_is_told_so_and_is_better_than_a_timer() -> None:
    report = found(perfect())
    changes, timer = report.changes[0], report.changes[1]
    assert changes.answer[5].value == 1
    assert changes.answer[1].value == 1
    assert changes.stop[10].value == 1
    assert changes.back_channels.value == 1
    assert timer.answer[10].value < 1
    answers = report.answers[0]
    assert (answers.pauses.value, answers.cut.value, answers.ends.value) == (0, 0, 1)
    assert 0.09 < answers.latency_s.value < 0.25
    assert answers.interruption_latency_s.value == pytest.approx(answers.latency_s.value, abs=0.15)
    stops = report.stops[0]
    assert stops.interruptions.value == 1
    assert stops.latency_s.value == pytest.approx(0.7, abs=0.15)
    assert (stops.back_channels.value, stops.speech.value, stops.sounds.value) == (0, 0, 0)
    assert stops.nobody.value == 0
    # Of the timer with 0.3 s: a pause of 1 s is taken, and any speech of 0.2 s stops.
    assert report.answers[1].pauses.value == 1
    assert report.answers[1].latency_s.value == pytest.approx(0.3, abs=FRAME)
    assert report.stops[1].back_channels.value == 0.5
    assert report.stops[1].speech.value == 1
    (better,) = report.better
    assert better.than == "silence timer"
    assert better.answer.value == 1
    assert 0 < better.stop.value < 1
    tables = "\n".join(table.markdown() for table in report.tables())
    assert "5 = 0.72 s" in tables
    assert "0.787 / 0.962 / 0.985" in tables
    json.dumps(report.to_json())


def test_a_predictor_that_is_wrong_is_told_so() -> None:
    trials = perfect()
    wrong = [
        trial(turn_scene(), [voice(1, 2), voice(3, 4)], answer=[(2, 3)], name="turn"),
        trial(back_channel_scene(), [voice(1, 1.5)], stop=[(0.5, 1.6)], name="back-channel"),
    ]
    report = found([wrong[0], trials[1], wrong[1], trials[3]])
    assert report.answers[0].pauses.value == 1
    assert report.answers[0].cut.value == pytest.approx(1 / 4)
    assert report.answers[0].ends.value == pytest.approx(2 / 4)
    assert report.changes[0].back_channels.value == 0.5
    assert report.stops[0].nobody.value == pytest.approx(1 / 3)
    assert report.changes[0].answer[5].value < 0.8
    assert report.better[0].answer.value < 0.5


def test_a_point_is_beaten_in_one_error_and_not_lost_in_the_other() -> None:
    def curve(*points: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        taken, waited = zip(*points, strict=True)
        return np.array(taken), np.array(waited)

    theirs = curve((0, 3), (0.5, 1), (1, 0.2), (1, 0.2))
    assert dominated(curve((0, 3), (0.5, 1)), theirs) == 0
    assert dominated(curve((0.5, 0.9)), theirs) == pytest.approx(1 / 3)
    assert dominated(curve((0, 0.1)), theirs) == 1
    assert np.isnan(dominated(curve((np.nan, 1)), theirs))


def test_without_scenes_there_is_nothing_to_tell() -> None:
    with pytest.raises(EvaluationError, match="there are no scenes"):
        found([])


def test_curves_are_written_with_the_settings_in_use(tmp_path: Path) -> None:
    report = found(perfect())
    write_curves(report, tmp_path / "curves.csv")
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    marked = {(row["system"], row["decision"], row["setting"]) for row in rows if row["setting"]}
    assert ("predictor", "stop", "usual") in marked
    assert ("silence timer", "answer", "0.8 s") in marked
    assert ("silence timer", "stop", "0.2 s of speech") in marked
    assert {row["unit"] for row in rows} == {"probability", "s of silence", "s of speech"}
    timer = [row for row in rows if (row["system"], row["decision"]) == ("silence timer", "answer")]
    waits = [float(row["waited_s"]) for row in timer]
    assert waits == sorted(waits)
    pytest.importorskip("matplotlib")
    draw(report, tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    assert "silence timer" in text
    assert "usual" in text


# --- how scenes are heard


def test_the_answer_at_the_end_is_moved_and_nothing_else() -> None:
    one = scene(
        6.0,
        user=(spoken(3, 5, "a cat"),),
        assistant=(spoken(0, 2, "the mat"), spoken(5.2, 6.0, "a cat")),
        said=(
            said("train-1-0", 0.0, 2.0, "assistant"),
            said("train-0-0", 3.0, 2.0),
            said("train-1-1", 5.2, 0.8, "assistant"),
        ),
    )
    moved = later_answer(one)
    assert (moved.assistant[1].start, moved.assistant[1].end, moved.seconds) == (8.0, 8.8, 8.8)
    assert [part.at for part in moved.said] == [0.0, 3.0, 8.0]
    assert moved.assistant[0] == one.assistant[0]
    unanswered = scene(6.0, user=(spoken(3, 5, "a cat"),), assistant=(spoken(0, 2, "the mat"),))
    assert later_answer(unanswered) == unanswered


def test_a_probe_is_known_when_its_block_and_what_is_behind_it_are_there() -> None:
    schedule = Schedule(unit=768, step=4608, look_ahead=512)
    # A segment from 1 s on with three steps, another one from 4 s on with one.
    heard = np.array([1.144, 1.288, 1.432, 4.144])
    expected = [1.288 + 0.032, 1.288 + 0.032, 1.576 + 0.032, 4.288 + 0.032]
    np.testing.assert_allclose(known_at(heard, schedule), expected)


# --- the command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tiny preset, a predictor beside it, and scenes."""
    folder = tmp_path_factory.mktemp("duplex")
    preset = str(
        write_preset(
            folder,
            input_projector={"width": 24, "heads": 4},
            llm={"vocabulary_size": 320, "max_context": 512},
            duplex_predictor={"width": 16, "mlp_width": 32, "left_context": 20},
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINMO_HOME", str(folder / "home"))
        write_module(preset, "llm", random_module(preset, "llm", 1))
        write_module(preset, "voice_encoder", random_module(preset, "voice_encoder", 9))
        write_tokenizer(weights_folder(preset, "llm") / "tokenizer.json")
        write_listening(preset, 1)
        points = [duplex_hearing.OperatingPoint(0.5, 0.37, 0.6)]
        predictor = random_module(preset, "duplex_predictor", 3)
        write_duplex(preset, predictor, points, folder=folder / "out" / "duplex_predictor")
    make_scenes(folder / "scenes", write_speech(folder), 0.06, 0)
    return folder


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_HOME", str(place / "home"))
    monkeypatch.setattr(aligned, "packaged_set", lambda name: place / "packaged" / name)
    monkeypatch.setattr(duplex_weights, "packaged_predictor", lambda name: place / "none" / name)
    monkeypatch.setattr(suite, "measure", partial(measure, resamples=20))
    for module in (stage_module, duplex_hearing):
        monkeypatch.setattr(module, "open_gate", lambda preset, threshold: loud_gate())


def evaluate(place: Path, *arguments: str) -> Any:
    common = ("--preset", str(place / "tiny.toml"), "--threads", "1", "--limit", "4")
    return CliRunner().invoke(
        app, ["eval", "duplex", str(place / "scenes"), *common, *arguments], catch_exceptions=True
    )


@pytest.mark.usefixtures("home")
def test_the_command_measures_a_predictor_that_was_exported(place: Path, tmp_path: Path) -> None:
    arguments = (
        *("--predictor", str(place / "out"), "--states", str(tmp_path / "states"), "--json"),
        *("--curves", str(tmp_path / "curves.csv")),
    )
    result = evaluate(place, *arguments)
    assert result.exception is None, result.exception
    report = json.loads(result.stdout)
    assert report["scenes"] == 4
    assert report["step_seconds"] == pytest.approx(STEP)
    systems = [row["system"] for row in report["changes"]]
    assert list(dict.fromkeys(systems)) == [
        *("predictor", "predictor, no voice activity", "silence timer"),
    ]
    assert report["answers"][0]["setting"] == "eagerness 0.5"
    curve = report["curves"][0]
    assert curve["knob"][curve["marked"]["eagerness 0.5"]] == 0.37
    # Random weights say something, and not everywhere the same.
    assert len({round(taken, 3) for taken in curve["waited"]}) > 1
    assert [row["than"] for row in report["better"]] == systems[1:3]
    assert len(list((tmp_path / "states").rglob("*.npz"))) == 4
    assert (tmp_path / "curves.csv").exists()


@pytest.mark.usefixtures("home")
def test_without_a_predictor_the_timer_is_measured_alone(place: Path) -> None:
    result = evaluate(place, "--markdown")
    assert result.exception is None, result.exception
    assert "| silence timer | 0.8 s |" in result.stdout
    assert "better in both errors" not in result.stdout
    assert "| predictor" not in result.stdout


@pytest.mark.usefixtures("home")
def test_what_cannot_be_measured_is_refused(place: Path, tmp_path: Path) -> None:
    def refusal(*arguments: str) -> str:
        result = evaluate(place, *arguments)
        assert isinstance(result.exception, InputError), result.exception
        return str(result.exception)

    assert "has no full-duplex predictor" in refusal("--system", "predictor")
    assert "there are no scenes" in refusal("--set", "other")
    assert "its name must end in" in refusal("--picture", str(tmp_path / "curves.txt"))
    assert "there is no folder" in refusal("--curves", str(tmp_path / "no" / "curves.csv"))
    speech = place / "speech"
    result = CliRunner().invoke(
        app, ["eval", "duplex", str(speech), "--preset", str(place / "tiny.toml")]
    )
    assert "is no scene of a conversation" in str(result.exception)
