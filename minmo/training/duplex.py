"""The stage duplex: the predictor learns who should speak (paper, section 3.4, the last stage).

The listening modules and the LLM are frozen; the predictor alone moves, on what they make of
simulated conversations (`minmo data duplex`), labelled by rule (`minmo.model.duplex_labels`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple, cast
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minmo.audio.vad import SileroVad
from minmo.engine.prompt import ChatFormat
from minmo.loading import load_ears
from minmo.model.duplex_labels import Turn, duplex_labels
from minmo.model.duplex_predictor import QUESTIONS, DuplexPredictor, duplex_loss
from minmo.model.duplex_scores import (
    Scored,
    best_threshold,
    count_changes,
    share_below,
)
from minmo.model.llm import Llm
from minmo.model.operating_points import OperatingPoint
from minmo.presets import build_module, load_preset
from minmo.training.batches import Batch, Source
from minmo.training.config import TrainingConfig
from minmo.training.data.duplex_rendering import render
from minmo.training.data.duplex_scenes import Scene, scene_of
from minmo.training.duplex_gate import PREROLL_SECONDS, Gate, silero_gate
from minmo.training.duplex_reading import SceneReader, SceneStates
from minmo.training.duplex_states import StatesStore, digest_of
from minmo.training.errors import TrainingError
from minmo.training.filling import fill
from minmo.training.means import WeightedMeans
from minmo.training.shar import SCENE, Clip
from minmo.training.stage import Stage, Trainee, Weights
from minmo.training.tables import build
from minmo.weights.aligned import aligned_folder, check_aligned
from minmo.weights.duplex import DUPLEX_MODULE, listening_hashes, write_duplex
from minmo.weights.errors import WeightsError
from minmo.weights.load import load_state_dict, weights_folder

POINTS = "duplex_points"
"""What a checkpoint holds beside the predictor: its thresholds."""
OFFSETS = (1, 5, 10)
"""Steps K by which a predicted change may miss the true one (paper, Table 22)."""
# Patient: a change that is none costs four times a change that is missed; eager: the reverse.
_EAGERNESS_BETAS = ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0))
# Who takes the floor a second too early does not find the end of a turn: thresholds are chosen by
# what comes in time or later.
_EARLY = 1
_CANDIDATES = tuple(round(number / 50, 2) for number in range(1, 50))
# A back-channel may be understood as one a moment after its end.
_AFTER_BACK_CHANNEL_SECONDS = 0.5
_NAMES = ("assistant", "user")


@dataclass(frozen=True)
class DuplexOptions:
    """What the stage reads and minimises.

    Attributes:
        yes_weights: how much more a yes counts than a no, for assistant turn-taking and for user
            turn-taking.
        system_prompts: who the LLM is told it is, one of them for each scene; empty for nothing.
        states: folder for hidden states; empty for `.states` beside the scenes.
        llm_precision: of the frozen LLM's computation.
        vad_threshold: probability from which a frame counts as speech, as the encoder service has
            it.
    """

    yes_weights: tuple[float, float] = (1.0, 1.0)
    system_prompts: tuple[str, ...] = ("",)
    states: str = ""
    llm_precision: Literal["float32", "bfloat16"] = "float32"
    vad_threshold: float = 0.5

    def __post_init__(self) -> None:
        if min(self.yes_weights) <= 0:
            raise ValueError("yes_weights are above 0")
        if not self.system_prompts:
            raise ValueError('system_prompts names one at least; "" is nothing')
        if not 0 < self.vad_threshold < 1:
            raise ValueError(f"vad_threshold is {self.vad_threshold:g}: it is between 0 and 1")


class DuplexStage(Stage):
    """The stage; see the module."""

    name = "duplex"

    def check(self, config: TrainingConfig) -> None:
        """Refuses what it does not know; see `Stage.check`."""
        build(DuplexOptions, config.options, "options")
        for module in config.optimizer.learning_rates:
            if module != DUPLEX_MODULE:
                raise TrainingError(
                    f"optimizer.learning_rates names {module!r}; duplex trains {DUPLEX_MODULE}"
                )
        if config.data.audio:
            raise TrainingError("duplex mixes its scenes itself: set data.audio=false")

    def build(
        self, config: TrainingConfig, weights: Weights, sources: Sequence[Source]
    ) -> DuplexTrainee:
        """Builds the predictor; what it reads is loaded with the first scene that is not kept."""
        options = build(DuplexOptions, config.options, "options")
        predictor = _predictor(config, weights)
        points = Points()
        if POINTS in weights:
            fill(points, POINTS, weights[POINTS])
        store = states_store(config.preset, options)
        return DuplexTrainee(predictor, points, SceneBook(config.preset, options, store), options)

    def export(self, config: TrainingConfig, weights: Weights, folder: Path | None) -> Path:
        """Writes the predictor with its thresholds; see `Stage.export`."""
        points = Points()
        if POINTS in weights:
            fill(points, POINTS, weights[POINTS])
        written = write_duplex(
            load_preset(config.preset),
            _predictor(config, weights),
            points.table(),
            folder=None if folder is None else folder / DUPLEX_MODULE,
        )
        return written.parent


class Points(nn.Module):
    """The predictor's thresholds, one row for each eagerness."""

    thresholds: Tensor

    def __init__(self) -> None:
        super().__init__()
        rows = [[0.5] * QUESTIONS for _ in _EAGERNESS_BETAS]
        self.register_buffer("thresholds", torch.tensor(rows))

    def choose(self, conversations: Sequence[Sequence[Scored]]) -> None:
        """Chooses them on a development set.

        Args:
            conversations: for each question, what was predicted of it.
        """
        for question, scored in enumerate(conversations):
            counts = {one: count_changes(scored, one, OFFSETS[-1], _EARLY) for one in _CANDIDATES}
            found = [best_threshold(counts, beta) for _, beta in _EAGERNESS_BETAS]
            # A patient one is never lower than an eager one.
            self.thresholds[:, question] = torch.tensor(sorted(found, reverse=True))

    def auto(self, question: int) -> float:
        """The threshold of a question where nobody chooses an eagerness."""
        return float(self.thresholds[len(_EAGERNESS_BETAS) // 2, question])

    def table(self) -> list[OperatingPoint]:
        """The points as they travel with the weights."""
        rows = self.thresholds.tolist()
        return [
            OperatingPoint(eagerness, round(answer, 4), round(stop, 4))
            for (eagerness, _), (answer, stop) in zip(_EAGERNESS_BETAS, rows, strict=True)
        ]


class SceneBook:
    """Scenes of clips, and what the LLM makes of them.

    Args:
        preset: whose modules read them.
        options: of the stage.
        store: of hidden states.
    """

    def __init__(self, preset: str, options: DuplexOptions, store: StatesStore) -> None:
        self._preset, self._options, self._store = preset, options, store
        self._scenes: dict[str, Scene] = {}
        self.device = torch.device("cpu")
        """Where scenes are read."""

    def scene(self, clip: Clip) -> Scene:
        """The scene of a clip.

        Raises:
            TrainingError: it has none, or one that cannot be used.
        """
        if (known := self._scenes.get(clip.id)) is not None:
            return known
        if SCENE not in clip.custom:
            raise TrainingError(
                f"clip {clip.id} is no scene of a conversation: duplex learns from folders that "
                "`minmo data duplex` has made"
            )
        scene = scene_of(clip.custom[SCENE], f"scene {clip.id}")
        self._scenes[clip.id] = scene
        return scene

    def states(self, clip: Clip, scene: Scene) -> SceneStates:
        """What the LLM makes of the scene of a clip."""
        root = Path(clip.archive).parent.parent
        prompts = self._options.system_prompts

        def read() -> SceneStates:
            prompt = prompts[crc32(clip.id.encode()) % len(prompts)]
            found: SceneStates = self.reader(scene, render(scene, root).user, prompt)
            return found

        return self._store(clip.id, root, read)

    @cached_property
    def reader(self) -> SceneReader:
        """The frozen modules, which are not needed once every scene was read."""
        preset = load_preset(self._preset)
        ears = load_ears(preset, partial(aligned_folder, preset), self.device)
        folder = weights_folder(self._preset, "llm")
        try:
            chat = ChatFormat.from_folder(folder)
        except ValueError as error:
            raise TrainingError(f"the LLM of {self._preset} cannot be asked: {error}") from error
        dtype = getattr(torch, self._options.llm_precision)
        llm = Llm.from_state_dict(preset.llm, load_state_dict(folder), dtype, self.device)
        gate = open_gate(self._preset, self._options.vad_threshold)
        return SceneReader(ears, llm, chat, gate)


def states_store(preset: str, options: DuplexOptions, **more: object) -> StatesStore:
    """Where the hidden states of scenes are kept.

    Args:
        preset: whose modules read them.
        options: of the stage.
        more: what else decides what they are.

    Raises:
        TrainingError: the preset cannot listen.
    """
    try:
        check_aligned(preset)
        reads = {
            **listening_hashes(preset),
            "system_prompts": options.system_prompts,
            "llm_precision": options.llm_precision,
            "vad_threshold": options.vad_threshold,
            "preroll": PREROLL_SECONDS,
            **more,
        }
    except WeightsError as error:
        raise TrainingError(
            f"duplex reads what the LLM makes of speech, and {preset} cannot listen: {error}"
        ) from error
    folder = Path(options.states).expanduser() if options.states else None
    return StatesStore(digest_of(reads), folder)


def open_gate(preset: str, threshold: float) -> Gate:
    """The voice activity detector of a preset.

    Raises:
        WeightsError: it is not here.
    """
    return silero_gate(SileroVad(weights_folder(preset, "vad") / "silero_vad.onnx"), threshold)


class _Read(NamedTuple):
    """A branch of a scene, as the predictor reads it.

    Attributes:
        clip: whose scene it is.
        scene: the scene.
        hidden: `[positions, width]`.
        times: `[positions]`, NaN where nothing can be asked.
    """

    clip: Clip
    scene: Scene
    hidden: Tensor
    times: Tensor


class _Asked(NamedTuple):
    """Branches as the predictor learns them.

    Attributes:
        hidden: `[branches, positions, width]`.
        labels: `[branches, positions, 2]`.
        asked: `[branches, positions, 2]`.
    """

    hidden: Tensor
    labels: Tensor
    asked: Tensor


class DuplexTrainee(Trainee):
    """The predictor, and the scenes that it learns from.

    Args:
        predictor: what is trained.
        points: its thresholds, chosen anew at each measurement.
        book: of scenes.
        options: of the stage.
    """

    best = "loss"
    yes_weights: Tensor

    def __init__(
        self, predictor: DuplexPredictor, points: Points, book: SceneBook, options: DuplexOptions
    ) -> None:
        super().__init__()
        self.predictor, self.points, self._book = predictor, points, book
        weights = [[1.0, weight] for weight in options.yes_weights]
        self.register_buffer("yes_weights", torch.tensor(weights), persistent=False)

    def kept(self) -> Mapping[str, nn.Module]:
        """The predictor and its thresholds."""
        return {DUPLEX_MODULE: self.predictor, POINTS: self.points}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of both questions; how fast a user is understood is drawn each time."""
        seed = int(torch.randint(2**31, ()))
        read = self._read(batch.clips)
        asked = self._asked(read, [seed + number for number in range(len(read))])
        logits = self.predictor(asked.hidden)
        return {"loss": duplex_loss(logits, asked.labels, asked.asked, self.yes_weights)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """How well both questions are answered; chooses the thresholds too.

        Returns:
            `loss`; F1 of both questions with an offset of K steps (`assistant_f1_5`, ...) at the
            thresholds chosen here, see `minmo.model.duplex_scores`; `back_channel`, the share of
            back-channels over which the assistant would not stop; `pause`, the share of pauses
            within a turn in which it would not answer; and the thresholds.
        """
        means = WeightedMeans()
        scored: list[list[Scored]] = [[] for _ in range(QUESTIONS)]
        pauses: list[Tensor] = []
        back_channels: list[Tensor] = []
        for batch in batches:
            read = self._read(batch.clips)
            if not read:
                continue
            seeds = [crc32(f"{one.clip.id} {number}".encode()) for number, one in enumerate(read)]
            asked = self._asked(read, seeds)
            logits = self.predictor(asked.hidden)
            loss = duplex_loss(logits, asked.labels, asked.asked, self.yes_weights)
            means.add("loss", loss, len(read))
            yes = logits.softmax(-1)[..., 1].cpu()
            labels, there = asked.labels.cpu() > 0, asked.asked.cpu()
            for number, one in enumerate(read):
                probed = one.times.isfinite().nonzero()[:, 0]
                for question in range(QUESTIONS):
                    scored[question].append(
                        Scored(
                            yes[number, probed, question],
                            labels[number, probed, question],
                            there[number, probed, question],
                        )
                    )
                part = slice(len(one.times))
                answers, stops = yes[number, part].unbind(1)
                may_answer, may_stop = there[number, part].unbind(1)
                for pause in one.scene.pauses:
                    during = _between(one.times, pause.start, pause.end) & may_answer
                    pauses.append(answers[during])
                for heard in one.scene.back_channels:
                    until = heard.end + _AFTER_BACK_CHANNEL_SECONDS
                    during = _between(one.times, heard.start, until) & may_stop
                    back_channels.append(stops[during])
        self.points.choose(scored)
        figures = means.figures()
        for question, name in enumerate(_NAMES):
            threshold = self.points.auto(question)
            for within in OFFSETS:
                counts = count_changes(scored[question], threshold, within)
                figures[f"{name}_f1_{within}"] = counts.f1
            figures[f"{name}_threshold"] = threshold
        figures["pause"] = share_below(pauses, self.points.auto(0))
        figures["back_channel"] = share_below(back_channels, self.points.auto(1))
        return figures

    def _read(self, clips: Sequence[Clip]) -> list[_Read]:
        """The branches of scenes; a scene in which nobody was heard has none."""
        device = self.yes_weights.device
        self._book.device = device
        found = []
        for clip in clips:
            scene = self._book.scene(clip)
            states = self._book.states(clip, scene)
            for rows in states.branches:
                hidden = states.hidden[rows].to(device, torch.float32)
                found.append(_Read(clip, scene, hidden, states.times[rows]))
        return found

    def _asked(self, read: Sequence[_Read], seeds: Sequence[int]) -> _Asked:
        """Branches side by side; those of a batch without any are one position, never asked."""
        device, width = self.yes_weights.device, self.predictor.config.input_width
        if not read:
            nothing = torch.zeros(1, 1, QUESTIONS, device=device, dtype=torch.int64)
            return _Asked(torch.zeros(1, 1, width, device=device), nothing, nothing.bool())
        labels, asked = [], []
        for one, seed in zip(read, seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            turns = (_turns(one.scene, "user"), _turns(one.scene, "assistant"))
            answers = duplex_labels(one.times.double(), *turns, generator)
            labels.append(answers.labels)
            asked.append(answers.asked)
        return _Asked(
            pad_sequence([one.hidden for one in read], batch_first=True),
            pad_sequence(labels, batch_first=True).to(device),
            pad_sequence(asked, batch_first=True).to(device),
        )


def _turns(scene: Scene, side: Literal["user", "assistant"]) -> list[Turn]:
    return [Turn(one.start, one.end) for one in getattr(scene, side)]


def _between(times: Tensor, start: float, end: float) -> Tensor:
    return (times >= start) & (times < end)


def _predictor(config: TrainingConfig, weights: Weights) -> DuplexPredictor:
    module = cast(DuplexPredictor, build_module(load_preset(config.preset), DUPLEX_MODULE))
    if DUPLEX_MODULE in weights:
        fill(module, DUPLEX_MODULE, weights[DUPLEX_MODULE])
    return module
