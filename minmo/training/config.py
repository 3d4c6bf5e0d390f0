"""A run's configuration: YAML to frozen dataclasses, every key checked.

A recipe is a YAML file, packaged or the user's own; keys that it leaves out have their defaults.
`options` belongs to the stage, whose own dataclass checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.training.errors import TrainingError
from minmo.training.tables import build, join, similar

Range = tuple[float, float]

_RECIPES = "minmo.training.recipes"


def _require(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{key} is {value:g}; it is from {low:g} to {high:g}")


def _require_range(key: str, value: Range, low: float, high: float) -> None:
    if not low <= value[0] <= value[1] <= high:
        raise ValueError(
            f"{key} is [{value[0]:g}, {value[1]:g}]; it is two numbers from {low:g} to {high:g}, "
            "the lower one first"
        )


@dataclass(frozen=True)
class DataConfig:
    """What is heard, and how much at once.

    Attributes:
        folders: of Shar folders, with the weight of each.
        train: names of the sets to learn from, with the weight of each: the folders'
            `<name>.<number>` are read. Clips are drawn in proportion to both weights.
        valid: name of the set to measure on.
        seconds: of audio in a batch, padding included.
        longest: seconds; longer clips are left out.
        shortest: seconds; shorter clips are left out.
        pool: batches that are drawn together and sorted by length, so that a batch's clips are
            about as long as each other.
        silence: seconds before and behind each clip, drawn evenly from this range.
        audio: whether clips are heard at all; a stage that learns from their texts and their speech
            tokens does without.
        sample_rate: Hz at which clips are heard; other clips are resampled as they are read.
        workers: processes that decode and augment; 0 to do it between the steps.
        valid_clips: clips to measure on, at most.
    """

    folders: Mapping[str, float] = field(default_factory=dict)
    train: Mapping[str, float] = field(default_factory=lambda: {"train": 1.0})
    valid: str = "valid"
    seconds: float = 120.0
    longest: float = 20.0
    shortest: float = 0.3
    pool: int = 32
    silence: Range = (0.0, 0.6)
    audio: bool = True
    sample_rate: int = LISTENING_RATE_HZ
    workers: int = 1
    valid_clips: int = 400

    def __post_init__(self) -> None:
        for name, weight in {**self.folders, **self.train}.items():
            _require(f"the weight of {name}", weight, 1e-6, 1e6)
        if not self.train:
            raise ValueError("train names no set")
        _require("shortest", self.shortest, 0, 3600)
        _require("longest", self.longest, self.shortest, 3600)
        _require("seconds", self.seconds, 0.1, 1e6)
        _require_range("silence", self.silence, 0, 10)
        _require("pool", self.pool, 1, 4096)
        _require("sample_rate", self.sample_rate, 8_000, 48_000)
        _require("workers", self.workers, 0, 64)
        _require("valid_clips", self.valid_clips, 1, 1e6)


@dataclass(frozen=True)
class AugmentationConfig:
    """How often a clip is changed in each way, and how strongly.

    Attributes:
        clean: probability that a clip stays as it is.
        speed: probability of playing it faster or slower.
        speed_range: factors.
        reverberation: probability of a room.
        rt60: seconds in which the room's sound falls by 60 dB.
        noise: probability of noise.
        noise_kinds: each as likely: white, pink, brown, babble (other clips of the batch).
        snr: dB between speech and noise.
        band_limit: probability of a narrow channel: a telephone's or a low-pass.
        low_pass: Hz, where a low-pass ends.
        codec: probability of a codec's round trip.
        codecs: each as likely: mu_law (G.711, 8 kHz), narrow (8 kHz), opus.
        gain: probability of another level.
        gain_range: dB.
        clipping: probability of peaks being cut.
        clipping_range: share of the peak that is left.
        masking: probability of short stretches being zeroed.
        masks: most stretches.
        mask_seconds: the longest stretch.
    """

    clean: float = 0.1
    speed: float = 0.5
    speed_range: Range = (0.9, 1.1)
    reverberation: float = 0.4
    rt60: Range = (0.1, 0.9)
    noise: float = 0.6
    noise_kinds: tuple[Literal["white", "pink", "brown", "babble"], ...] = (
        "white",
        "pink",
        "brown",
        "babble",
    )
    snr: Range = (0.0, 30.0)
    band_limit: float = 0.2
    low_pass: Range = (2000.0, 7000.0)
    codec: float = 0.15
    codecs: tuple[Literal["mu_law", "narrow", "opus"], ...] = ("mu_law", "narrow")
    gain: float = 0.8
    gain_range: Range = (-20.0, 6.0)
    clipping: float = 0.05
    clipping_range: Range = (0.2, 0.8)
    masking: float = 0.2
    masks: int = 3
    mask_seconds: float = 0.1

    def __post_init__(self) -> None:
        for name in (
            *("clean", "speed", "reverberation", "noise", "band_limit", "codec", "gain"),
            *("clipping", "masking"),
        ):
            _require(name, getattr(self, name), 0, 1)
        _require_range("speed_range", self.speed_range, 0.5, 2)
        _require_range("rt60", self.rt60, 0.02, 3)
        _require_range("snr", self.snr, -20, 100)
        _require_range("low_pass", self.low_pass, 500, 8000)
        _require_range("gain_range", self.gain_range, -60, 40)
        _require_range("clipping_range", self.clipping_range, 0.01, 1)
        _require("masks", self.masks, 0, 100)
        _require("mask_seconds", self.mask_seconds, 0.001, 1)
        if not self.noise_kinds or not self.codecs:
            raise ValueError("noise_kinds and codecs name one at least; set noise or codec to 0")

    @property
    def changes_anything(self) -> bool:
        """Whether any clip is heard otherwise than it is."""
        return self.clean < 1 or self.speed > 0


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights are moved.

    Attributes:
        method: `adamw`, or `muon` (Jordan et al., 2024) for the matrices of Transformer layers,
            with AdamW for everything else.
        learning_rates: of each module that is trained, by its name; others are frozen.
        frozen: beginnings of names of parameters that stay as they are all the same, such as
            `voice_encoder.conv1`; `*` stands for anything.
        weight_decay: of matrices; norms and biases have none.
        betas: of AdamW's running means.
        momentum: of Muon.
        clip: largest norm of the gradient.
        accumulate: batches for each step.
        max_skipped: steps in a row that may be skipped for a loss or gradient that is not finite.
        ema: decay of the weights' running mean, which is what is measured and exported; 0 for none.
    """

    method: Literal["adamw", "muon"] = "adamw"
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = 0.95
    clip: float = 1.0
    accumulate: int = 1
    max_skipped: int = 25
    ema: float = 0.0

    def __post_init__(self) -> None:
        for name, rate in self.learning_rates.items():
            _require(f"learning_rates: {name}", rate, 1e-9, 1)
        _require("weight_decay", self.weight_decay, 0, 10)
        for beta in self.betas:
            _require("betas", beta, 0, 0.999999)
        _require("momentum", self.momentum, 0, 0.999999)
        _require("clip", self.clip, 1e-6, 1e6)
        _require("accumulate", self.accumulate, 1, 4096)
        _require("max_skipped", self.max_skipped, 1, 1e6)
        _require("ema", self.ema, 0, 0.999999)


