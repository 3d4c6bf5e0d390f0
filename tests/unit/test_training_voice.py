"""A voice of one's own, step by step, with stages that learn in milliseconds."""

from __future__ import annotations

import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console
from typer.testing import CliRunner

from minmo.audio.pcm import read_file
from minmo.cli.train_voice import voice as command
from minmo.model.speaker import random_speaker
from minmo.presets import load_preset
from minmo.training import checkpoint, voice_recordings
from minmo.training.config import TrainingConfig
from minmo.training.data.errors import DataError
from minmo.training.errors import TrainingError
from minmo.training.preview import say
from minmo.training.shar import read_set
from minmo.training.speech_tokens import tokenizer_sha256
from minmo.training.stage import Weights
from minmo.training.voice import PARTS, SENTENCE, Means, Part, VoiceRun, Wish
from minmo.training.watch import Watch
from minmo.weights import spoken
from minmo.weights.modules import module_sha256, random_module, trained_against, write_module
from minmo.weights.speaker_file import load_speaker
from minmo.weights.speakers import speaker_files
from minmo.weights.spoken import SPOKEN_MODULES, check_spoken, write_spoken
from tests.unit.tiny_speaking import make_place
from tests.unit.tiny_syllables import RATE, Sound, syllables
from tests.unit.tiny_training import ToyStage, silent

RECIPE = """
stage: {stage}
data: {{sample_rate: 24000, silence: [0, 0], workers: 0, seconds: 4, pool: 2}}
augmentation: {{clean: 1.0, speed: 0.0}}
threads: 1
optimizer: {{learning_rates: {{net: 0.01, vocoder: 0.01}}}}
watch: {{valid_minutes: null, save_minutes: null}}
"""


class ToyPart(ToyStage):
    """A stage that also exports, and remembers what it was asked."""

    def __init__(self, name: str, hook: Callable[[int], float | None] = lambda call: None) -> None:
        super().__init__(hook)
        self.name = name
        self.configs: list[TrainingConfig] = []
        self.exported: list[Path | None] = []

    def check(self, config: TrainingConfig) -> None:
        self.configs.append(config)

    def build(self, config: TrainingConfig, weights: Weights, sources: Any) -> Any:
        trainee = super().build(config, weights, sources)
        # What has the name of a voice's module learns more gently.
        kept = {"net": trainee.net, "vocoder": trainee.other}
        trainee.kept = lambda: kept  # type: ignore[method-assign]
        return trainee

    def export(self, config: TrainingConfig, weights: Weights, folder: Path | None) -> Path:
        assert folder is not None
        self.exported.append(folder)
        (folder / f"{self.name}.done").write_text("")
        return folder


