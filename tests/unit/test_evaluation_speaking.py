"""The suites of speaking, on voices and judges whose mistakes are known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from minmo.audio.pcm import Samples, write_file
from minmo.cli.errors import InputError
from minmo.cli.main import app
from minmo.engine.prompt import ChatFormat
from minmo.engine.spoken_text import spoken_text
from minmo.engine.voice import InstructError
from minmo.engine.voice_decoder.engine import EngineOptions, VoiceEngine
from minmo.engine.voice_decoder.modules import SemanticVectors
from minmo.engine.voice_decoder.neural_voice import NeuralVoice
from minmo.evaluation import instruct, judges, speech_to_speech, tts
from minmo.evaluation.answering import SYSTEM_PROMPT, Answer, Answerer
from minmo.evaluation.clips import Choice, Clip, ClipSet, read_sets
from minmo.evaluation.errors import EvaluationError
from minmo.evaluation.judges import Judgement, Likeness, Moonshine, Quality, Whisper
from minmo.evaluation.manner import manner_of
from minmo.evaluation.results import without_nan
from minmo.evaluation.speaking import NeuralSpeaker, PicoSpeaker, Spoken
from minmo.evaluation.systems import Turn
from minmo.evaluation.takes import Takes, border_step
from minmo.model.llm import Llm
from minmo.model.output_projector import OutputProjector, OutputProjectorConfig
from minmo.model.speaker import random_speaker
from tests.listening import weights_or_skip
from tests.unit.evaluation_modules import chat, llm, noise
from tests.unit.tiny_voice import LM, SPEAKER_WIDTH, tiny_voice

RATE = 16_000


def voice(seconds: float, pitch: float = 200.0, level: float = 0.1, pause: float = 0.2) -> Samples:
    """Something like a vowel, with silence around it."""
    times = np.arange(int(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * pitch * k * times) / k for k in range(1, 12))
    silence = np.zeros(int(pause * RATE))
    return np.concatenate([silence, level * tone, silence]).astype(np.float32)


@dataclass
class Scripted:
    """Says everything as one sound."""

    name: str
    silent: Sequence[str] = ()
    made_with: Mapping[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def say(self, text: str, instruct: str = "") -> Spoken:
        self.said.append(text)
        if text in self.silent:
            return Spoken(np.zeros(0, np.float32), RATE, 0.01)
        samples = voice(0.6, pause=0.2)
        return Spoken(samples, RATE, 0.25, 0.1 + 0.1 * len(self.said), [4000, 8000])

    def answer(self, turn: Turn, answer: Answer) -> Spoken:
        return self.say(answer.text)


@dataclass
class Hears:
    """A recogniser that hears what it is told to."""

    name: str
    texts: Mapping[str, str] = field(default_factory=dict)
    heard: list[tuple[str, int]] = field(default_factory=list)
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def judge(self, clip: Clip, samples: Samples) -> Judgement:
        self.heard.append((clip.id, len(samples)))
        return self.texts.get(clip.id, clip.text) if len(samples) else ""


class Rates(Hears):
    """Gives a figure: 3 for the first, 4 for the second; nothing for silence."""

    def judge(self, clip: Clip, samples: Samples) -> Judgement:
        super().judge(clip, samples)
        return 2.0 + len(self.heard) if len(samples) else None


def texts() -> ClipSet:
    return ClipSet("few", [Clip("few", "a", "one two three"), Clip("few", "b", "four")])


def test_texts_are_said_heard_and_rated(tmp_path: Path) -> None:
    good, bad = Scripted("good"), Scripted("bad", silent=["four"])
    ears = Hears("ears", {"a": "one to three"})
    report = tts.measure([texts()], [good, bad], [ears, Rates("stars")])
    first, second = report.rows
    assert first.wer["ears"].value == pytest.approx(1 / 4)
    assert second.wer["ears"].value == pytest.approx(2 / 4)
    assert first.figures["stars"].value == pytest.approx(3.5)
    assert (first.clips, first.unsaid, first.borders) == (2, 0, 4)
    assert (second.clips, second.unsaid) == (2, 1)
    assert first.seconds == pytest.approx(2.0)
    assert first.real_time_factor == pytest.approx(0.25)
    assert first.first_audio_ms == pytest.approx(250)
    (apart,) = report.differences
    assert (apart.system, apart.than, apart.recogniser) == ("good", "bad", "ears")
    assert apart.wer.value == pytest.approx(-1 / 4)
    tables = report.tables()
    assert all(len(row) == len(table.header) for table in tables for row in table.rows)
    assert "WER % ears (95 %)" in tables[0].header
    json.dumps(without_nan(report.to_json()), allow_nan=False)


def test_a_second_run_says_and_hears_what_is_missing(tmp_path: Path) -> None:
    run: dict[str, Any] = {"folder": tmp_path}
    whole = texts()
    first, ears = Scripted("good"), Hears("ears")
    tts.measure([replace(whole, clips=whole.clips[:1])], [first], [ears], **run)
    second, others = Scripted("good"), Hears("others")
    report = tts.measure([whole], [second], [ears, others], **run)
    assert (first.said, second.said) == (["one two three"], ["four"])
    # Another judge hears the kept audio: 16 bits of it, and all of it.
    assert [name for name, _ in ears.heard] == ["a", "b"]
    assert others.heard == ears.heard
    assert report.rows[0].wer["others"].value == 0
    (tmp_path / "tts/few/good/audio/a.flac").unlink()
    third = Scripted("good")
    tts.measure([whole], [third], [ears], **run)
    assert third.said == ["one two three"]
    with pytest.raises(EvaluationError, match="made with another weights"):
        tts.measure([whole], [Scripted("good", made_with={"weights": "x"})], [ears], **run)


def test_recordings_stand_beside_what_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "people"
    folder.mkdir()
    lines = ["id,split,text"]
    for name, split in (("one", "test"), ("two", "test"), ("three", "train")):
        write_file(folder / f"{name}.wav", noise(4800, seed=len(name)), 24_000)
        lines.append(f"{name},{split},{name}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    found = read_sets([folder], Choice(splits=frozenset({"test"})))
    ears = Hears("ears")
    report = tts.measure(found, [Scripted("good"), tts.Recordings()], [ears])
    made, people = report.rows
    assert [row.clips for row in report.rows] == [2, 2]
    assert people.seconds == pytest.approx(0.4)
    assert not np.isfinite(people.real_time_factor)
    assert ears.heard[2:] == [("one", 3200), ("two", 3200)]
    assert made.system == "good"
    with pytest.raises(EvaluationError, match="no recordings"):
        tts.measure([texts()], [tts.Recordings()], [ears])


def test_the_sentences_that_minmo_brings_are_plain_and_apart() -> None:
    found = tts.held_out()
    said = [clip.text for clip in found.clips]
    assert len(set(said)) == 100
    assert all(text.isascii() and not any(map(str.isdigit, text)) for text in said)
    assert len(tts.held_out(limit=7).clips) == 7


def test_another_text_in_a_line_is_another_clip(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\n\ntwo\n")
    before = tts.texts_of("texts", path).clips
    path.write_text("one\n\nthree\n")
    after = tts.texts_of("texts", path).clips
    assert [clip.text for clip in before] == ["one", "two"]
    assert before[0] == after[0]
    assert before[1].id != after[1].id


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_without_texts_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match="a text a line"):
        tts.texts_of("texts", path)


def test_a_click_stands_out_where_chunks_meet() -> None:
    smooth = np.sin(np.arange(48_000) / 20).astype(np.float32)
    step = border_step(smooth, [16_000, 32_000])
    assert step is not None
    assert 0 <= step <= 1
    clicks = smooth.copy()
    clicks[32_000:] += 0.2
    found = border_step(clicks, [16_000, 32_000])
    assert found is not None
    assert found > 3
    # A click elsewhere is no matter of chunks, and is not what they are measured by.
    assert border_step(clicks, [16_000]) == pytest.approx(border_step(smooth, [16_000]), rel=0.01)
    assert border_step(smooth, []) is None
    assert border_step(np.zeros(100, np.float32), [50]) is None


def test_manner_is_measured_where_there_is_speech() -> None:
    usual = manner_of(voice(1.0), RATE)
    other = manner_of(voice(0.5, pitch=150, level=0.2, pause=0.7), RATE)
    assert usual is not None
    assert other is not None
    assert (usual.seconds, other.seconds) == (
        pytest.approx(1, abs=0.05),
        pytest.approx(0.5, abs=0.05),
    )
    assert other.loudness_db - usual.loudness_db == pytest.approx(6.02, abs=0.1)
    assert usual.pitch_hz == pytest.approx(200, rel=0.02)
    assert other.pitch_hz == pytest.approx(150, rel=0.02)
    assert manner_of(np.zeros(RATE, np.float32), RATE) is None
    assert manner_of(np.zeros(0, np.float32), RATE) is None


class Obeys(Scripted):
    """Does what the wordings of the suite ask for."""

    def say(self, text: str, instruct: str = "") -> Spoken:
        self.said.append(instruct)
        style = next((s.name for s in STYLES if instruct in s.wordings), "")
        seconds = {"slow": 0.8, "fast": 0.4}.get(style, 0.6)
        level = {"loud": 0.2, "quiet": 0.05}.get(style, 0.1)
        pitch = {"high": 240.0, "deep": 170.0}.get(style, 200.0)
        return Spoken(voice(seconds, pitch, level), RATE, 0.1)


class Deaf(Scripted):
    """Hears no instruction."""

    def say(self, text: str, instruct: str = "") -> Spoken:
        return Spoken(voice(0.6), RATE, 0.1)


class Refuses(Scripted):
    """Knows none."""

    def say(self, text: str, instruct: str = "") -> Spoken:
        if instruct:
            raise InstructError("never heard of")
        return Spoken(voice(0.6), RATE, 0.1)


STYLES = instruct.STYLES


def test_instructions_are_followed_where_it_is_measured(tmp_path: Path) -> None:
    systems = [Obeys("obeys"), Deaf("deaf"), Refuses("refuses")]
    run: dict[str, Any] = {"trials": 12, "folder": tmp_path}
    report = instruct.measure(texts(), systems, **run)
    rows = {(row.system, row.style): row for row in report.rows}
    assert {style for _, style in rows} == {*(style.name for style in STYLES), "all"}
    assert rows["obeys", "all"].followed.value == 1
    assert rows["obeys", "all"].trials == 12
    assert all(rows["obeys", style.name].trials == 2 for style in STYLES)
    assert rows["deaf", "all"].followed.value == 0
    assert rows["refuses", "all"].followed.value == 0
    assert rows["obeys", "slow"].change == pytest.approx(np.log(0.6 / 0.8), abs=0.1)
    assert rows["obeys", "loud"].change == pytest.approx(6.02, abs=0.1)
    assert rows["obeys", "high"].change == pytest.approx(12 * np.log2(1.2), abs=0.2)
    (table,) = report.tables()
    assert all(len(row) == len(table.header) for row in table.rows)
    assert any("dB" in cell for row in table.rows for cell in row)
    again = Obeys("obeys")
    assert instruct.measure(texts(), [again], **run).rows[:6] == report.rows[:6]
    assert again.said == []


def test_every_text_is_said_in_every_style_before_the_next() -> None:
    trials = instruct.trials_of(texts().clips, 13)
    assert [trial.text.id for trial in trials] == ["a"] * 6 + ["b"] * 6 + ["a"]
    assert [trial.style.name for trial in trials[:6]] == [style.name for style in STYLES]
    assert trials[0].wording != trials[6].wording
    assert len({trial.id for trial in trials}) == 13
    with pytest.raises(EvaluationError, match="no texts"):
        instruct.trials_of([], 3)


def test_pico_knows_every_wording() -> None:
    from minmo.engine.pico import manner_of as pico_manner

    neutral = pico_manner("")
    for style in STYLES:
        assert all(pico_manner(wording) != neutral for wording in style.wordings)


class Parrot(Answerer):
    """Answers with what it reads."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def answers(self, turns):  # type: ignore[no-untyped-def]
        for key, turn in turns:
            self.asked.append(turn.text)
            yield key, Answer(turn.text, [1])


