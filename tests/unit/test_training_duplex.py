"""The stage duplex on a tiny preset: what the predictor reads, learns, exports and goes on from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from minmo.cli.main import app
from minmo.engine.ears import Ears
from minmo.engine.operations import Fork, Matrix, Prefill, Prefilled, Probe, Probed
from minmo.engine.prompt import ChatFormat
from minmo.model.duplex_predictor import DuplexPredictor
from minmo.model.llm import Llm
from minmo.model.operating_points import from_metadata
from minmo.presets import load_preset
from minmo.training import checkpoint
from minmo.training import duplex as stage_module
from minmo.training.batches import read_sources, read_valid, valid_batches
from minmo.training.config import TrainingConfig, load_config, with_changes
from minmo.training.curves import read_curve
from minmo.training.data.duplex import make_scenes
from minmo.training.data.duplex_rendering import render
from minmo.training.data.duplex_scenes import Scene
from minmo.training.duplex import DuplexOptions, DuplexStage, DuplexTrainee
from minmo.training.duplex_gate import Segment, Stretch, segments_of
from minmo.training.duplex_reading import SceneReader
from minmo.training.errors import TrainingError
from minmo.training.exporting import export_run
from minmo.training.trainer import train
from minmo.weights import aligned
from minmo.weights import duplex as duplex_weights
from minmo.weights.aligned import ALIGNED_MODULES, aligned_folder, write_aligned
from minmo.weights.errors import AbsentWeightsError, WeightsError
from minmo.weights.load import load_state_dict, weights_folder
from minmo.weights.modules import load_module, random_module, write_module
from tests.unit.test_training_speech_to_text import write_tokenizer
from tests.unit.tiny_conversations import loud_gate, said, scene, spoken, write_speech
from tests.unit.tiny_llm import Desk
from tests.unit.tiny_presets import write_preset
from tests.unit.tiny_training import silent

RATE = 16_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tiny preset that listens at random, and scenes."""
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
        # As in the cascade: the aligned one is another.
        write_module(preset, "voice_encoder", random_module(preset, "voice_encoder", 9))
        write_tokenizer(weights_folder(preset, "llm") / "tokenizer.json")
        write_listening(preset, 1)
    folders = write_speech(folder)
    make_scenes(folder / "scenes", folders, 0.06, 0)
    return folder


def write_listening(preset: str, seed: int) -> None:
    chosen = replace(load_preset(preset), recognition_pieces=30)
    modules = {name: random_module(chosen, name, seed) for name in ALIGNED_MODULES}
    head = cast(Any, modules["recognition_head"])
    # Random weights hear nothing: this one hears something every now and then.
    head.blank_proj.bias.data.fill_(0.0)
    head.query_proj.weight.data.mul_(60)
    write_aligned(chosen, modules)


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_HOME", str(place / "home"))
    monkeypatch.setattr(aligned, "packaged_set", lambda name: place / "packaged" / name)
    monkeypatch.setattr(
        duplex_weights, "packaged_predictor", lambda name: place / "packaged" / name / "duplex"
    )
    monkeypatch.setattr(stage_module, "open_gate", lambda preset, threshold: loud_gate())


def config(place: Path, steps: int = 4, **changes: Any) -> TrainingConfig:
    given = {
        "preset": str(place / "tiny.toml"),
        "threads": 1,
        "data.folders": {str(place / "scenes"): 1.0},
        "data.seconds": 30.0,
        "data.pool": 4,
        "schedule.steps": steps,
        "watch.log_steps": 1,
        "watch.valid_steps": steps,
        "options.states": str(place / "states"),
    }
    return with_changes(load_config("duplex"), given | changes)


# --- segments

ANSWER = spoken(0.0, 3.0, "On the mat sat a cat.")


def at(*seconds: float) -> Stretch:
    return Stretch(*(round(one * RATE) for one in seconds))


def in_seconds(segments: list[Segment]) -> list[tuple[Any, ...]]:
    return [(s.start / RATE, s.noticed / RATE, s.end / RATE, s.over, s.kept) for s in segments]


def test_a_segment_stays_open_through_pauses_until_the_assistant_speaks() -> None:
    one = scene(9, user=(spoken(1, 6, "a cat"),), assistant=(spoken(8, 9, "the mat"),))
    stretches = [at(1, 1.1, 3.2), at(5, 5.1, 6.2), at(8.4, 8.5, 9)]
    assert in_seconds(segments_of(one, stretches)) == [
        (0.75, 1.1, 8, None, True),
        (8.15, 8.5, 9, 0, False),
    ]


