"""The stage speech-tokenizer on a tiny preset: tokens that carry words, and the encoder unmoved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from minmo.cli.main import app
from minmo.cli.train import COMMANDS
from minmo.model.speech_tokenizer import Quantized, spread_loss
from minmo.presets import build_module
from minmo.training import checkpoint
from minmo.training.batches import Batch, read_sources, read_valid, valid_batches
from minmo.training.config import TrainingConfig, load_config, recipes, with_changes
from minmo.training.curves import read_curve
from minmo.training.errors import TrainingError
from minmo.training.exporting import export_run
from minmo.training.speech_tokenizer import (
    DECODER,
    MODULES,
    SpeechTokenizerStage,
    SpeechTokenizerTrainee,
)
from minmo.training.stage import stages
from minmo.training.trainer import train
from minmo.training.whole_clips import WholeClipEncoder
from minmo.weights import WeightsError
from minmo.weights.load import load_state_dict, weights_folder
from minmo.weights.modules import load_module, random_module, write_module
from minmo.weights.spoken import TOKENIZER
from tests.unit.published_checkpoints import WHISPER, preset
from tests.unit.tiny_presets import write_preset
from tests.unit.tiny_training import silent, write_shard


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a pretrained voice encoder of a tiny preset, and clips."""
    folder = tmp_path_factory.mktemp("tokenizer")
    path = str(write_preset(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINMO_HOME", str(folder / "home"))
        write_module(path, "voice_encoder", random_module(path, "voice_encoder", 1))
    write_shard(folder / "speech", "train.0000", 10, 1.0)
    write_shard(folder / "speech", "valid.0000", 5, 1.0)
    return folder


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_HOME", str(place / "home"))


def config(place: Path, steps: int = 4, **changes: Any) -> TrainingConfig:
    given = {
        "preset": str(place / "tiny.toml"),
        "threads": 1,
        "data.folders": {str(place / "speech"): 1.0},
        "data.seconds": 8.0,
        "data.pool": 4,
        "data.workers": 0,
        "schedule.steps": steps,
        "schedule.minutes": None,
        "watch.log_steps": 1,
        "augmentation.clean": 1.0,
    }
    given |= {key.replace("__", "."): value for key, value in changes.items()}
    return with_changes(load_config("speech-tokenizer"), given)


def trainee(place: Path, **changes: Any) -> SpeechTokenizerTrainee:
    settings = config(place, **changes)
    torch.manual_seed(0)
    return SpeechTokenizerStage().build(settings, {}, read_sources(settings.data))


def valid(place: Path) -> list[Batch]:
    settings = config(place)
    return list(valid_batches(read_valid(settings.data), settings.data, 0))


def test_words_are_learned_behind_the_quantiser_and_the_encoder_stays(
    place: Path, tmp_path: Path
) -> None:
    settings = config(place, steps=25, optimizer__learning_rates=dict.fromkeys(MODULES, 1e-2))
    run = tmp_path / "run"
    train(settings, SpeechTokenizerStage(), run, silent())
    curve = read_curve(run / "curves" / "train.csv")
    assert all(math.isfinite(value) for row in curve for value in row.values())
    for part in ("recognition", "reconstruction"):
        assert sum(row[part] for row in curve[-3:]) < 3 * 0.8 * curve[0][part]
    assert all(1 <= row["perplexity"] <= 9 for row in curve)
    (measured,) = read_curve(run / "curves" / "valid.csv")
    assert {"cer", "wer", "reconstruction"} <= measured.keys()
    assert 1 <= measured["perplexity"] <= measured["used_tokens"] <= 9

    weights = checkpoint.trained_weights(run)
    assert weights.keys() == {TOKENIZER, DECODER}
    path = str(place / "tiny.toml")
    folder = export_run(run, tmp_path / "voice")
    exported = load_module(path, TOKENIZER, folder=folder / TOKENIZER).state_dict()
    for key, value in exported.items():
        assert torch.equal(value, weights[TOKENIZER][key].half().float()), key
    assert {entry.name for entry in folder.iterdir()} == {TOKENIZER}
    # Tokens mean what they do to the encoder that they were trained with.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINMO_HOME", str(tmp_path / "home"))
        write_module(path, "voice_encoder", random_module(path, "voice_encoder", 2))
        with pytest.raises(WeightsError, match="was trained against another voice_encoder"):
            load_module(path, TOKENIZER, folder=folder / TOKENIZER)

    again = SpeechTokenizerStage().build(settings, weights, [])
    assert torch.equal(again.tokenizer.input.weight.detach(), weights[TOKENIZER]["input.weight"])
    pretrained = load_state_dict(weights_folder(path, "voice_encoder"))
    encoder = again.encoder.encoder.state_dict()["conv1.weight"]
    assert torch.equal(encoder, pretrained["model.encoder.conv1.weight"])


def test_a_clip_is_heard_as_if_it_were_alone(place: Path) -> None:
    encoder = WholeClipEncoder.pretrained(str(place / "tiny.toml"))
    samples = torch.randn(3, 9000, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9000, 4000, 300])
    frames, counts = encoder.frames(samples, lengths)
    for row, length, count, found in zip(samples, lengths, counts, frames, strict=True):
        alone, _ = encoder.frames(row[None, : int(length)], length[None])
        assert torch.equal(found[:count], alone[0])
        assert not found[count:].any()
    # 300 samples are less than one frame sees.
    assert counts.tolist() == [int(encoder.encoder.frame_counts(n)) for n in (9000, 4000)] + [0]


def test_frames_behind_a_clips_end_are_not_counted_for_whisper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    sizes = preset(**WHISPER)
    encoder = WholeClipEncoder(random_module(sizes, "voice_encoder"))  # type: ignore[arg-type]
    frames, counts = encoder.frames(torch.zeros(1, 16_000), torch.tensor([16_000]))
    assert frames.shape[1] == int(counts) == 50


def test_frames_are_remembered_and_the_losses_are_the_same(place: Path) -> None:
    fresh, keeping = trainee(place, options__remember_mb=0.0), trainee(place)
    keeping.load_state_dict(fresh.state_dict())
    batch = valid(place)[0]
    wanted = fresh.losses(batch)
    assert wanted["loss"].requires_grad
    for _ in range(2):
        found = keeping.losses(batch)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=2e-3, rtol=2e-3)
    keeping.encoder.encoder.conv1.weight.data.zero_()
    torch.testing.assert_close(keeping.losses(batch)["loss"], found["loss"])