@dataclass
class TrueEars:
    """Hears what is said."""

    name: str = "ears"
    uses: Sequence[str] = ()

    def listen(self, clip: Clip, samples: Samples) -> Turn:
        return Turn(clip.text)


def test_spoken_answers_count_as_they_are_heard(tmp_path: Path) -> None:
    folder = tmp_path / "quiz"
    folder.mkdir()
    for name in ("one", "two"):
        write_file(folder / f"{name}.wav", noise(1600), RATE)
    (folder / "quiz.csv").write_text("id,text,answers\none,The cat,cat\ntwo,A dog,dog\n")
    found = read_sets([folder], Choice(with_answers=True))
    parrot, speaker = Parrot(), Scripted("mouth")
    hears = Hears("hears", {"two": "a dock"})
    run: dict[str, Any] = {"made_with": {}, "folder": tmp_path / "out"}
    report = speech_to_speech.measure(found, TrueEars(), parrot, [speaker], [hears], **run)
    (row,) = report.rows
    assert (row.in_text.value, row.as_heard.value, row.ratio_to_text.value) == (1, 0.5, 0.5)
    assert row.wer.value == pytest.approx(1 / 4)
    assert (row.clips, row.seconds) == (2, pytest.approx(2.0))
    assert speaker.said == ["The cat", "A dog"]
    (table,) = report.tables()
    assert len(table.rows[0]) == len(table.header)
    again = speech_to_speech.measure(found, TrueEars(), parrot, [speaker], [hears], **run)
    assert again.rows == report.rows
    assert len(parrot.asked) == len(speaker.said) == 2