def test_over_the_assistant_a_turn_becomes_the_conversation_and_all_else_is_dropped() -> None:
    one = scene(
        9,
        assistant=(ANSWER, spoken(7, 9, "the mat")),
        user=(spoken(2.2, 6, "a cat"),),
    )
    stretches = [at(0.1, 0.2, 0.7), at(2.1, 2.3, 2.8), at(4, 4.1, 6.2)]
    assert in_seconds(segments_of(one, stretches)) == [
        (0, 0.2, 0.7, 0, False),
        (1.85, 2.3, 7, 0, True),
    ]


# --- what is read


@pytest.fixture
def reader(place: Path) -> SceneReader:
    preset = str(place / "tiny.toml")
    modules = [load_module(preset, m, folder=aligned_folder(preset, m)) for m in ALIGNED_MODULES]
    folder = weights_folder(preset, "llm")
    llm = Llm.from_state_dict(load_preset(preset).llm, load_state_dict(folder))
    chat = ChatFormat.from_folder(folder)
    return SceneReader(Ears(*cast(Any, modules)), llm, chat, loud_gate())


def long_scene(interrupted: bool = True) -> Scene:
    """An answer, a back-channel over it, and a turn that cuts it off or waits for its end."""
    answer = "On the mat sat a cat and the other cat and a third one."
    start = 2.0 if interrupted else 4.0
    user = spoken(start + 0.1, start + 1.55, "The cat sat on the mat.")
    return scene(
        6.5,
        asked="Can the cat sit on a mat?",
        user=(user,),
        assistant=(
            spoken(0.0, 2.7 if interrupted else 3.5, answer, 3.5),
            spoken(6.0, 6.5, "A cat."),
        ),
        said=(
            said("train-1-3", 0.0, 2.7 if interrupted else 3.45, "assistant"),
            said("train-0-back-channel", 1.0, 0.6),
            said("train-0-0", start, 1.65),
        ),
    )


class Talk:
    """Says a scene to the engine that the product has, step by step, as the orchestrator does."""

    def __init__(self, reader: SceneReader, predictor: DuplexPredictor) -> None:
        self.reader, self.chat, self.llm = reader, reader._chat, reader.llm
        self.answers: list[tuple[float, float]] = []
        history = predictor.config.left_context + 1
        self.desk = Desk(
            self.llm, predictor.probabilities, context=400, history=history, stop_tokens=frozenset()
        )
        self.length = {"main": 0}

    def read(self, part: Any, branch: str) -> None:
        if len(part):
            event = self.desk.ask(Prefill(self.length[branch], (part,)), branch=branch)
            assert isinstance(event, Prefilled), event
            self.length[branch] = event.position

    def tokens(self, ids: list[int], branch: str = "main") -> None:
        self.read(np.array(ids, np.int64), branch)

    def fork(self, branch: str, position: int) -> None:
        self.desk.ask(Fork("main", position), branch=branch)
        self.length[branch] = position

    def listen(self, samples: Matrix, branch: str) -> None:
        embedder = self.reader.ears.embedder(probes=True)
        for start in range(0, len(samples), 320):
            heard = embedder.process(samples[start : start + 320])
            self.read(heard.embeddings.numpy(), branch)
            for made in embedder.take_probes():
                event = self.desk.ask(
                    Probe(self.length[branch], made.embedding.numpy()), branch=branch
                )
                assert isinstance(event, Probed), event
                self.answers.append(event.turn)


@pytest.mark.parametrize("interrupted", [True, False])
@torch.inference_mode()
def test_a_scene_is_read_as_the_engine_reads_it_step_by_step(
    place: Path, reader: SceneReader, interrupted: bool
) -> None:
    predictor = cast(
        DuplexPredictor, random_module(str(place / "tiny.toml"), "duplex_predictor", 3)
    )
    one = long_scene(interrupted)
    user = render(one, place / "scenes").user
    states = reader(one, user, "be kind")
    found: list[tuple[float, ...]] = []
    for rows in states.branches:
        yes = predictor(states.hidden[rows][None])[0].softmax(-1)[..., 1]
        times = states.times[rows, None]
        found += [tuple(row) for row in torch.cat((times, yes), 1)[times[:, 0].isfinite()].tolist()]

    talk, chat = Talk(reader, predictor), reader._chat
    try:
        first, second = segments_of(one, loud_gate()(user))
        answer = chat.text(one.assistant[0].text)
        talk.tokens([*chat.role_start("system"), *chat.text("be kind"), *chat.turn_end()])
        talk.tokens([*chat.role_start("user"), *chat.text(one.asked), *chat.turn_end()])
        talk.tokens(chat.role_start("assistant"))
        base = talk.length["main"]
        talk.tokens(answer)

        def over(name: str, segment: Segment) -> None:
            heard = int(segment.noticed / RATE / one.assistant[0].seconds * len(answer))
            assert 0 < heard < len(answer)
            talk.fork(name, base + heard)
            opening = [*chat.interruption(), *chat.turn_end(), *chat.role_start("user")]
            talk.tokens(opening, name)
            talk.listen(user[segment.start : segment.end], name)

        over("first", first)
        if interrupted:
            over("second", second)
        else:
            talk.tokens([*chat.turn_end(), *chat.role_start("user")])
            talk.listen(user[second.start : second.end], "main")
    finally:
        talk.desk.engine.stop()
    assert len(found) == len(talk.answers) > 15
    # Pieces were heard between the probes, or nothing is shown.
    assert sum(talk.length.values()) > base + len(answer) + 10
    for (_, *expected), given in zip(sorted(found), talk.answers, strict=True):
        assert given == pytest.approx(expected, abs=2e-5)
    assert len({round(answer, 4) for _, answer, _ in found}) > 10


