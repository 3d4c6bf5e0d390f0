"""A hub checkpoint becomes the same folder that packages give, or a clear error."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MoonshineConfig
from transformers import MoonshineForConditionalGeneration as Moonshine

from minmo.weights import WeightsError, ensure, home, hub, weights_folder
from minmo.weights.folder import read_manifest

LLAMA = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=True,
)
MOONSHINE = MoonshineConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    encoder_num_hidden_layers=1,
    decoder_num_hidden_layers=1,
)


def checkpoint(folder: Path, model: torch.nn.Module) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "llm", LlamaForCausalLM(LLAMA).to(torch.bfloat16))


def test_an_llm_is_converted(llm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    hub.convert(llm, "llm", out)
    written, given = load_file(out / "model.safetensors"), load_file(llm / "model.safetensors")
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], given[name].half()) for name in given)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
    template = json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    assert template == "{{ messages }}"
    assert (out / "tokenizer.json").exists()


def test_an_output_layer_that_repeats_the_embedding_is_left_out(llm: Path, tmp_path: Path) -> None:
    tensors = load_file(llm / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, llm / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    hub.convert(llm, "llm", out)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")


def test_a_voice_encoder_is_converted(tmp_path: Path) -> None:
    model = Moonshine(MOONSHINE)
    source = checkpoint(tmp_path / "moonshine", model)
    out = tmp_path / "out"
    out.mkdir()
    hub.convert(source, "voice_encoder", out)
    loaded, info = Moonshine.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_checkpoint_of_another_kind_is_refused(llm: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds a 'llama' model; voice_encoder is 'moonshine'"):
        hub.convert(llm, "voice_encoder", tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(llm: Path, tmp_path: Path) -> None:
    tensors = load_file(llm / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, llm / "model.safetensors")
    with pytest.raises(WeightsError, match=r"lacks 'model\.norm\.weight'"):
        hub.convert(llm, "llm", tmp_path)


def test_without_the_hubs_client_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="pip install huggingface_hub"):
        ensure("mini", only=("llm",), origin="hub")


def test_a_hub_out_of_reach_is_an_error_that_names_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"did not give HuggingFaceTB/.*leave --from-hub out"):
        ensure("mini", only=("llm",), origin="hub")
    assert not home.module_folder("mini", "llm").exists()


def test_weights_of_the_hub_stay_until_packages_are_asked_for(
    llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(repository: str, **_: object) -> str:
        asked.append(repository)
        return str(llm)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    ensure("mini", only=("llm",), origin="hub")
    ensure("mini", only=("llm",), origin="hub")
    ensure("mini", only=("llm",))
    assert asked == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    manifest = read_manifest(weights_folder("mini", "llm"))
    assert manifest is not None
    assert manifest.origin == "hub"
    assert manifest.sources[0].artefact.startswith("HuggingFaceTB/SmolLM2-135M-Instruct@")