@pytest.fixture(scope="module")
def model() -> Llm:
    return llm()


@pytest.fixture(scope="module")
def engine(model: Llm) -> Iterator[VoiceEngine]:
    width = model.config.width
    torch.manual_seed(1)
    projector = OutputProjector(OutputProjectorConfig(width, LM.width)).eval().requires_grad_(False)
    table = model.embed(torch.arange(model.config.vocabulary_size)).float()
    modules = replace(tiny_voice(end_bias=2.5), semantic=SemanticVectors(projector, table))
    engine = VoiceEngine(modules, EngineOptions(slots=1, context=512))
    engine.start()
    yield engine
    engine.stop()


def speaker_of(engine: VoiceEngine, model: Llm, answerer: Answerer | None = None) -> NeuralSpeaker:
    return NeuralSpeaker(
        NeuralVoice(engine, random_speaker(SPEAKER_WIDTH)), chat(), {}, model, answerer
    )


def test_the_network_reads_a_text_as_the_llm_s_own_answer(engine: VoiceEngine, model: Llm) -> None:
    speaker = speaker_of(engine, model)
    said = speaker.say("hello there")
    assert len(said.samples) > 0
    assert said.rate_hz == 24_000
    assert said.first_audio_s is not None
    assert said.compute_s is not None
    assert 0 < said.first_audio_s <= said.compute_s
    assert all(0 < border < len(said.samples) for border in said.borders)
    np.testing.assert_array_equal(speaker.say("hello there").samples, said.samples)
    # What was asked for is read before.
    asked = speaker.say("hello there", "slowly").samples
    assert len(asked) != len(said.samples) or not np.array_equal(asked, said.samples)
    assert len(speaker.say("").samples) == 0