def test_nothing_sees_a_probe_but_the_predictor(place: Path, reader: SceneReader) -> None:
    one = long_scene()
    user = render(one, place / "scenes").user
    with_probes = reader(one, user)
    kept = with_probes.times.isnan()
    steps = list(SceneReader.steps(reader, user[:RATE]))
    assert len(steps) == 6
    assert [round(step.seconds, 3) for step in steps] == [round(0.144 * n, 3) for n in range(1, 7)]

    def loud(self: SceneReader, samples: Matrix) -> Iterator[Any]:
        for step in SceneReader.steps(reader, samples):
            yield step._replace(probe=step.probe * 100)

    other = SceneReader(reader.ears, reader.llm, reader._chat, loud_gate())
    other.steps = loud.__get__(other)  # type: ignore[method-assign]
    changed = other(one, user)
    torch.testing.assert_close(changed.hidden[kept], with_probes.hidden[kept], atol=1e-6, rtol=0)
    assert not torch.allclose(changed.hidden[~kept], with_probes.hidden[~kept], atol=1e-2)


def test_where_nobody_is_heard_nothing_is_asked(reader: SceneReader) -> None:
    states = reader(scene(2.0), np.zeros(2 * RATE, np.float32))
    assert states.branches == ()
    assert len(states.hidden) == 0


# --- the stage


def trainee_of(settings: TrainingConfig) -> DuplexTrainee:
    return DuplexStage().build(settings, {}, read_sources(settings.data))


def test_the_stage_learns_and_its_figures_say_so(place: Path, tmp_path: Path) -> None:
    settings = config(place, 40, **{"optimizer.learning_rates": {"duplex_predictor": 0.01}})
    settings = with_changes(settings, {"optimizer.ema": 0.0, "watch.valid_steps": 20})
    train(settings, DuplexStage(), tmp_path, silent())
    losses = [row["loss"] for row in read_curve(tmp_path / "curves" / "train.csv")]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    measured = read_curve(tmp_path / "curves" / "valid.csv")
    names = {f"{who}_f1_{k}" for who in ("assistant", "user") for k in (1, 5, 10)}
    assert (
        names | {"loss", "pause", "back_channel", "assistant_threshold", "user_threshold"}
        <= measured[0].keys()
    )
    assert measured[-1]["assistant_f1_10"] > 0.3


@torch.no_grad()
def test_what_was_read_once_is_not_read_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(place, **{"options.states": str(tmp_path / "states")})
    clips = read_valid(settings.data)
    first = trainee_of(settings)
    torch.manual_seed(0)
    figures = first.evaluate(valid_batches(clips, settings.data, 0))
    assert len(list((tmp_path / "states").rglob("*.npz"))) == len(clips)
    again = trainee_of(settings)
    again.predictor.load_state_dict(first.predictor.state_dict())

    def none(*_: object) -> None:
        raise AssertionError("a scene is read again")

    monkeypatch.setattr(SceneReader, "forward", none)
    found = again.evaluate(valid_batches(clips, settings.data, 0))
    assert found == pytest.approx(figures, nan_ok=True)
    # Another prompt makes other states.
    other = with_changes(settings, {"options.system_prompts": ["be brief"]})
    with pytest.raises(AssertionError, match="read again"):
        trainee_of(other).evaluate(valid_batches(clips, settings.data, 0))
    kept = next((tmp_path / "states").rglob("*.npz"))
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"is damaged .*delete it"):
        trainee_of(settings).evaluate(valid_batches(clips, settings.data, 0))


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(place: Path, tmp_path: Path) -> None:
    changes = {"watch.save_steps": 2, "watch.valid_steps": 3}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = config(place, 6, **changes)
    train(settings, DuplexStage(), whole, silent())

    class StoppedError(Exception):
        pass

    class Cut(DuplexTrainee):
        steps = 0

        def losses(self, batch: Any) -> dict[str, Tensor]:
            Cut.steps += 1
            if Cut.steps == 4:
                raise StoppedError
            return super().losses(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "DuplexTrainee", Cut)
        with pytest.raises(StoppedError):
            train(settings, DuplexStage(), cut, silent())
    train(settings, DuplexStage(), cut, silent(), resume="must")
    ends = [checkpoint.latest(run) for run in (whole, cut)]
    weights = [checkpoint.read_weights(end) for end in ends if end]
    assert len(weights) == 2
    for module, state in weights[0].items():
        for key, value in state.items():
            assert torch.equal(value, weights[1][module][key]), key


