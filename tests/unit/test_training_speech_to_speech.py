"""Speech-to-speech on a tiny preset: the same text, said as the query asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from minmo.training.batches import read_sources
from minmo.training.curves import read_curve
from minmo.training.errors import TrainingError
from minmo.training.shar import Clip
from minmo.training.speaking import MODULES, asked
from minmo.training.speech_to_speech import SpeechToSpeechStage
from minmo.training.trainer import train
from tests.unit.tiny_speaking import change_customs, config, make_place, name_tokens
from tests.unit.tiny_training import silent, write_shard

TEXT = "the cat sat"
SLOWLY, QUICKLY = "sat mat", "on the cat"


def said(_: str, custom: Mapping[str, Any]) -> list[int]:
    """The first token says which it is; the others follow from it."""
    return [1] * 3 if SLOWLY in (custom.get("query"), custom.get("instruct")) else [7] * 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dialogues")
    preset = make_place(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINMO_HOME", str(folder / "home"))
        for name, count in (("train.0000", 10), ("valid.0000", 6)):
            shard = write_shard(folder / "speech", name, count)
            change_customs(shard, instructed)
            name_tokens(preset, shard, said)
            plain = write_shard(folder / "plain", name.replace("0000", "0001"), 4)
            name_tokens(preset, plain, lambda *_: [3] * 9)
    return folder


def instructed(number: int) -> Mapping[str, Any]:
    style = SLOWLY if number % 2 else QUICKLY
    field = "query" if number % 3 else "instruct"
    return {"text": TEXT, "custom": {field: style, "style": {"rate": 0.8}}}


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_HOME", str(place / "home"))


def measured(place: Path, out: Path, **options: Any) -> dict[str, float]:
    settings = config(
        place,
        "speak-dialogue",
        steps=50,
        optimizer__learning_rates=dict.fromkeys(MODULES, 1e-2),
        optimizer__ema=0.0,
        options__system_prompts=[""],
        options__free_clips=6,
        **options,
    )
    train(settings, SpeechToSpeechStage(), out, silent())
    return read_curve(out / "curves" / "valid.csv")[-1]


def test_instructions_are_followed_and_reach_the_voice_with_the_query(
    place: Path, tmp_path: Path
) -> None:
    whole = measured(place, tmp_path / "whole")
    assert (whole["accuracy"], whole["end_error"]) == (1, 0)
    # Without the query and what the LLM makes of it, nothing says which of the two it is.
    blind = measured(
        place,
        tmp_path / "blind",
        options__without_query=True,
        options__without_hidden_states=True,
    )
    assert blind["accuracy"] < 0.95
    assert blind["cross_entropy"] > whole["cross_entropy"] + 0.1


def test_plain_clips_may_be_among_them_and_not_alone(place: Path, tmp_path: Path) -> None:
    folders = {str(place / "speech"): 1.0, str(place / "plain"): 1.0}
    both = config(place, "speak-dialogue", steps=2, data__folders=folders)
    assert train(both, SpeechToSpeechStage(), tmp_path, silent()).step == 2
    plain = config(place, "speak-dialogue", data__folders={str(place / "plain"): 1.0})
    with pytest.raises(TrainingError, match="no clip has 'query' or 'instruct' in its custom"):
        SpeechToSpeechStage().build(plain, {}, read_sources(plain.data))


def test_what_was_asked_is_in_the_custom_fields() -> None:
    def of(**custom: Any) -> list[str]:
        return asked(Clip("c", TEXT, "s", 1.0, "nowhere.tar", 0, 0, custom))

    assert of(query="Say it slowly: hi", instruct="Say it slowly.", style={"rate": 0.8}) == [
        "Say it slowly: hi",
        "Say it slowly.",
    ]
    assert of(instruct="Slowly.") == ["Slowly."]
    assert of(query="", kind="sentence") == []