def test_an_answer_is_read_with_the_states_that_predicted_it(model: Llm) -> None:
    form: ChatFormat = chat()
    answerer = Answerer(model, form, SYSTEM_PROMPT, 1, 6)
    answer = form.text("yes, so it is")
    query, states = answerer.read_answer(Turn("is it so"), answer)
    laid_out = spoken_text(form, "yes, so it is", "is it so", SYSTEM_PROMPT)
    rows = model.embed(torch.tensor(laid_out.tokens))
    whole = model.forward_sequence(rows[None])[0].float()
    np.testing.assert_allclose(states, whole[list(laid_out.predicting)], atol=1e-4)
    np.testing.assert_allclose(query.hidden_states, whole[list(laid_out.query)], atol=1e-4)
    np.testing.assert_allclose(query.embeddings, rows[list(laid_out.query)].float())
    with pytest.raises(EvaluationError, match="positions of the LLM"):
        answerer.read_answer(Turn("is it so"), answer * 40)


def test_the_network_answers_behind_the_question(engine: VoiceEngine, model: Llm) -> None:
    form = chat()
    answerer = Answerer(model, form, SYSTEM_PROMPT, 1, 16)
    speaker = speaker_of(engine, model, answerer)
    answer = Answer("yes, it is", form.text("yes, it is"))
    said = speaker.answer(Turn("is it so"), answer).samples
    np.testing.assert_array_equal(said, speaker.say("yes, it is", "is it so").samples)
    assert len(speaker.answer(Turn("is it so"), Answer("", [])).samples) == 0