@dataclass(frozen=True)
class ScheduleConfig:
    """How long it takes, and how the learning rate goes.

    Attributes:
        steps: after which it ends, or None.
        minutes: after which it ends, or None; whichever comes first.
        warmup: share of the run in which the learning rate rises.
        decay: how it falls afterwards.
        floor: share of the learning rate that is left at the end.
    """

    steps: int | None = None
    minutes: float | None = None
    warmup: float = 0.05
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.steps is not None:
            _require("steps", self.steps, 1, 1e12)
        if self.minutes is not None:
            _require("minutes", self.minutes, 0.001, 1e7)
        _require("warmup", self.warmup, 0, 1)
        _require("floor", self.floor, 0, 1)


@dataclass(frozen=True)
class WatchConfig:
    """What is written down, and how often.

    Attributes:
        log_steps: steps that a row of the curves is the mean of.
        valid_steps: steps between two measurements on the valid set, or None.
        valid_minutes: minutes between two, or None.
        save_steps: steps between two checkpoints, or None.
        save_minutes: minutes between two, or None.
        keep: checkpoints to keep, beside the best.
    """

    log_steps: int = 10
    valid_steps: int | None = None
    valid_minutes: float | None = 10.0
    save_steps: int | None = None
    save_minutes: float | None = 10.0
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("valid_steps", "save_steps"):
            if getattr(self, name) is not None:
                _require(name, getattr(self, name), 1, 1e12)
        for name in ("valid_minutes", "save_minutes"):
            if getattr(self, name) is not None:
                _require(name, getattr(self, name), 0.001, 1e7)
        _require("log_steps", self.log_steps, 1, 1e6)
        _require("keep", self.keep, 1, 1000)


