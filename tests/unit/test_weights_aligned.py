"""Aligned weights are found as one set, beside the pretrained ones, and only with their LLM."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from minmo.cli import weights as cli
from minmo.presets import Preset
from minmo.weights import WeightsError, aligned, weights_folder
from minmo.weights.aligned import (
    ALIGNED_MODULES,
    aligned_folder,
    aligned_set,
    check_aligned,
    has_aligned,
    packaged_set,
    write_aligned,
)
from minmo.weights.errors import AbsentWeightsError
from minmo.weights.folder import Source
from minmo.weights.modules import load_module, module_sha256, random_module, write_module
from minmo.weights.prepare import states
from tests.unit import published_checkpoints as made
from tests.unit.tiny_presets import write_preset

TINY = made.preset()
SOURCES = (Source("a corpus-1.0", "ab" * 32, "CC-BY-4.0"),)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(aligned, "packaged_set", lambda name: tmp_path / "packaged" / name)
    write_module(TINY, "llm", random_module(TINY, "llm"))
    return tmp_path / "home/weights/tiny"


@pytest.fixture
def packaged(tmp_path: Path) -> Path:
    return tmp_path / "packaged/tiny"


def modules(seed: int = 1, preset: Preset = TINY) -> dict[str, nn.Module]:
    chosen = replace(preset, recognition_pieces=7)
    return {name: random_module(chosen, name, seed) for name in ALIGNED_MODULES}


def first_weight(module: nn.Module) -> torch.Tensor:
    return next(iter(module.state_dict().values()))


def test_nobody_has_aligned_a_preset_yet() -> None:
    assert aligned_set(TINY) is None
    assert not has_aligned(TINY)
    message = "preset 'tiny' has not been taught to listen: .*tiny/aligned is not there; train "
    with pytest.raises(AbsentWeightsError, match=message):
        aligned_folder(TINY, "voice_encoder")
    with pytest.raises(AbsentWeightsError, match="the weights of input_projector are not in"):
        weights_folder(TINY, "input_projector")


def test_a_set_is_written_in_half_precision_and_loaded_as_it_was(home: Path) -> None:
    given = modules()
    assert write_aligned(TINY, given, sources=SOURCES) == home / "aligned"
    assert has_aligned(TINY)
    for name, module in given.items():
        folder = aligned_folder(TINY, name)
        assert folder == home / "aligned" / name
        floats = [
            t for t in load_file(folder / "model.safetensors").values() if t.is_floating_point()
        ]
        assert {tensor.dtype for tensor in floats} == {torch.float16}
        loaded = load_module(TINY, name, folder=folder)
        for key, value in module.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[key], value, atol=1e-3, rtol=1e-3)
    assert not list(home.glob(".*"))


def test_the_pretrained_encoder_stays_beside_the_adapted_one(home: Path) -> None:
    pretrained = random_module(TINY, "voice_encoder", 7)
    write_module(TINY, "voice_encoder", pretrained)
    write_aligned(TINY, modules(), dtype=torch.float32)
    adapted = load_module(TINY, "voice_encoder", folder=aligned_folder(TINY, "voice_encoder"))
    assert torch.equal(first_weight(load_module(TINY, "voice_encoder")), first_weight(pretrained))
    assert torch.equal(first_weight(adapted), first_weight(modules()["voice_encoder"]))
    # The projector goes with the adapted one, and what only a set has is found in it by itself.
    assert weights_folder(TINY, "input_projector") == home / "aligned/input_projector"
    load_module(TINY, "input_projector")
    load_module(TINY, "recognition_head")


def test_the_pretrained_encoder_is_not_replaced_by_the_adapted_one() -> None:
    write_aligned(TINY, modules())
    with pytest.raises(AbsentWeightsError, match="the weights of voice_encoder are not in"):
        weights_folder(TINY, "voice_encoder")


def test_ones_own_set_comes_before_the_packaged_one(home: Path, packaged: Path) -> None:
    write_aligned(TINY, modules(1), folder=packaged)
    assert aligned_set(TINY) == packaged
    assert has_aligned(TINY)
    load_module(TINY, "input_projector")
    write_aligned(TINY, modules(2))
    assert aligned_set(TINY) == home / "aligned"
    assert has_aligned(TINY)
    shutil.rmtree(home / "aligned")
    assert aligned_folder(TINY, "recognition_head") == packaged / "recognition_head"


def test_sets_are_not_mixed(home: Path, packaged: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_aligned(TINY, modules(1), folder=packaged)
    write_aligned(TINY, modules(2))
    shutil.rmtree(home / "aligned/recognition_head")
    message = f"{home}/aligned has no recognition_head; train the set again, or delete"
    for name in ALIGNED_MODULES:
        with pytest.raises(WeightsError, match=message):
            aligned_folder(TINY, name)
    with caplog.at_level(logging.WARNING):
        assert not has_aligned(TINY)
    assert "has no recognition_head" in caplog.text
    shutil.copytree(packaged / "recognition_head", home / "aligned/recognition_head")
    with pytest.raises(WeightsError, match="was trained against another input_projector"):
        check_aligned(TINY)


def test_a_cut_file_of_the_packaged_set_is_told(packaged: Path) -> None:
    write_aligned(TINY, modules(1), folder=packaged)
    file = packaged / "input_projector/model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="lost files of its input_projector; install MinMo agai"):
        aligned_folder(TINY, "voice_encoder")


def test_another_llm_is_refused() -> None:
    write_aligned(TINY, modules())
    write_module(TINY, "llm", random_module(TINY, "llm", 5))
    assert not has_aligned(TINY)
    with pytest.raises(
        WeightsError, match=r"input_projector in .* was trained against another llm"
    ):
        check_aligned(TINY)
    with pytest.raises(WeightsError, match="was trained against another llm"):
        load_module(TINY, "recognition_head")


def test_without_an_llm_there_is_nothing_to_listen_for(home: Path) -> None:
    write_aligned(TINY, modules())
    shutil.rmtree(home / "llm")
    assert not has_aligned(TINY)
    with pytest.raises(AbsentWeightsError, match="the weights of llm are not in"):
        check_aligned(TINY)


def test_another_encoder_in_the_set_is_refused(home: Path) -> None:
    write_aligned(TINY, modules())
    folder = home / "aligned/voice_encoder"
    write_module(TINY, "voice_encoder", random_module(TINY, "voice_encoder", 5), folder=folder)
    assert not has_aligned(TINY)
    with pytest.raises(
        WeightsError, match=r"trained against another voice_encoder: .*aligned/voice"
    ):
        load_module(TINY, "input_projector")


def test_what_each_was_trained_against_is_recorded(home: Path) -> None:
    write_aligned(TINY, modules(), sources=SOURCES)
    recorded = {
        name: json.loads((home / "aligned" / name / "config.json").read_text())["trained_against"]
        for name in ALIGNED_MODULES
    }
    encoder = module_sha256(TINY, "voice_encoder", home / "aligned/voice_encoder")
    llm = module_sha256(TINY, "llm")
    assert recorded["voice_encoder"] == {}
    assert recorded["input_projector"] == {"voice_encoder": encoder, "llm": llm}
    assert recorded["recognition_head"].keys() == {"voice_encoder", "input_projector", "llm"}


def test_an_older_set_is_replaced_whole_or_not_at_all(home: Path) -> None:
    write_aligned(TINY, modules(1))
    before = module_sha256(TINY, "voice_encoder", home / "aligned/voice_encoder")
    broken = modules(2)
    broken["recognition_head"].state_dict()["bias"][0] = torch.nan
    with pytest.raises(WeightsError, match="holds NaN or infinity in tensor 'bias'"):
        write_aligned(TINY, broken)
    assert module_sha256(TINY, "voice_encoder", home / "aligned/voice_encoder") == before
    assert has_aligned(TINY)
    write_aligned(TINY, modules(2))
    assert module_sha256(TINY, "voice_encoder", home / "aligned/voice_encoder") != before
    assert has_aligned(TINY)
    assert not list(home.glob(".*"))


def test_less_than_a_set_is_not_written(home: Path) -> None:
    some = {"input_projector": random_module(TINY, "input_projector")}
    with pytest.raises(WeightsError, match="all of them; given: input_projector"):
        write_aligned(TINY, some)
    with pytest.raises(WeightsError, match="'vocoder' is no aligned module; those are: voice_enc"):
        aligned_folder(TINY, "vocoder")
    assert not (home / "aligned").exists()


def test_an_unknown_preset_is_an_error() -> None:
    with pytest.raises(WeightsError, match="there is no preset 'huge'"):
        has_aligned("huge")


def test_the_list_shows_the_set_that_counts(tmp_path: Path, home: Path, packaged: Path) -> None:
    path = write_preset(tmp_path)
    shown = {f"aligned/{name}" for name in ALIGNED_MODULES}
    assert not shown & {state.module for state in states(str(path))}
    write_aligned(TINY, modules(), sources=SOURCES, folder=packaged)
    listed = {state.module: state for state in states(str(path)) if state.module in shown}
    assert listed.keys() == shown
    assert all(state.ready and state.licence == "CC-BY-4.0" for state in listed.values())
    assert listed["aligned/voice_encoder"].folder == str(packaged / "voice_encoder")
    write_aligned(path, modules(), sources=SOURCES)
    shutil.rmtree(home / "aligned/voice_encoder")
    done = CliRunner().invoke(cli.app, ["list", "--preset", str(path), "--json"])
    parts = {part["module"]: part for part in json.loads(done.stdout)["parts"]}
    assert not parts["aligned/voice_encoder"]["ready"]
    assert parts["aligned/input_projector"]["ready"]
    assert "aligned" not in parts


def test_folders_of_mini_are_not_taken_for_modules(tmp_path: Path) -> None:
    (tmp_path / "home/weights/mini/aligned").mkdir(parents=True)
    listed = [state.module for state in states("mini")]
    assert "aligned" not in listed
    assert "aligned/voice_encoder" in listed


def test_who_asks_where_a_set_is_needs_no_pytorch() -> None:
    code = (
        "import sys; from minmo.weights.aligned import aligned_set, packaged_set; "
        "aligned_set('mini'); packaged_set('mini'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_mini_brings_is_a_whole_set_of_the_size_that_was_promised() -> None:
    root = packaged_set("mini")
    assert root.parts[-4:] == ("minmo", "presets", "trained", "mini")
    if not root.exists():
        pytest.skip("mini has not been taught to listen yet")
    # The voice that MinMo brings lies beside it.
    assert {path.name for path in root.iterdir()} - {"voice"} == set(ALIGNED_MODULES)
    sizes = [path.stat().st_size for path in root.glob("*/model.safetensors")]
    assert sum(sizes) < 22e6