def test_likeness_is_to_the_others_of_the_speaker() -> None:
    vectors = {1: [1.0, 0.0], 2: [0.0, 1.0], 3: None}

    def encoder(samples: Samples) -> Any:
        found = vectors[len(samples)]
        return None if found is None else np.array(found, np.float32)

    clips = {"one": np.zeros(1), "two": np.zeros(2), "three": np.zeros(3)}
    likeness = Likeness(clips, encoder)  # type: ignore[arg-type]
    one = np.zeros(1, np.float32)
    assert likeness.judge(Clip("s", "other", ""), one) == pytest.approx(0.7071, abs=1e-4)
    assert likeness.judge(Clip("s", "one", ""), one) == 0
    assert likeness.judge(Clip("s", "x", ""), np.zeros(3, np.float32)) is None
    assert likeness.made_with["speaker"] == ["one", "two"]
    with pytest.raises(EvaluationError, match="nobody speaks"):
        Likeness({"three": np.zeros(3)}, encoder)  # type: ignore[arg-type]


@pytest.mark.parametrize("judge", [Whisper, Quality, judges.Resemblyzer])
def test_a_judge_that_is_not_installed_says_what_to_install(
    judge: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r"pip install 'minmo\[judge\]'"):
        judge()


def test_nothing_is_heard_in_nothing() -> None:
    judge = Moonshine(None, {})  # type: ignore[arg-type]
    assert judge.judge(Clip("s", "a", "hello"), np.zeros(100, np.float32)) == ""


def test_damaged_takes_are_refused(tmp_path: Path) -> None:
    with Takes(tmp_path, {}) as takes:
        takes.add("a/b", Scripted("good").say("one"))
        assert takes.audio("a/b")[1] == RATE
    (tmp_path / "spoken.jsonl").write_text("nonsense\n")
    with pytest.raises(EvaluationError, match="no result"):
        Takes(tmp_path, {})


def test_pico_says_texts_and_answers() -> None:
    from minmo.evaluation.voices import pico

    with pico() as speaker:
        assert isinstance(speaker, PicoSpeaker)
        slow, usual = speaker.say("one two three", "slowly"), speaker.say("one two three")
        assert len(slow.samples) > 1.1 * len(usual.samples)
        assert usual.first_audio_s is None
        answer = speaker.answer(Turn("what"), Answer("one two three", [1]))
        np.testing.assert_array_equal(answer.samples, usual.samples)
        assert len(speaker.say("!!!").samples) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tts", "--judge", "similarity", "--system", "pico"], "--like FOLDER"),
        (["tts", "--texts", "README.md", "--recordings", "tests/data"], "leave --texts out"),
        (["speech-to-speech", "tests/data"], "none has right answers"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, ["eval", *arguments], catch_exceptions=False)


def test_pico_is_understood_by_the_published_recogniser(tmp_path: Path) -> None:
    weights_or_skip("voice_encoder")
    arguments = [
        "tts",
        "--system",
        "pico",
        "--judge",
        "moonshine",
        "--limit",
        "2",
        "--threads",
        "1",
    ]
    done = CliRunner().invoke(
        app, ["eval", *arguments, "--out", str(tmp_path), "--json"], catch_exceptions=False
    )
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["set"], row["system"], row["clips"], row["unsaid"]) == (
        "held-out",
        "SVOX Pico",
        2,
        0,
    )
    assert row["wer"]["Moonshine"]["value"] < 0.5
    assert len(list((tmp_path / "tts/held-out/SVOX-Pico/audio").glob("*.flac"))) == 2
