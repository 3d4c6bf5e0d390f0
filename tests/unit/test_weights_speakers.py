"""CosyVoice's list of speakers becomes the speakers of a preset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from minmo.cli import weights
from minmo.presets import Preset, load_preset
from minmo.weights import WeightsError
from minmo.weights.prepare import states
from minmo.weights.speaker_file import load_speaker
from minmo.weights.speakers import speaker_file, speaker_files
from minmo.weights.spk2info import import_speakers, is_spk2info
from tests.unit import published_checkpoints as made
from tests.unit.tiny_presets import write_preset

RUN = CliRunner()
Entries = dict[str, dict[str, Tensor]]


@pytest.fixture
def preset_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    return write_preset(tmp_path, **made.COSYVOICE)


@pytest.fixture
def preset(preset_file: Path) -> Preset:
    return load_preset(preset_file)


def test_every_speaker_of_the_list_can_be_spoken_as(preset: Preset, tmp_path: Path) -> None:
    source = tmp_path / "spk2info.pt"
    entries = made.spk2info(source, preset, {"Zoe": 30, "default": 15, "英文女": 16})
    assert is_spk2info(source)
    imported = import_speakers(source, preset, licence="MIT")
    assert [one.name for one in imported] == ["Zoe", "default", "英文女"]
    paths = speaker_files("tiny")
    assert [path.stem for path in paths] == ["default", "Zoe", "英文女"]
    zoe = load_speaker(paths[1])
    assert zoe.name == "Zoe"
    assert zoe.prompt is not None
    entry = entries["Zoe"]
    assert torch.equal(zoe.embedding, entry["flow_embedding"][0])
    assert list(zoe.prompt.speech_tokens) == entry["flow_prompt_speech_token"][0].tolist()
    assert list(zoe.prompt.text_tokens) == entry["prompt_text"][0].tolist()
    assert torch.equal(zoe.prompt.mel, entry["prompt_speech_feat"][0])
    listed = {state.module: (state.ready, state.licence) for state in states(_path(tmp_path))}
    assert listed["speakers/Zoe"] == (True, "MIT")


def _path(folder: Path) -> str:
    return str(folder / "tiny.toml")


def test_a_prompt_is_cut_at_its_start_to_whole_chunks(preset: Preset, tmp_path: Path) -> None:
    entries = made.spk2info(tmp_path / "spk2info.pt", preset, {"Ada": 38})
    (one,) = import_speakers(tmp_path / "spk2info.pt", preset)
    assert (one.prompt_tokens, one.cut_tokens, one.text_tokens) == (30, 8, 7)
    prompt = load_speaker(Path(one.path)).prompt
    assert prompt is not None
    assert list(prompt.speech_tokens) == entries["Ada"]["flow_prompt_speech_token"][0, 8:].tolist()
    assert torch.equal(prompt.mel, entries["Ada"]["prompt_speech_feat"][0, 16:])


def test_what_lies_behind_a_stated_length_is_padding(preset: Preset, tmp_path: Path) -> None:
    source = tmp_path / "spk2info.pt"
    entries = made.spk2info(source, preset, {"Ada": 40})
    for key, length in (("flow_prompt_speech_token", 30), ("llm_prompt_speech_token", 30)):
        entries["Ada"][f"{key}_len"] = torch.tensor([length], dtype=torch.int32)
    entries["Ada"]["prompt_speech_feat_len"] = torch.tensor([60], dtype=torch.int32)
    torch.save(entries, source)
    (one,) = import_speakers(source, preset)
    assert (one.prompt_tokens, one.cut_tokens) == (30, 0)


def test_older_lists_have_an_embedding_alone(preset: Preset, tmp_path: Path) -> None:
    torch.save({"Bea": {"embedding": torch.ones(1, 8)}}, tmp_path / "old.pt")
    assert is_spk2info(tmp_path / "old.pt")
    (one,) = import_speakers(tmp_path / "old.pt", preset)
    bea = load_speaker(Path(one.path))
    assert (one.prompt_tokens, bea.prompt) == (0, None)
    assert torch.equal(bea.embedding, torch.ones(8))


def without(*keys: str) -> Callable[[Entries], object]:
    return lambda entries: [entries["Ada"].pop(key) for key in keys]


def changed(key: str, value: Any) -> Callable[[Entries], object]:
    return lambda entries: entries["Ada"].update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("prompt_text"), "lacks prompt_text"),
        (without("prompt_speech_feat", "prompt_text"), "lacks prompt_text, prompt_speech_feat"),
        (without("flow_embedding", "llm_embedding"), "has no embedding"),
        (changed("flow_embedding", torch.zeros(1, 192)), "has 192 numbers; .* is 8"),
        (changed("flow_embedding", torch.full((1, 8), float("nan"))), "NaN or infinity"),
        (changed("prompt_speech_feat", torch.zeros(1, 50, 80)), r"\[50, 80\]; .* \[60, 80\]"),
        (changed("llm_prompt_speech_token", torch.zeros(1, 30).int()), "other speech tokens"),
        (changed("prompt_text", torch.zeros(1, 0).int()), "no tensor with numbers"),
        (lambda e: e.update({"../Ada": e.pop("Ada")}), "cannot be called '../Ada'"),
    ],
)
def test_a_speaker_that_does_not_fit_is_named_and_nothing_is_written(
    preset: Preset, tmp_path: Path, damage: Callable[[Entries], object], message: str
) -> None:
    source = tmp_path / "spk2info.pt"
    entries = made.spk2info(source, preset, {"Zoe": 15, "Ada": 30})
    damage(entries)
    torch.save(entries, source)
    with pytest.raises(WeightsError, match=message):
        import_speakers(source, preset)
    assert speaker_files("tiny") == []


def test_speech_tokens_of_another_tokenizer_are_refused(preset: Preset, tmp_path: Path) -> None:
    source = tmp_path / "spk2info.pt"
    entries = made.spk2info(source, preset, {"Ada": 15})
    for key in ("flow_prompt_speech_token", "llm_prompt_speech_token"):
        entries["Ada"][key][0, 3] = 6000
    torch.save(entries, source)
    with pytest.raises(WeightsError, match=r"holds 6000; .* 0 to 8"):
        import_speakers(source, preset)


def test_a_recording_shorter_than_a_chunk_is_refused(preset: Preset, tmp_path: Path) -> None:
    made.spk2info(tmp_path / "spk2info.pt", preset, {"Ada": 14})
    with pytest.raises(WeightsError, match=r"14 speech tokens; .* 15 or more, 0.6 s"):
        import_speakers(tmp_path / "spk2info.pt", preset)


@pytest.mark.parametrize("name", ["", ".", "..", ".Ada", "a/b", "a b", "a" * 101, "\n"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="cannot be called"):
        speaker_file("tiny", name)


def test_other_files_are_no_list_of_speakers(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "llm.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK")
    torch.save({}, tmp_path / "empty.pt")
    names = ("llm.pt", "cut.pt", "empty.pt", "none.pt")
    assert not any(is_spk2info(tmp_path / name) for name in names)


def test_the_command_tells_what_became_of_each(preset_file: Path, tmp_path: Path) -> None:
    source = tmp_path / "spk2info.pt"
    made.spk2info(source, load_preset(preset_file), {"Ada": 38})
    arguments = ["import", str(source), "--preset", str(preset_file)]
    checked = RUN.invoke(weights.app, [*arguments, "--check"])
    assert "speaker Ada: a prompt of 30 speech tokens, 7 text tokens (8 cut" in checked.stdout
    assert speaker_files("tiny") == []
    written = RUN.invoke(weights.app, [*arguments, "--json"])
    (speaker,) = json.loads(written.stdout)["speakers"]
    assert [str(path) for path in speaker_files("tiny")] == [speaker["path"]]
    made.cosyvoice(tmp_path / "cosyvoice", load_preset(preset_file))
    source.rename(tmp_path / "cosyvoice/spk2info.pt")
    folder = RUN.invoke(
        weights.app, ["import", str(tmp_path / "cosyvoice"), "--preset", str(preset_file)]
    )
    assert f"minmo weights import {tmp_path}/cosyvoice/spk2info.pt" in folder.stdout
    arguments[1] = str(tmp_path / "cosyvoice/spk2info.pt")
    refused = RUN.invoke(weights.app, [*arguments, "--module", "vocoder"])
    assert refused.exit_code == 1
    assert "leave --module out" in refused.stderr