def test_the_encoder_computes_in_float32_whatever_the_precision(place: Path) -> None:
    one = trainee(place)
    batch = valid(place)[0]
    frames, _ = one.encoder.frames(batch.samples, batch.lengths)
    with torch.autocast("cpu", torch.bfloat16):
        same, _ = one.encoder.frames(batch.samples, batch.lengths)
    assert torch.equal(frames, same)


def test_digits_that_differ_cost_nothing_and_those_that_do_not_are_pulled_apart() -> None:
    nothing = torch.zeros(2, 500, dtype=torch.int64)
    lengths = torch.tensor([500, 400])

    def spread(digits: torch.Tensor) -> torch.Tensor:
        return spread_loss(Quantized(nothing, digits, digits, lengths))

    draw = torch.Generator().manual_seed(0)
    apart = torch.randn(2, 500, 4, generator=draw).tanh()
    assert float(spread(apart)) < 0.03
    same = torch.full((2, 500, 4), 0.9) + 1e-3 * apart
    same.requires_grad_(True)
    assert float(spread(same).detach()) > 0.9
    spread(same).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()
    assert same.grad[:, :400].any()
    # What is behind a clip's end counts for nothing.
    assert not same.grad[1, 400:].any()
    copies = apart[..., :1].expand(-1, -1, 4)
    assert float(spread(copies)) > 0.9
    frozen = torch.full((2, 500, 4), 0.9, requires_grad=True)
    spread(frozen).backward()
    assert frozen.grad is not None
    assert frozen.grad.isfinite().all()


def test_the_loss_is_the_weighted_sum(place: Path) -> None:
    one = trainee(place, options__reconstruction=0.5, options__spread=2.0)
    found = one.losses(valid(place)[0])
    parts = found["recognition"] + 0.5 * found["reconstruction"] + 2 * found["spread"]
    torch.testing.assert_close(found["loss"], parts)


def test_tokens_that_have_collapsed_end_the_run(place: Path) -> None:
    one = trainee(place, options__least_used=0.12).eval().requires_grad_(False)
    assert one.evaluate(valid(place))["perplexity"] > 0.12 * 9
    torch.nn.init.zeros_(one.tokenizer.quantizer.project_down.weight)
    torch.nn.init.zeros_(one.tokenizer.quantizer.project_down.bias)
    assert one.evaluate(valid(place))["used_tokens"] == 1
    with pytest.raises(TrainingError, match=r"have collapsed: 1 of 9 are in use, .* as 1\.0"):
        one.evaluate(valid(place))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__learning_rates": {"voice_encoder": 1e-4}}, "stays as it was pretrained"),
        ({"data__silence": [0.0, 0.3]}, "needs both ends of data.silence alike"),
        ({"augmentation__speed": 0.5}, r"needs augmentation\.speed=0"),
        ({"data__audio": False}, "speech-tokenizer hears its clips at 16000 Hz"),
        ({"data__sample_rate": 24_000}, r"data\.sample_rate=16000"),
        ({"data__shortest": 0.1}, r"data\.shortest is 0\.1 s"),
        ({"options__reconstruction": -1.0}, "spread and remember_mb are 0 or more"),
        ({"options__least_used": 1.0}, "least_used is 1"),
        ({"options__reconstuction": 1.0}, "did you mean 'reconstruction'"),
    ],
)
def test_what_cannot_be_is_refused(place: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        SpeechTokenizerStage().check(config(place, **changes))


def test_weights_of_another_preset_are_refused(place: Path) -> None:
    other = build_module(preset(), TOKENIZER).state_dict()
    other["input.weight"] = torch.zeros(2, 2)
    with pytest.raises(TrainingError, match=r"weights of speech_tokenizer .* of another preset"):
        SpeechTokenizerStage().build(config(place), {TOKENIZER: other}, [])


@pytest.mark.parametrize("command", COMMANDS, ids=[command.stage for command in COMMANDS])
def test_every_stage_has_a_command_and_recipes_that_it_accepts(command: Any) -> None:
    stage = stages()[command.stage]
    assert stage.name == command.stage
    packaged = {name for name in recipes() if load_config(name).stage == command.stage}
    assert set(command.recipes) == packaged
    for recipe in command.recipes:
        stage.check(load_config(recipe))


def test_every_stage_is_there_once() -> None:
    assert list(stages()) == [command.stage for command in COMMANDS]
    with pytest.raises(KeyError):
        stages()["speech-to-speach"]


def test_a_recipe_of_another_stage_is_refused(tmp_path: Path) -> None:
    arguments = ["train", "vocoder", "--recipe", "sft", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert "recipe sft is of the stage speech-to-text, not vocoder" in str(result.exception)
    assert not (tmp_path / "run").exists()