@dataclass
class Toys:
    """Two stages, and what they are asked."""

    folder: Path
    first: ToyPart = field(default_factory=lambda: ToyPart("first"))
    second: ToyPart = field(default_factory=lambda: ToyPart("second"))
    named: list[tuple[Sequence[Path], Sequence[str], str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def means(self) -> Means:
        parts = []
        for stage in (self.first, self.second):
            recipe = self.folder / f"{stage.name}.yaml"
            recipe.write_text(RECIPE.format(stage=stage.name))
            changes = {"options.speaker": "{speaker} of {run}"} if stage is self.first else {}
            parts.append(Part(stage.name, str(recipe), 0.5, 0.25, changes))
        stages = {stage.name: stage for stage in (self.first, self.second)}

        def naming(folders: Any, sets: Any, preset: str, workers: int, told: Any) -> None:
            self.named.append((folders, sets, preset))

        def saying(preset: str, root: Path, text: str) -> tuple[Sound, int]:
            self.said.append(text)
            done = len(list(root.glob("*.done")))
            return np.full(RATE * done, 0.1, np.float32), RATE

        return Means(parts, stages, naming, saying)


@contextmanager
def unshown(what: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tiny preset that speaks."""
    folder = tmp_path_factory.mktemp("voice")
    preset = make_place(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINMO_HOME", str(folder / "home"))
        made = {name: random_module(str(preset), name, 1) for name in SPOKEN_MODULES}
        somebody = random_speaker(
            load_preset(str(preset)).flow_matching.speaker_width, 0, "default"
        )
        write_spoken(str(preset), made, speakers=(somebody,))
    return folder


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_HOME", str(place / "home"))
    monkeypatch.setattr(spoken, "packaged_voice", lambda name: place / "packaged" / name)
    # An hour would not do for a test.
    monkeypatch.setattr(voice_recordings, "LEAST_MINUTES", 0.1)


def write_recordings(folder: Path, count: int = 8, rate: int = RATE, factor: float = 1.0) -> Path:
    """A folder of clips of about 1.4 s with their texts, as LJSpeech has them."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        speech = factor * syllables(1.2, 150 + number, rate)
        quiet = np.zeros(rate // 10, np.float32) + 1e-4 * np.sin(np.arange(rate // 10))
        clip = np.clip(np.concatenate((quiet, speech, quiet)), -1, 1)
        soundfile.write(folder / f"clip{number}.wav", clip, rate)
        rows.append(f"clip{number}|The text of clip {number}.|and how it is read\n")
    (folder / "metadata.csv").write_text("".join(rows))
    return folder


def run_of(place: Path, folder: Path, toys: Toys | None = None, **changes: Any) -> VoiceRun:
    wish = Wish(folder / "mine", "me", str(place / "tiny.toml"), 0.004)
    means = (toys or Toys(folder)).means
    return VoiceRun(folder / "run", replace(wish, **changes), silent, unshown, 1, means)


def test_recordings_become_a_voice_that_is_heard_after_each_stage(
    place: Path, tmp_path: Path
) -> None:
    write_recordings(tmp_path / "mine")
    toys = Toys(tmp_path)
    run = run_of(place, tmp_path, toys)
    assert run.go() == 0
    shards = tmp_path / "run/shards"
    clips = [*read_set(shards, "train"), *read_set(shards, "valid")]
    assert len(clips) == 8
    assert len(read_set(shards, "valid")) == 2
    assert {clip.speaker for clip in clips} == {"me"}
    assert "The text of clip 3." in {clip.text for clip in clips}
    assert toys.named == [([shards], ("train", "valid"), str(place / "tiny.toml"))]
    config = toys.first.configs[0]
    assert config.init == str(run.voice)
    assert config.data.folders == {str(shards): 1.0}
    assert config.schedule.minutes == pytest.approx(0.002)
    assert config.optimizer.learning_rates == {"net": 0.01, "vocoder": pytest.approx(0.0025)}
    assert config.options == {"speaker": f"me of {tmp_path / 'run'}"}
    assert toys.said == [SENTENCE, SENTENCE]
    assert [path.stem for path in run.previews] == ["first", "second"]
    # Each sentence is spoken with all that has been trained so far.
    assert [len(read_file(path)[0]) // RATE for path in run.previews] == [1, 2]
    assert toys.first.exported == toys.second.exported == [run.voice]
    assert {name for name in SPOKEN_MODULES if (run.voice / name).is_dir()} == set(SPOKEN_MODULES)


def test_what_is_done_is_not_done_again(place: Path, tmp_path: Path) -> None:
    write_recordings(tmp_path / "mine")
    assert run_of(place, tmp_path).go() == 0
    toys = Toys(tmp_path)
    assert run_of(place, tmp_path, toys).go() == 0
    assert (toys.first.configs, toys.second.configs, toys.said) == ([], [], [])


def test_it_goes_on_where_it_was_stopped(place: Path, tmp_path: Path) -> None:
    write_recordings(tmp_path / "mine")

    def stop(call: int) -> None:
        if call == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = Toys(tmp_path, second=ToyPart("second", stop))
    run = run_of(place, tmp_path, stopped, minutes=2.0)
    # The first stage would take a minute: what is done of it is told by its preview.
    run.run.mkdir()
    (run.run / "previews").mkdir()
    (run.run / "previews/first.wav").write_bytes(b"")
    assert run.go() == signal.SIGTERM
    assert [path.stem for path in run.previews] == ["first"]
    assert stopped.second.exported == []
    before = checkpoint.latest(run.run / "second")
    assert before is not None
    with pytest.raises(TrainingError, match="is not whole; run it again to go on"):
        run.install()
    again = Toys(tmp_path, second=ToyPart("second", lambda call: stop(call + 1)))
    assert run_of(place, tmp_path, again, minutes=2.0).go() == signal.SIGTERM
    after = checkpoint.latest(run.run / "second")
    assert after is not None
    assert checkpoint.read_state(after).step == checkpoint.read_state(before).step + 1
    assert again.first.configs == []


def test_a_run_goes_on_with_what_it_was_begun_with(place: Path, tmp_path: Path) -> None:
    write_recordings(tmp_path / "mine")
    assert run_of(place, tmp_path).go() == 0
    with pytest.raises(TrainingError, match=r"was begun with other options \(minutes: 0.004 -> 9"):
        run_of(place, tmp_path, minutes=9.0).go()
    (tmp_path / "run/voice.json").write_text("{")
    with pytest.raises(TrainingError, match=r"voice.json cannot be read .*use another --out"):
        run_of(place, tmp_path).go()


def test_the_product_speaks_with_it_when_it_is_installed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recordings(tmp_path / "mine")
    run = run_of(place, tmp_path)
    run.go()
    installed = place / "home/weights/tiny/voice"
    before = {path.name for path in installed.iterdir()}
    assert run.install() == installed
    assert {path.name for path in installed.iterdir()} - before == {"first.done", "second.done"}
    for name in ("first.done", "second.done"):
        (installed / name).unlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 2}, r"has 0\.0 minutes of speech to learn from; 0\.1 are the least"),
        ({"rate": 8000}, r"clip0.wav is at 8000 Hz; a voice needs 16000 at least"),
        ({"factor": 40.0}, r"8 of the 8 recordings of .* are of no use: 8 clipped; record with"),
        ({"factor": 0.0}, r"8 of the 8 recordings of .* are of no use: 8 silent"),
    ],
)
def test_recordings_that_make_no_voice_are_refused(
    place: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_recordings(tmp_path / "mine", **changes)
    with pytest.raises(TrainingError, match=message):
        run_of(place, tmp_path).go()


def test_without_texts_or_with_several_speakers_there_is_no_voice(
    place: Path, tmp_path: Path
) -> None:
    mine = write_recordings(tmp_path / "mine")
    table = mine / "metadata.csv"
    rows = "".join(f"clip{number},Text {number}.,{'ab'[number % 2]}\n" for number in range(8))
    table.write_text(f"id,text,speaker\n{rows}")
    with pytest.raises(TrainingError, match=r"has 2 speakers \('a', 'b'\); a voice is of one"):
        run_of(place, tmp_path).go()
    table.unlink()
    with pytest.raises(TrainingError, match=r"the 8 recordings of .* have no texts"):
        run_of(place, tmp_path).go()
    for number in range(8):
        (mine / f"clip{number}.txt").write_text(f"Text {number}.")
    assert run_of(place, tmp_path).go() == 0
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no recordings"):
        run_of(place, tmp_path, recordings=tmp_path / "none").go()


def test_a_voice_is_needed_to_begin_with(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recordings(tmp_path / "mine")
    with pytest.raises(TrainingError, match="is no voice to begin with: it lacks output_projector"):
        run_of(place, tmp_path, init=tmp_path).go()
    monkeypatch.setattr("minmo.training.voice.voice_set", lambda preset: None)
    with pytest.raises(TrainingError, match=r"has no voice to begin with, .*train one on many"):
        run_of(place, tmp_path).go()
    # Nothing was begun: another try may be with other options.
    assert not (tmp_path / "run").exists()


def test_a_voice_of_other_speech_tokens_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recordings(tmp_path / "mine")
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    preset = str(place / "tiny.toml")
    for name in ("voice_encoder", "speech_tokenizer"):
        write_module(preset, name, random_module(preset, name, 7))
    base = place / "home/weights/tiny/voice"
    with pytest.raises(TrainingError, match="was trained with the speech tokenizer of sha256"):
        run_of(place, tmp_path, init=base).go()


def test_the_stages_of_the_real_chain_take_what_they_are_given(place: Path, tmp_path: Path) -> None:
    wish = Wish(tmp_path, "me", str(place / "tiny.toml"))
    run = VoiceRun(tmp_path / "run", wish, silent, unshown)
    assert sum(part.share for part in PARTS) == pytest.approx(1)
    for part in PARTS:
        config = run.config(part)
        assert config.stage == part.stage
        run.means.stages[part.stage].check(config)


def test_a_voice_set_says_a_sentence(place: Path) -> None:
    root = place / "home/weights/tiny/voice"
    samples, rate = say(str(place / "tiny.toml"), root, "the cat sat on the mat")
    assert rate == RATE
    assert len(samples) > 0
    assert len(samples) % 960 == 0
    assert np.isfinite(samples).all()
    assert np.array_equal(say(str(place / "tiny.toml"), root, "the cat sat on the mat")[0], samples)


def test_the_command_explains_itself_and_what_is_wrong(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    app = typer.Typer()
    app.command()(command)
    shown = CliRunner().invoke(app, ["--help"])
    assert "Example: minmo train voice --recordings" in " ".join(shown.stdout.split())
    mine = write_recordings(tmp_path / "mine", 2)
    monkeypatch.chdir(tmp_path)
    given = ["--recordings", str(mine), "--preset", str(place / "tiny.toml")]
    done = CliRunner().invoke(app, given)
    assert type(done.exception).__name__ == "InputError"
    assert "minutes of speech to learn from" in str(done.exception)
    done = CliRunner().invoke(app, [*given, "--name", "a b"])
    assert "--name is 'a b': it must be one word" in str(done.exception)


def test_the_real_stages_make_a_voice_that_the_product_speaks_with(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it at tiny size: shards, speech tokens, three stages, their previews, the set."""
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    preset = str(place / "tiny.toml")
    shutil.copytree(place / "home", tmp_path / "home")
    base = tmp_path / "home/weights/tiny/voice"
    write_recordings(tmp_path / "mine")
    told: list[tuple[str, int, int]] = []
    said = io.StringIO()

    @contextmanager
    def shown(what: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: told.append((what, done, total))

    wish = Wish(tmp_path / "mine", "me", preset, 0.01)
    console = Console(file=said, width=200)
    run = VoiceRun(tmp_path / "run", wish, lambda: Watch(console), shown)
    before = {name: module_sha256(preset, name, base / name) for name in SPOKEN_MODULES}
    assert run.go() == 0
    assert [path.stem for path in run.previews] == [part.stage for part in PARTS]
    for path in run.previews:
        samples, rate = read_file(path)
        assert rate == RATE
        assert len(samples) > 0
        assert str(path) in said.getvalue()
    assert {what for what, _, _ in told} == {"recordings", "speech tokens"}
    assert told[-1] == ("speech tokens", 8, 8)
    # Each module has gone on from the voice that there was, with its tokens and its LLM.
    after = {name: module_sha256(preset, name, run.voice / name) for name in SPOKEN_MODULES}
    assert not set(after.values()) & set(before.values())
    tokenizer = tokenizer_sha256(preset)
    for name in ("flow_matching", "voice_token_lm", "output_projector"):
        assert trained_against(run.voice / name)["speech_tokenizer"] == tokenizer
    assert run.install() == base
    check_spoken(preset)
    (speaker,) = speaker_files("tiny")
    assert load_speaker(speaker).name == "default"
    samples, rate = say(preset, base, SENTENCE)
    assert np.array_equal(samples, say(preset, run.voice, SENTENCE)[0])
    # What is done is not done again.
    lines = len(said.getvalue().splitlines())
    assert run.go() == 0
    assert said.getvalue().splitlines()[lines:][-1].endswith("text-to-speech.wav")
