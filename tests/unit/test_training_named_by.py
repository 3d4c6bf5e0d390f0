"""A run remembers which speech tokenizer named the tokens that it has learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minmo.training import checkpoint
from minmo.training.errors import TrainingError
from minmo.training.exporting import export_run
from minmo.training.named_by import NAMED_BY, NamedBy, named_by
from minmo.training.speech_tokens import tokenizer_sha256
from minmo.training.text_to_speech import TextToSpeechStage
from minmo.training.trainer import train
from minmo.weights.errors import WeightsError
from minmo.weights.modules import random_module, trained_against, write_module
from tests.unit.tiny_speaking import config, make_place, name_tokens, spelled_aloud
from tests.unit.tiny_training import silent, write_shard


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    preset = make_place(tmp_path)
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    for name, count in (("train.0000", 4), ("valid.0000", 2)):
        shard = write_shard(tmp_path / "speech", name, count)
        name_tokens(preset, shard, lambda text, _: spelled_aloud(text))
    return tmp_path


def bring_tokenizer(place: Path, seed: int) -> str:
    preset = str(place / "tiny.toml")
    write_module(preset, "speech_tokenizer", random_module(preset, "speech_tokenizer", seed))
    return tokenizer_sha256(preset)


def learn(place: Path, name: str, steps: int = 1, **changes: object) -> Path:
    settings = config(place, "speak", steps, watch__valid_minutes=None, **changes)
    train(settings, TextToSpeechStage(), place / name, silent())
    return place / name


def test_a_run_is_exported_for_the_tokenizer_of_its_tokens_alone(place: Path) -> None:
    named = tokenizer_sha256(str(place / "tiny.toml"))
    run = learn(place, "run")
    assert named_by(checkpoint.trained_weights(run)) == named
    other = bring_tokenizer(place, 7)
    with pytest.raises(WeightsError) as refused:
        export_run(run, place / "set")
    for word in (named, other, "minmo train export", "minmo data tokens"):
        assert word in str(refused.value)
    assert not (place / "set").exists()
    assert bring_tokenizer(place, 1) == named
    folder = export_run(run, place / "set")
    assert trained_against(folder / "voice_token_lm")["speech_tokenizer"] == named


def test_weights_that_have_learned_other_tokens_are_no_beginning(place: Path) -> None:
    run = learn(place, "run")
    learn(place, "again", init=str(run))
    bring_tokenizer(place, 7)
    for shard in sorted((place / "speech").glob("*.0000")):
        name_tokens(place / "tiny.toml", shard, lambda text, _: spelled_aloud(text))
    with pytest.raises(TrainingError, match="have learned the tokens of the speech tokenizer of"):
        learn(place, "other", init=str(run))
    with pytest.raises(TrainingError, match="have learned the tokens of the speech tokenizer of"):
        learn(place, "run")
    # Modules in the product's format say by themselves what they were trained with.
    learn(place, "anew")


def test_weights_from_before_runs_remembered_are_taken_for_the_tokenizer_that_is_here() -> None:
    assert named_by({}) is None
    sha256 = "0f" * 32
    kept = NamedBy.going_on({}, sha256).state_dict()
    assert kept["sha256"].dtype == torch.uint8
    assert named_by({NAMED_BY: kept}) == sha256
