"""Recipes and configurations: every key checked, what was meant said."""

from __future__ import annotations

from pathlib import Path

import pytest

from minmo.training.config import (
    ScheduleConfig,
    TrainingConfig,
    changed_keys,
    load_config,
    recipes,
    to_yaml,
    with_changes,
)
from minmo.training.errors import TrainingError
from minmo.training.schedule import factor, progress
from minmo.training.speech_to_text import SpeechToText
from minmo.training.stage import stages


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_one_that_its_stage_takes(name: str) -> None:
    config = load_config(name)
    stages()[config.stage].check(config)


def test_every_stage_has_a_recipe() -> None:
    assert {load_config(name).stage for name in recipes()} == set(stages())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("schedule.minuts=3", "did you mean 'minutes'?"),
        ("sheed=3", "did you mean 'seed'?"),
        ("data.seconds=no number", "data.seconds is 'no number', not a number"),
        ("data.seconds=true", "not a number"),
        ("data.workers=1.5", "not a whole number"),
        ("precision=bflot16", "did you mean 'bfloat16'?"),
        ("data.silence=[0.5, 0.1]", "the lower one first"),
        ("data.silence=[0.5]", "has 1 entries; it has 2"),
        ("augmentation.noise=1.5", "noise is 1.5; it is from 0 to 1"),
        ("augmentation.codecs=[opsu]", "did you mean 'opus'?"),
        ("seed.deeper=1", "seed is {'deeper': 1}, not a whole number"),
        ("stage.deeper=1", "cannot set stage.deeper: stage is a value, not a table"),
        ("seed", "is not key=value"),
        ("data=3", "data is 3, not a table"),
        ("optimizer.learning_rates.voice_encoder=5", "from 1e-09 to 1"),
        ("schedule.steps=.inf", "not a whole number"),
    ],
)
def test_refuses_what_is_wrong_and_says_what_is_right(change: str, said: str) -> None:
    with pytest.raises(TrainingError, match=r"^(recipe|--set|cannot)") as refused:
        load_config("pre-align", [change])
    assert said in str(refused.value)


def test_options_are_checked_by_their_stage() -> None:
    with pytest.raises(TrainingError, match="did you mean 'letters'"):
        SpeechToText().check(load_config("pre-align", ["options.leters=1"]))
    with pytest.raises(TrainingError, match="speech-to-text trains: voice_encoder"):
        SpeechToText().check(load_config("pre-align", ["optimizer.learning_rates.llm=1e-4"]))


def test_values_given_win_and_the_rest_is_the_recipes() -> None:
    config = load_config("pre-align", ["schedule.minutes=5", "optimizer.clip=1e-1"])
    assert config.schedule.minutes == 5
    assert config.optimizer.clip == 0.1
    assert config.optimizer.learning_rates["input_projector"] == 1e-3


def test_a_configuration_reads_back_what_it_wrote(tmp_path: Path) -> None:
    config = load_config("full-align", ["data.folders={/some/where: 2.5}", "precision=float32"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


def test_a_recipe_of_ones_own_and_one_that_there_is_not(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("stage: toy\nseed: 4\n")
    assert load_config(own).seed == 4
    own.write_text("seed: 4\n")
    with pytest.raises(TrainingError, match="missing: stage"):
        load_config(own)
    own.write_text("stage: [")
    with pytest.raises(TrainingError, match="is not YAML"):
        load_config(own)
    with pytest.raises(TrainingError, match="did you mean 'pre-align'"):
        load_config("prealign")
    with pytest.raises(TrainingError, match="No such file"):
        load_config(tmp_path / "none.yaml")


def test_what_forbids_to_go_on_is_named() -> None:
    old = TrainingConfig("toy")
    new = with_changes(old, {"data.workers": 3, "threads": 2, "optimizer.clip": 2.0, "seed": 1})
    assert changed_keys(old, new) == ["optimizer.clip: 1.0 -> 2.0", "seed: 0 -> 1"]


def test_the_nearer_limit_ends_a_run() -> None:
    both = ScheduleConfig(steps=100, minutes=1)
    assert progress(both, 50, 3) == 0.5
    assert progress(both, 50, 45) == 0.75
    assert progress(both, 500, 0) == 1


def test_the_learning_rate_rises_and_falls() -> None:
    config = ScheduleConfig(steps=1, warmup=0.1, decay="cosine", floor=0.1)
    assert 0 < factor(config, 0) < 0.05
    assert factor(config, 0.05) == pytest.approx(0.5)
    assert factor(config, 0.1) == pytest.approx(1)
    assert factor(config, 0.55) == pytest.approx(0.55)
    assert factor(config, 1) == pytest.approx(0.1)
    linear = ScheduleConfig(steps=1, warmup=0, decay="linear")
    assert [factor(linear, done) for done in (0, 0.25, 1)] == [1, 0.75, 0]
    assert factor(ScheduleConfig(steps=1, warmup=0, decay="constant"), 0.9) == 1
