"""Scenes as systems that decide who speaks are to hear them, and what the predictor says of them.

A scene ends with an answer that comes soon. Whoever is slower could not be measured there, so that
answer is moved: for `WAITS_SECONDS` behind the user's turn nobody speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from safetensors import safe_open

from minmo.engine.listening import Schedule
from minmo.model.duplex_predictor import DuplexPredictor
from minmo.model.operating_points import OperatingPoint, from_metadata
from minmo.model.probing import STEP_EMBEDDINGS
from minmo.presets import build_module, load_preset
from minmo.training.augmentation import Samples
from minmo.training.config import load_config, with_changes
from minmo.training.data.duplex_rendering import render
from minmo.training.data.duplex_scenes import Scene, scene_of
from minmo.training.duplex import DuplexOptions, SceneBook, open_gate, states_store
from minmo.training.duplex_gate import Stretch
from minmo.training.duplex_reading import SceneStates
from minmo.training.errors import TrainingError
from minmo.training.shar import SAMPLE_RATE, SCENE, Clip
from minmo.training.tables import build
from minmo.weights.duplex import DUPLEX_MODULE, predictor_folder
from minmo.weights.errors import WeightsError
from minmo.weights.modules import load_module
from minmo.weights.writing import FILE

WAITS_SECONDS = 3.0
"""From the end of the user's turn to the answer: the longest silence that the orchestrator waits
for, after which any system answers."""


class Predicted(NamedTuple):
    """What the predictor says of a scene, in order of time.

    Attributes:
        heard: `[probes]`, seconds of the scene that a probe stands for.
        known: `[probes]`, seconds that must have been heard for it to be made.
        answer: `[probes]`, probability of assistant turn-taking.
        stop: `[probes]`, probability of user turn-taking.
    """

    heard: np.ndarray[tuple[int], np.dtype[np.float64]]
    known: np.ndarray[tuple[int], np.dtype[np.float64]]
    answer: np.ndarray[tuple[int], np.dtype[np.float64]]
    stop: np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class Heard:
    """A scene that can be decided on.

    Attributes:
        scene: with its answer moved.
        user: `[samples]` at 16 kHz, the user's channel.
        stretches: of speech in it, as the detector noticed them.
        predicted: None without a predictor.
    """

    scene: Scene
    user: Samples
    stretches: Sequence[Stretch]
    predicted: Predicted | None


class Hearing:
    """Has scenes heard.

    Args:
        preset: whose modules listen.
        options: as the predictor was trained with.
        predictor: that is asked; None for voice activity alone.

    Raises:
        TrainingError: there is a predictor, and the preset cannot listen.
    """

    def __init__(
        self, preset: str, options: DuplexOptions, predictor: DuplexPredictor | None = None
    ) -> None:
        self._preset, self._predictor = preset, predictor
        self._gate = open_gate(preset, options.vad_threshold)
        self._book: SceneBook | None = None
        if predictor is not None:
            store = states_store(preset, options, waits=WAITS_SECONDS)
            self._book = SceneBook(preset, options, store)
            if torch.cuda.is_available():
                self._book.device = torch.device("cuda")

    def hear(self, clip: Clip) -> Heard:
        """Hears a scene.

        Args:
            clip: of a folder of scenes.

        Raises:
            TrainingError: it is no scene, or what is said in it is not there any more.
        """
        if SCENE not in clip.custom:
            raise TrainingError(
                f"clip {clip.id} is no scene of a conversation: give a folder that "
                "`minmo data duplex` has made"
            )
        scene = later_answer(scene_of(clip.custom[SCENE], f"scene {clip.id}"))
        user = render(scene, Path(clip.archive).parent.parent).user
        predicted = None
        if self._book is not None:
            predicted = self._predict(self._book.states(clip, scene))
        return Heard(scene, user, self._gate(user), predicted)

    def _predict(self, states: SceneStates) -> Predicted:
        assert self._predictor is not None
        parts = [np.zeros((0, 4))]
        for rows in states.branches:
            times = states.times[rows]
            probed = times.isfinite()
            with torch.inference_mode():
                hidden = states.hidden[rows].float()[None]
                yes = self._predictor(hidden)[0].softmax(-1)[probed, :, 1].double().numpy()
            heard = times[probed].double().numpy()
            known = known_at(heard, self._schedule)
            parts.append(np.column_stack((heard, known, yes)))
        table = np.concatenate(parts)
        return Predicted(*table[np.argsort(table[:, 1], kind="stable")].T)

    @property
    def step_seconds(self) -> float:
        """Seconds of a step of the predictor."""
        return STEP_EMBEDDINGS * self._schedule.unit / SAMPLE_RATE

    @cached_property
    def _schedule(self) -> Schedule:
        preset = load_preset(self._preset)
        # Only what their sizes say is asked.
        with torch.device("meta"):
            encoder = build_module(preset, "voice_encoder")
            projector = build_module(preset, "input_projector")
        return Schedule.of(encoder, projector)  # type: ignore[arg-type]


def known_at(
    heard: np.ndarray[tuple[int], np.dtype[np.float64]], schedule: Schedule
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """When probes of a branch are there: a block of the encoder and its look-ahead come first.

    Args:
        heard: `[probes]`, seconds that they stand for, a step apart within a segment.
        schedule: of the stream.

    Returns:
        `[probes]`, seconds of the scene.
    """
    step = STEP_EMBEDDINGS * schedule.unit / SAMPLE_RATE
    known = np.zeros_like(heard)
    start = 0.0
    for number, end in enumerate(heard):
        if number == 0 or abs(end - heard[number - 1] - step) > step / 100:
            start = end - step
        blocks = -(-round((end - start) * SAMPLE_RATE) // schedule.step)
        known[number] = start + schedule.needed(blocks) / SAMPLE_RATE
    return known


def later_answer(scene: Scene, waits: float = WAITS_SECONDS) -> Scene:
    """The scene, with the answer that it ends with so many seconds behind the user's last turn.

    One in which nobody answers at the end stays as it is.
    """
    if not scene.user or not scene.assistant or scene.assistant[-1].start < scene.user[-1].end:
        return scene
    reply = scene.assistant[-1]
    shift = round(scene.user[-1].end + waits - reply.start, 3)
    moved = replace(reply, start=round(reply.start + shift, 3), end=round(reply.end + shift, 3))
    said = tuple(
        replace(one, at=round(one.at + shift, 3))
        if one.channel == "assistant" and one.at >= reply.start
        else one
        for one in scene.said
    )
    seconds = round(scene.seconds + shift, 3)
    return replace(scene, seconds=seconds, assistant=(*scene.assistant[:-1], moved), said=said)


class Loaded(NamedTuple):
    """A predictor.

    Attributes:
        module: itself.
        points: its thresholds, by rising eagerness.
    """

    module: DuplexPredictor
    points: tuple[OperatingPoint, ...]


def options_of(preset: str, states: Path | None = None) -> DuplexOptions:
    """The options that scenes are heard with: those of the stage's recipe.

    Args:
        preset: whose modules listen.
        states: folder for hidden states; None for one beside the scenes.
    """
    changes = {"preset": preset} | ({} if states is None else {"options.states": str(states)})
    settings = with_changes(load_config("duplex"), changes)
    return build(DuplexOptions, settings.options, "options")


def load_predictor(preset: str, folder: Path | None) -> Loaded | None:
    """A predictor and its thresholds.

    Args:
        preset: that it is of.
        folder: of the module; None for the one that the product uses.

    Returns:
        None where no folder is given and there is none.

    Raises:
        WeightsError: it is damaged, or was trained against other modules than are here.
    """
    chosen = folder or predictor_folder(load_preset(preset).name)
    if chosen is None:
        return None
    module = load_module(preset, DUPLEX_MODULE, folder=chosen)
    with safe_open(chosen / FILE, framework="pt") as file:
        metadata = cast(Mapping[str, str] | None, file.metadata())
    try:
        return Loaded(cast(DuplexPredictor, module), from_metadata(dict(metadata or {})))
    except ValueError as error:
        raise WeightsError(f"{chosen / FILE}: {error}; export the predictor again") from error