@dataclass(frozen=True)
class TrainingConfig:
    """A run.

    Attributes:
        stage: what is trained.
        preset: whose modules: its name or the path of its TOML file.
        seed: of all that is drawn.
        init: folder that the weights come from (a run's or an export's), or None.
        precision: of the computation; weights stay float32.
        threads: of this process's computation; 0 for as many as there are cores, less the workers.
        data: what is heard.
        augmentation: how it is changed.
        optimizer: how weights are moved.
        schedule: how long.
        watch: what is written down.
        options: the stage's own.
    """

    stage: str
    preset: str = "mini"
    seed: int = 0
    init: str | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int = 0
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    watch: WatchConfig = WatchConfig()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require("seed", self.seed, 0, 2**31)
        _require("threads", self.threads, 0, 1024)
        if self.data.sample_rate != LISTENING_RATE_HZ and self.augmentation.changes_anything:
            raise ValueError(
                f"augmentation works at {LISTENING_RATE_HZ} Hz: with another data.sample_rate set "
                "augmentation.clean=1 and augmentation.speed=0"
            )


# What may differ when a run goes on: it changes neither what is learned nor what is compared.
_RUNTIME = frozenset({"threads", "data.workers", "watch.keep"})


def recipes() -> list[str]:
    """Names of the packaged recipes."""
    folder = files(_RECIPES)
    return sorted(one.name[:-5] for one in folder.iterdir() if one.name.endswith(".yaml"))


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Reads a recipe.

    Args:
        recipe: a packaged one's name, or the path of a YAML file.
        overrides: `key=value`, with dots between nested keys and a YAML value:
            `schedule.minutes=30`.

    Raises:
        TrainingError: there is no such recipe, or a key is unknown, missing or has a wrong value.
    """
    name = str(recipe)
    if name.endswith((".yaml", ".yml")) or "/" in name:
        try:
            text = Path(name).read_text()
        except OSError as error:
            raise TrainingError(f"cannot read recipe {name}: {error.strerror}") from error
    elif name in recipes():
        text = files(_RECIPES).joinpath(f"{name}.yaml").read_text()
    else:
        raise TrainingError(
            f"there is no recipe {name!r}{similar(name, recipes())}; there are: "
            f"{', '.join(recipes())}; or give the path of a YAML file"
        )
    table = _parse(text, name)
    if not isinstance(table, dict):
        raise TrainingError(f"recipe {name} is not a table of keys and values")
    for override in overrides:
        _override(table, override)
    return build(TrainingConfig, table, f"recipe {name}")


def with_changes(config: TrainingConfig, changes: Mapping[str, Any]) -> TrainingConfig:
    """The configuration with some values changed, by their dotted keys."""
    table = to_table(config)
    for key, value in changes.items():
        _set(table, key.split("."), value, key)
    return build(TrainingConfig, table, "the command line")


def to_table(config: object) -> dict[str, Any]:
    """A configuration as plain tables, lists and values, for YAML."""
    return cast(dict[str, Any], _plain(config))


def to_yaml(config: TrainingConfig) -> str:
    """A configuration as YAML that `load_config` reads."""
    text: str = yaml.safe_dump(to_table(config), sort_keys=False)
    return text


def changed_keys(old: TrainingConfig, new: TrainingConfig) -> list[str]:
    """`key: old value -> new value` of what differs and forbids that a run goes on."""
    before, after = _flat(to_table(old)), _flat(to_table(new))
    missing = object()
    return [
        f"{key}: {before.get(key, 'unset')} -> {after.get(key, 'unset')}"
        for key in sorted(before.keys() | after.keys())
        if key not in _RUNTIME and before.get(key, missing) != after.get(key, missing)
    ]


def replaced_data(config: TrainingConfig, folders: Mapping[str, float]) -> TrainingConfig:
    """The configuration with other folders of data."""
    return replace(config, data=replace(config.data, folders=dict(folders)))


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise TrainingError(f"{where} is not YAML: {line}") from error


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise TrainingError(
            f"--set {override!r} is not key=value, such as --set schedule.minutes=30"
        )
    _set(table, key.strip().split("."), _parse(text, f"--set {override}"), key)


def _set(table: dict[str, Any], keys: Sequence[str], value: Any, whole: str) -> None:
    for key in keys[:-1]:
        inner = table.get(key)
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise TrainingError(f"cannot set {whole}: {key} is a value, not a table")
        # A table of the recipe is copied, never changed.
        table[key] = dict(inner)
        table = table[key]
    table[keys[-1]] = value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return value


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, join(prefix, key))
        else:
            flat[join(prefix, key)] = value
    return flat
