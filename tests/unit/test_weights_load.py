"""Prepared weights load whole, or the error names what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minmo.weights import WeightsError, load_state_dict, read_config, weights_folder


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_come_back_as_they_were_written(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.randn(7, 5).to(dtype)
    write(tmp_path, weight=weight, ids=torch.arange(3), empty=torch.zeros(0, dtype=dtype))
    loaded = load_state_dict(tmp_path)
    assert torch.equal(loaded["weight"], weight)
    assert loaded["weight"].dtype == dtype
    assert loaded["empty"].shape == (0,)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_value_that_is_no_number_names_its_tensor(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    damaged = torch.zeros(1000, dtype=dtype)
    damaged[617] = value
    write(tmp_path, good=torch.zeros(3), damaged=damaged)
    with pytest.raises(WeightsError, match="in tensor 'damaged'"):
        load_state_dict(tmp_path)


def test_a_cut_file_names_the_first_tensor_that_is_not_whole(tmp_path: Path) -> None:
    path = write(tmp_path, a=torch.zeros(100), b=torch.zeros(100), c=torch.zeros(100))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightsError, match=r"at tensor 'b'.*run `minmo weights`"):
        load_state_dict(tmp_path)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"cannot load .*cut or damaged"):
        load_state_dict(tmp_path)


def test_a_missing_file_is_an_error_of_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing"):
        load_state_dict(tmp_path)
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_config(tmp_path)


def test_the_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 576}))
    assert read_config(tmp_path) == {"hidden_size": 576}


def test_absent_weights_name_the_command_that_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="run `minmo weights --preset mini --only llm`"):
        weights_folder("mini", "llm")


def test_an_unknown_module_names_those_that_there_are() -> None:
    with pytest.raises(
        WeightsError, match=r"no module 'vocodr'; did you mean 'vocoder'\?; it has:"
    ):
        weights_folder("mini", "vocodr")
