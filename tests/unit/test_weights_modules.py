"""A module loads with the weights that belong to it, or the error says which do not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from minmo.model.packed import PackedLinear
from minmo.model.recognition_head import RecognitionHead
from minmo.model.spelling import spellings_of
from minmo.presets import MODULES, Preset, PresetError
from minmo.weights import WeightsError
from minmo.weights.folder import Source, read_manifest
from minmo.weights.hashes import tensors_sha256
from minmo.weights.importing import import_weights
from minmo.weights.modules import (
    check_trained_against,
    load_module,
    module_sha256,
    random_module,
    trained_against,
    write_module,
)
from minmo.weights.writing import write_safetensors
from tests.unit import published_checkpoints as made
from tests.unit.tiny_presets import write_preset

TINY = made.preset()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    return tmp_path / "home/weights/tiny"


def written(name: str, seed: int = 0, preset: Preset = TINY, **options: Any) -> nn.Module:
    module = random_module(preset, name, seed)
    write_module(preset, name, module, **options)
    return module


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = ({**m.state_dict(), **dict(m.named_buffers())} for m in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("preset", [TINY, made.preset(**made.WHISPER, **made.QWEN2)])
@pytest.mark.parametrize("name", MODULES)
def test_every_module_comes_back_as_it_was_written(name: str, preset: Preset) -> None:
    module = written(name, preset=preset)
    if name == "recognition_head":
        written("llm", preset=preset)
    loaded = load_module(preset, name)
    state = loaded.state_dict()
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {tensor.device.type for tensor in [*loaded.parameters(), *loaded.buffers()]} == {"cpu"}


def test_a_module_is_loaded_in_the_number_type_that_is_asked_for(home: Path) -> None:
    written("vocoder", dtype=torch.float16)
    assert load_file(home / "vocoder/model.safetensors")["conv_in.weight"].dtype == torch.float16
    assert next(load_module(TINY, "vocoder").parameters()).dtype == torch.float32
    half = load_module(TINY, "vocoder", dtype=torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llm", "voice_token_lm"])
def test_a_decoder_that_is_kept_in_half_precision_is_read_from_it_on_a_cpu(name: str) -> None:
    rounded = random_module(TINY, name).half().float()
    write_module(TINY, name, rounded, dtype=torch.float16)
    kinds = {type(layer) for layer in load_module(TINY, name).modules()}
    if "fbgemm" in torch.backends.quantized.supported_engines:
        assert PackedLinear in kinds
        assert nn.Linear not in kinds
        assert PackedLinear in {type(m) for m in random_module(TINY, name, packed=True).modules()}


def test_a_preset_may_be_a_path(tmp_path: Path) -> None:
    module = written("output_projector")
    assert same(load_module(write_preset(tmp_path), "output_projector"), module)


def test_random_modules_are_those_of_their_seed_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    for name in MODULES:
        assert same(random_module(TINY, name, 1), random_module(TINY, name, 1)), name
        assert not same(random_module(TINY, name, 1), random_module(TINY, name, 2)), name
    assert torch.equal(torch.randn(3), expected)


def test_drawing_a_module_seeds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeded.append)
    for name in MODULES:
        random_module(TINY, name)
    assert not seeded


def test_unknown_and_absent_modules_are_errors() -> None:
    with pytest.raises(PresetError, match=r"no module 'vocodr'; did you mean 'vocoder'\?"):
        load_module(TINY, "vocodr")
    message = "the weights of vocoder are not in .*; run `minmo weights import FOLDER --preset tiny"
    with pytest.raises(WeightsError, match=message):
        load_module(TINY, "vocoder")


# ---- trained against ----------------------------------------------------------------------------


def test_a_module_remembers_what_it_was_trained_against(home: Path) -> None:
    written("llm")
    written("duplex_predictor", trained_against=["llm"])
    recorded = trained_against(home / "duplex_predictor")
    assert recorded == {"llm": module_sha256(TINY, "llm")}
    with safe_open(home / "duplex_predictor/model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["trained_against"]) == recorded
    config = json.loads((home / "duplex_predictor/config.json").read_text())
    assert config["trained_against"] == recorded
    assert check_trained_against(TINY, "duplex_predictor") == ()
    load_module(TINY, "duplex_predictor")


def test_another_module_than_it_was_trained_against_is_refused(home: Path) -> None:
    written("llm")
    before = module_sha256(TINY, "llm")
    written("duplex_predictor", trained_against=["llm"])
    written("llm", seed=1)
    after = module_sha256(TINY, "llm")
    with pytest.raises(WeightsError) as caught:
        load_module(TINY, "duplex_predictor")
    message = str(caught.value)
    assert f"was trained against another llm: expected sha256 {before}, found {after}" in message
    assert message.endswith("bring back that llm, or train duplex_predictor again with this one")


def test_a_module_that_is_not_here_cannot_be_compared() -> None:
    written("output_projector", trained_against={"llm": "0" * 64})
    assert check_trained_against(TINY, "output_projector") == ("llm",)
    load_module(TINY, "output_projector")


def test_what_is_not_here_to_be_compared_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    written("output_projector", trained_against={"llm": "0" * 64})
    load_module(TINY, "output_projector")
    (record,) = [record for record in caplog.records if record.name == "minmo.weights.modules"]
    assert "trained against a certain llm, which is not here" in record.getMessage()


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors"])
def test_a_damaged_neighbour_is_not_taken_for_an_absent_one(home: Path, file: str) -> None:
    written("llm")
    written("duplex_predictor", trained_against=["llm"])
    (home / "llm" / file).write_bytes(b"{")
    with pytest.raises(WeightsError, match=r"the one that is here cannot be compared: .*tiny/llm"):
        load_module(TINY, "duplex_predictor")


def test_a_manifest_says_nothing_of_a_file_that_was_changed_since(home: Path) -> None:
    written("llm")
    written("duplex_predictor", trained_against=["llm"])
    before = module_sha256(TINY, "llm")
    path = home / "llm/model.safetensors"
    size = path.stat().st_size
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert path.stat().st_size == size
    assert module_sha256(TINY, "llm") != before
    with pytest.raises(WeightsError, match="was trained against another llm"):
        load_module(TINY, "duplex_predictor")


def test_a_hash_is_that_of_the_tensors_whatever_file_they_are_in(home: Path) -> None:
    written("vocoder")
    path = home / "vocoder/model.safetensors"
    recorded = module_sha256(TINY, "vocoder")
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"other": "header"})
    (home / "vocoder/manifest.json").unlink()
    assert module_sha256(TINY, "vocoder", home / "vocoder") == recorded
    for change in (
        {"conv_in.bias": tensors["conv_in.bias"] + 1},
        {"conv_in.bias": tensors["conv_in.bias"].double()},
        {"conv_in.bias": tensors["conv_in.bias"][None]},
        {"another.bias": tensors["conv_in.bias"]},
    ):
        assert tensors_sha256(tensors | change) != recorded


def test_training_replaces_nothing_but_its_own_module(tmp_path: Path, home: Path) -> None:
    preset = made.preset(**made.WHISPER)
    made.whisper(tmp_path / "whisper")
    import_weights(tmp_path / "whisper", preset)
    with pytest.raises(WeightsError, match="also holds recognizer, which voice_encoder would"):
        written("voice_encoder", preset=preset)
    module = written("voice_encoder", preset=preset, folder=tmp_path / "adapted")
    assert same(load_module(preset, "voice_encoder", folder=tmp_path / "adapted"), module)
    with pytest.raises(WeightsError, match="llm is for what packages have, which llm would"):
        write_module("mini", "llm", module)


def test_the_manifest_says_what_it_was_trained_on(home: Path) -> None:
    source = Source("speech-1.0", "ab" * 32, "CC0-1.0")
    written("vocoder", sources=[source])
    manifest = read_manifest(home / "vocoder")
    assert manifest is not None
    assert (manifest.origin, manifest.sources) == ("training", (source,))


# ---- the recognition head -----------------------------------------------------------------------


@torch.inference_mode()
def test_a_recognition_head_comes_back_with_its_pieces_and_the_rows_of_the_llm() -> None:
    table = written("llm").state_dict()["embed_tokens.weight"]
    head = _head(table, [3, 59, 8])
    for parameter in head.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    folder = write_module(TINY, "recognition_head", head, trained_against=["llm"])
    loaded = load_module(TINY, "recognition_head")
    assert isinstance(loaded, RecognitionHead)
    assert loaded.pieces.dtype == torch.int64
    assert same(loaded, head)
    speech = torch.randn(1, 5, 24)
    torch.testing.assert_close(loaded(speech), head(speech))
    assert loaded.decode(speech) == head.decode(speech)
    heard = loaded(speech)
    torch.testing.assert_close(loaded.mixtures(speech, heard), head.mixtures(speech, heard))
    stored = load_file(folder / "model.safetensors")
    assert stored["pieces"].dtype == torch.int32
    assert stored["spellings"].dtype == torch.uint8
    assert "rows" not in stored
    half = load_module(TINY, "recognition_head", dtype=torch.float16)
    assert isinstance(half, RecognitionHead)
    assert (half.spellings.dtype, half.rows.dtype) == (torch.uint8, torch.float16)


def _head(table: torch.Tensor, pieces: list[int]) -> RecognitionHead:
    """A head that has chosen these pieces of a table, and knows how they are spelled."""
    config = replace(TINY, recognition_pieces=len(pieces)).recognition_head
    spellings = spellings_of([f" p{piece}" for piece in pieces])
    return RecognitionHead(config, table[[p % 60 for p in pieces]], torch.tensor(pieces), spellings)


def test_a_recognition_head_needs_the_llm_that_it_was_trained_with() -> None:
    head = _head(torch.randn(60, 24), [2, 59])
    write_module(TINY, "recognition_head", head)
    with pytest.raises(WeightsError, match="the weights of llm are not in"):
        load_module(TINY, "recognition_head")
    written("llm")
    load_module(TINY, "recognition_head")
    head.pieces += 1
    write_module(TINY, "recognition_head", head)
    with pytest.raises(WeightsError, match=r"has pieces from 3 to 60; the LLM has the tokens 0 to"):
        load_module(TINY, "recognition_head")


# ---- damage -------------------------------------------------------------------------------------


def test_other_sizes_are_refused_with_both(home: Path) -> None:
    written("output_projector")
    wider = replace(TINY, output_projector=replace(TINY.output_projector, output_width=20))
    message = "says output_projector.output_width is 16, and preset 'tiny' says 20"
    with pytest.raises(WeightsError, match=message):
        load_module(wider, "output_projector")
    (home / "output_projector/config.json").write_text("{}")
    with pytest.raises(WeightsError, match="has lost files or parts of them"):
        load_module(wider, "output_projector")
    with pytest.raises(WeightsError, match=r"linear\.weight expected 20 x 48, found 16 x 48"):
        load_module(wider, "output_projector", folder=home / "output_projector")


def test_sizes_that_no_shape_shows_are_refused_too() -> None:
    written("duplex_predictor")
    other = replace(TINY, duplex_predictor=replace(TINY.duplex_predictor, heads=4))
    with pytest.raises(WeightsError, match=r"says duplex_predictor.heads is 2, .* says 4"):
        load_module(other, "duplex_predictor")


def test_how_a_module_is_run_may_change_after_training() -> None:
    written("flow_matching")
    faster = replace(TINY, flow_matching=replace(TINY.flow_matching, solver_steps=2))
    load_module(faster, "flow_matching")


def damaged(home: Path, change: dict[str, torch.Tensor | None]) -> str:
    """The error that a vocoder with other tensors gives."""
    written("vocoder")
    path = home / "vocoder/model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items()} | change
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    with pytest.raises(WeightsError) as caught:
        load_module(TINY, "vocoder", folder=home / "vocoder")
    return str(caught.value)


def test_a_missing_and_an_unknown_tensor_are_named(home: Path) -> None:
    assert "vocoder lacks 1: conv_in.bias" in damaged(home, {"conv_in.bias": None})
    assert "vocoder has no place for 1: more" in damaged(home, {"more": torch.zeros(1)})


def test_whole_numbers_for_a_weight_are_refused(home: Path) -> None:
    message = damaged(home, {"conv_in.bias": torch.zeros(16, dtype=torch.int32)})
    expected = "conv_in.bias expected floating-point numbers, found whole numbers (int32)"
    assert f"vocoder has numbers of another kind: 1: {expected}" in message


def test_a_published_configuration_with_other_heads_is_refused(tmp_path: Path) -> None:
    made.llama(tmp_path / "llm")
    import_weights(tmp_path / "llm", TINY)
    load_module(TINY, "llm")
    other = replace(TINY, llm=replace(TINY.llm, heads=2, kv_heads=1, head_dim=12))
    with pytest.raises(WeightsError, match=r"says llm.heads is 4, and preset 'tiny' says 2"):
        load_module(other, "llm")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_named(home: Path, value: float) -> None:
    message = damaged(home, {"conv_in.bias": torch.full((16,), value)})
    assert "holds NaN or infinity in tensor 'conv_in.bias'" in message


def test_a_cut_file_is_refused(home: Path) -> None:
    written("vocoder")
    path = home / "vocoder/model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WeightsError, match="has lost files or parts of them"):
        load_module(TINY, "vocoder")
    size = path.stat().st_size
    with pytest.raises(WeightsError, match=f"at tensor '.*', which ends at byte .* of {size}"):
        load_module(TINY, "vocoder", folder=home / "vocoder")


def test_nan_is_not_even_written(home: Path) -> None:
    module = random_module(TINY, "vocoder")
    module.state_dict()["conv_in.bias"][3] = float("nan")
    with pytest.raises(WeightsError, match=re.escape("in tensor 'conv_in.bias'")):
        write_module(TINY, "vocoder", module)
    assert not (home / "vocoder").exists()
    assert not list(home.glob(".*"))


def test_a_module_of_another_preset_is_not_written() -> None:
    other = made.preset(vocoder={"channels": 8})
    with pytest.raises(WeightsError, match="the module is not vocoder of preset 'tiny'"):
        write_module(TINY, "vocoder", random_module(other, "vocoder"))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_every_number_type_is_written_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "matrix": torch.arange(12).view(3, 4).to(dtype).T,
        "single": torch.tensor(1).to(dtype),
        "none": torch.zeros(0, 3, dtype=dtype),
        "narrow": torch.ones(3, dtype=torch.uint8),
    }
    write_safetensors(tmp_path / "a.safetensors", tensors, {})
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