def test_the_export_has_thresholds_and_is_refused_by_other_listeners(
    place: Path, tmp_path: Path
) -> None:
    preset, run = str(place / "tiny.toml"), tmp_path / "run"
    with pytest.raises(AbsentWeightsError):
        load_module(preset, "duplex_predictor")
    train(config(place, 8), DuplexStage(), run, silent())
    folder = export_run(run, tmp_path / "modules") / "duplex_predictor"
    module = load_module(preset, "duplex_predictor", folder=folder)
    best = checkpoint.trained_weights(run)
    for key, value in module.state_dict().items():
        assert torch.equal(value, best["duplex_predictor"][key].half().float()), key
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        points = from_metadata(file.metadata())
    assert [point.eagerness for point in points] == [0, 0.5, 1]
    thresholds = best["duplex_points"]["thresholds"]
    found = [[point.assistant_turn, point.user_turn] for point in points]
    torch.testing.assert_close(torch.tensor(found), thresholds, atol=1e-4, rtol=0)
    assert not torch.equal(thresholds, torch.full((3, 2), 0.5))
    assert (thresholds[:-1] >= thresholds[1:]).all()

    export_run(run, None)
    installed = weights_folder(preset, "duplex_predictor")
    assert installed == place / "home/weights/tiny/duplex_predictor"
    load_module(preset, "duplex_predictor")
    # One that MinMo brings is found where there is none of one's own.
    packaged = place / "packaged" / "tiny" / "duplex"
    packaged.parent.mkdir(parents=True)
    installed.rename(packaged)
    try:
        assert weights_folder(preset, "duplex_predictor") == packaged
        load_module(preset, "duplex_predictor")
        write_listening(preset, 2)
        with pytest.raises(WeightsError, match="was trained against another input_projector"):
            load_module(preset, "duplex_predictor")
    finally:
        write_listening(preset, 1)
        for file in sorted(packaged.rglob("*"), reverse=True):
            file.unlink()
        packaged.rmdir()


def test_a_predictor_of_mini_takes_two_megabytes_at_most() -> None:
    module = random_module("mini", "duplex_predictor")
    assert 2 * sum(parameter.numel() for parameter in module.parameters()) < 2_000_000


def test_what_cannot_be_used_is_refused(place: Path, tmp_path: Path) -> None:
    stage, settings = DuplexStage(), config(place)
    with pytest.raises(TrainingError, match=r"set data\.audio=false"):
        stage.check(with_changes(settings, {"data.audio": True}))
    with pytest.raises(TrainingError, match="names 'llm'; duplex trains duplex_predictor"):
        stage.check(with_changes(settings, {"optimizer.learning_rates": {"llm": 1e-3}}))
    with pytest.raises(TrainingError, match="yes_weights are above 0"):
        stage.check(with_changes(settings, {"options.yes_weights": [0.0, 1.0]}))
    deaf = write_preset(tmp_path, name="deaf")
    with pytest.raises(TrainingError, match=r"deaf\.toml cannot listen: preset 'deaf' has"):
        stage.build(with_changes(settings, {"preset": str(deaf)}), {}, [])
    clips = with_changes(settings, {"data.folders": {str(place / "speech"): 1.0}})
    with pytest.raises(TrainingError, match="is no scene of a conversation"):
        trainee_of(clips).evaluate(valid_batches(read_valid(clips.data), clips.data, 0))
    with pytest.raises(ValueError, match="system_prompts names one"):
        DuplexOptions(system_prompts=())


def test_the_command_trains_and_exports(place: Path, tmp_path: Path) -> None:
    arguments = (
        *("train", "duplex", "--data", str(place / "scenes"), "--preset", str(place / "tiny.toml")),
        *("--out", str(tmp_path / "run"), "--steps", "2", "--json"),
        *("--set", "threads=1", "--set", f"options.states={place / 'states'}"),
    )
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None, result.exception
    assert json.loads(result.stdout)["step"] == 2
    result = CliRunner().invoke(
        app, ["train", "export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    )
    assert result.exception is None, result.exception
    assert (tmp_path / "out" / "duplex_predictor" / "model.safetensors").exists()
