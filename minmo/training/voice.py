"""A voice of one's own: from a folder of recordings with their texts to a voice that speaks.

The voice that is there has learned from many speakers how speech sounds and how text is read. What
it lacks is one speaker, so each of its parts is trained further on that one alone, gently. Each
part is heard after its turn, in a sentence that the whole voice says with it.

    RUN/voice.json              what the run was begun with
    RUN/shards/                 the recordings, cleaned, at the voice's rate
    RUN/voice/                  the voice set as far as it is
    RUN/<stage>/                the run of each stage
    RUN/previews/<stage>.wav    the sentence after each stage; a stage that has one is done
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from minmo.audio.pcm import Samples, write_file
from minmo.presets import load_preset
from minmo.training.checkpoint import trained_weights
from minmo.training.config import TrainingConfig, load_config, with_changes
from minmo.training.data.tokens import name_tokens
from minmo.training.errors import TrainingError
from minmo.training.preview import say
from minmo.training.speech_tokens import tokenizer_sha256
from minmo.training.stage import Stage, stages
from minmo.training.trainer import train
from minmo.training.voice_recordings import ENOUGH_MINUTES, VoiceRecordings
from minmo.training.watch import Watch, duration
from minmo.weights import home
from minmo.weights.folder import replaced
from minmo.weights.modules import trained_against
from minmo.weights.spoken import SPOKEN_MODULES, TOKENIZER, missing_in_set, voice_set

SENTENCE = "Hello! This is how I sound so far. Shall we go on, or do you want to hear it again?"
"""What is said after each stage."""

_BEGUN, _SHARDS, _VOICE, _PREVIEWS = "voice.json", "shards", "voice", "previews"
# Seconds of one core's work for a minute of recordings, and of the measurements, the export and
# the preview that end a stage.
_READING_S, _NAMING_S, _ENDING_S = 1.0, 4.0, 90.0


@dataclass(frozen=True)
class Part:
    """A stage's turn.

    Attributes:
        stage: its name.
        recipe: its name, or the path of its YAML file.
        share: of the minutes.
        pace: factor of the recipe's learning rates, for modules that go on from the voice's.
        changes: of its configuration; `{run}` and `{speaker}` are filled in.
    """

    stage: str
    recipe: str
    share: float
    pace: float = 1.0
    changes: Mapping[str, str] = field(default_factory=dict)


PARTS = (
    Part("token2wav", "token2wav", 0.35, 0.3, {"options.speaker": "{speaker}"}),
    Part("vocoder", "vocoder", 0.35, 0.3, {"options.flow": "{run}/token2wav"}),
    Part("text-to-speech", "speak-voice", 0.3),
)


@dataclass(frozen=True)
class Wish:
    """What is wanted; a run goes on with what it was begun with.

    Attributes:
        recordings: folder of them, or their table.
        name: of the speaker.
        preset: whose voice it becomes: its name, or the path of its TOML file.
        minutes: of training.
        init: the voice set to begin with; None for the one that speaks here.
    """

    recordings: Path
    name: str
    preset: str = "mini"
    minutes: float = 120.0
    init: Path | None = None


@dataclass(frozen=True)
class Means:
    """What it is made with.

    Attributes:
        parts: the stages' turns.
        stages: by their names.
        naming: names the speech tokens of clips, as `name_tokens` does.
        saying: given preset, voice set and text, gives `[samples]` and their rate in Hz.
    """

    parts: Sequence[Part] = PARTS
    stages: Mapping[str, Stage] = field(default_factory=stages)
    naming: Callable[..., object] = name_tokens
    saying: Callable[[str, Path, str], tuple[Samples, int]] = say


@dataclass(frozen=True)
class VoiceRun:
    """A run, in its folder.

    Attributes:
        run: the folder.
        wish: what is wanted.
        watch: makes what shows a stage.
        shown: given what is done, makes what hears how many clips of how many are done.
        workers: shards whose speech tokens are named at once.
        means: what it is made with.
    """

    run: Path
    wish: Wish
    watch: Callable[[], Watch]
    shown: Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
    workers: int = 1
    means: Means = field(default_factory=Means)

    def go(self) -> int:
        """Makes the voice, or what is missing of it.

        Returns:
            0, or the number of the signal that ended it.

        Raises:
            TrainingError: the recordings, the run's folder or the voice to begin with cannot be
                used.
            DataError: so are the recordings.
            WeightsError: weights are missing, or cannot be written.
        """
        found, base = VoiceRecordings.find(self.wish.recordings), self._base()
        self._claim()
        if not self.voice.is_dir():
            with replaced(self.voice) as new:
                shutil.copytree(base, new, dirs_exist_ok=True)
        self._say_plan(found)
        preset, shards = load_preset(self.wish.preset), self.run / _SHARDS
        with self.shown("recordings") as told:
            found.bring(shards, self.wish.name, preset.vocoder.sample_rate_hz, told)
        with self.shown("speech tokens") as told:
            self.means.naming(
                [shards],
                ("train", "valid"),
                self.wish.preset,
                self.workers,
                lambda named, clips: told(named.clips, clips),
            )
        for part in self.means.parts:
            if signal := self._train(part):
                return signal
        return 0

    def install(self) -> Path:
        """Makes it the voice that the product speaks with, and returns its folder.

        Raises:
            TrainingError: it is not whole.
            WeightsError: it cannot be written.
        """
        missing = missing_in_set(self.voice)
        if missing or not all(self._preview(part).exists() for part in self.means.parts):
            raise TrainingError(f"the voice in {self.run} is not whole; run it again to go on")
        root = home.voice_folder(load_preset(self.wish.preset).name)
        with replaced(root) as new:
            shutil.copytree(self.voice, new, dirs_exist_ok=True)
        return root

    @property
    def previews(self) -> list[Path]:
        """The sentences that there are, in the order of the stages."""
        return [path for part in self.means.parts if (path := self._preview(part)).exists()]

    @property
    def voice(self) -> Path:
        """The voice set as far as it is."""
        return self.run / _VOICE

    def _preview(self, part: Part) -> Path:
        return self.run / _PREVIEWS / f"{part.stage}.wav"

    def _claim(self) -> None:
        """Keeps what the run is begun with, or holds it against what it was begun with."""
        path = self.run / _BEGUN
        wanted = json.loads(json.dumps(asdict(self.wish), default=str))
        try:
            begun = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            self.run.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(wanted, indent=2) + "\n", "utf-8")
            return
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} cannot be read ({error}); use another --out") from error
        changed = [
            f"{key}: {begun.get(key)} -> {value}"
            for key, value in wanted.items()
            if begun.get(key) != value
        ]
        if changed:
            raise TrainingError(
                f"{self.run} was begun with other options ({'; '.join(changed)}); use the same to "
                "go on, or another --out"
            )

    def _base(self) -> Path:
        """The voice to begin with, which knows the speech tokens that are named here."""
        wish = self.wish
        sha256 = tokenizer_sha256(wish.preset)
        base = self.voice if self.voice.is_dir() else wish.init or voice_set(wish.preset)
        if base is None:
            raise TrainingError(
                f"preset {wish.preset!r} has no voice to begin with, and one speaker's recordings "
                "are too few to learn speech from: train one on many speakers first (minmo train "
                "speech-tokenizer, token2wav, vocoder, text-to-speech), or give one with --init"
            )
        if missing := missing_in_set(base):
            raise TrainingError(f"{base} is no voice to begin with: it lacks {', '.join(missing)}")
        learned = trained_against(base / "flow_matching").get(TOKENIZER, sha256)
        if learned != sha256:
            raise TrainingError(
                f"the voice in {base} was trained with the speech tokenizer of sha256 {learned}, "
                f"and the one that is here is {sha256}: bring the voice's own"
            )
        return base

    def _say_plan(self, found: VoiceRecordings) -> None:
        """Says what will be done and about how long it takes."""
        tell, wish = self.watch().say, self.wish
        tell(f"{found.minutes:.0f} minutes of recordings at {found.lowest_hz} Hz or more")
        if found.minutes < ENOUGH_MINUTES:
            tell(f"{ENOUGH_MINUTES:g} minutes would make a better voice")
        if found.lowest_hz < load_preset(wish.preset).vocoder.sample_rate_hz:
            tell("what was recorded at a lower rate than the voice's will sound duller")
        left = [part for part in self.means.parts if not self._preview(part).exists()]
        work = {"recordings": _READING_S, "speech tokens": _NAMING_S / self.workers}
        seconds = {what: each * found.minutes for what, each in work.items()}
        for part in left:
            seconds[part.stage] = 60 * part.share * wish.minutes + _ENDING_S
        listed = ", ".join(f"{what} {duration(each)}" for what, each in seconds.items())
        tell(f"about {duration(sum(seconds.values()))}: {listed}")

    def _train(self, part: Part) -> int:
        """A stage's turn, or what is left of it; gives the signal that ended it, or 0."""
        preview, run = self._preview(part), self.run / part.stage
        stage, config, watch = self.means.stages[part.stage], self.config(part), self.watch()
        if preview.exists():
            watch.say(f"{part.stage}: done, {preview}")
            return 0
        watch.say(f"{part.stage}: {duration(60 * part.share * self.wish.minutes)}")
        with watch:
            outcome = train(config, stage, run, watch)
        if outcome.signal:
            return outcome.signal
        stage.export(config, trained_weights(run), self.voice)
        samples, rate_hz = self.means.saying(self.wish.preset, self.voice, SENTENCE)
        preview.parent.mkdir(exist_ok=True)
        write_file(preview, samples, rate_hz)
        heard = f"{len(samples) / rate_hz:.1f} s" if len(samples) else "it says nothing yet"
        watch.say(f"{part.stage}: {preview} ({heard})")
        return 0

    def config(self, part: Part) -> TrainingConfig:
        """The configuration of a stage's run."""
        config = load_config(part.recipe)
        rates = {
            module: rate * (part.pace if module in SPOKEN_MODULES else 1)
            for module, rate in config.optimizer.learning_rates.items()
        }
        own = {
            key: value.format(run=self.run.absolute(), speaker=self.wish.name)
            for key, value in part.changes.items()
        }
        given = {
            "preset": self.wish.preset,
            "init": str(self.voice.absolute()),
            "data.folders": {str((self.run / _SHARDS).absolute()): 1.0},
            "optimizer.learning_rates": rates,
            "schedule.minutes": part.share * self.wish.minutes,
            "schedule.steps": None,
        }
        return with_changes(config, given | own)
