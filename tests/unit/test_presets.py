"""A preset is read as it is written, or the error says which key, what was expected, what found."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from minmo.presets import (
    MODULES,
    TABLES,
    NothingDrawn,
    PresetError,
    SizesOnly,
    build_module,
    built_in_presets,
    load_preset,
    modules_of,
    parse_preset,
)
from tests.unit.published_checkpoints import SENSE_VOICE
from tests.unit.tiny_presets import Tables, tables, toml, write_preset

BUILT_IN = ("8b", "mini")


def refused(content: Tables | str) -> PresetError:
    """The error that a preset gives."""
    with pytest.raises(PresetError) as caught:
        parse_preset(content if isinstance(content, str) else toml(content), "this.toml")
    return caught.value


def test_both_presets_come_with_the_package() -> None:
    assert built_in_presets() == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_key_of_the_file_is_a_field_with_its_value(name: str) -> None:
    preset = load_preset(name)
    written = tomllib.loads(files("minmo.presets").joinpath(f"{name}.toml").read_text())
    assert written.keys() == {"name", "summary", *TABLES}
    for module in TABLES:
        config = dataclasses.asdict(getattr(preset, module))
        for key, value in written[module].items():
            if key != "family":
                assert config.pop(key) == (_tuples(value) if isinstance(value, list) else value)
        # Only what the family settles stands in no file.
        assert config.keys() <= ({"qkv_bias"} if module == "llm" else set()), module


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def test_the_family_chooses_the_config(tmp_path: Path) -> None:
    assert type(load_preset("8b").voice_encoder).__name__ == "WhisperEncoderConfig"
    assert type(load_preset("mini").voice_encoder).__name__ == "MoonshineEncoderConfig"
    assert load_preset("8b").llm.qkv_bias
    assert not load_preset("mini").llm.qkv_bias


def test_a_preset_of_ones_own_is_a_path(tmp_path: Path) -> None:
    preset = load_preset(write_preset(tmp_path, "own"))
    assert (preset.name, preset.llm.width) == ("own", 24)


def test_a_recogniser_may_be_left_out() -> None:
    preset = parse_preset(toml(tables(recognizer=None)), "this.toml")
    assert preset.recognizer is None
    assert "recognizer" not in modules_of(preset)


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        ("vocoder", {"mel_bin": 80}, "vocoder.mel_bin: expected one of .*unknown key.*'mel_bins'"),
        ("llm", {"qkv_bias": True}, "llm.qkv_bias: expected one of .* an unknown key"),
        ("llm", {"width": "wide"}, "llm.width: expected a whole number, found the text 'wide'"),
        ("llm", {"width": 24.0}, "llm.width: expected a whole number, found the number 24.0"),
        ("llm", {"layers": True}, "llm.layers: expected a whole number, found true"),
        ("llm", {"layers": 0}, "llm.layers: expected 1 to 512, found the number 0"),
        ("llm", {"norm_epsilon": -1e-6}, "llm.norm_epsilon: expected more than 0.* -1e-06"),
        ("llm", {"tied_embeddings": 1}, "llm.tied_embeddings: expected true or false.*number 1"),
        ("llm", {"layers": 3_000_000}, "llm.layers: expected 1 to 512, found the number 3000000"),
        (
            "flow_matching",
            {"solver_steps": 10**6},
            "flow_matching.solver_steps: expected 1 to 1000",
        ),
        ("flow_matching", {"estimator_mid_blocks": 10**5}, "mid_blocks: expected 1 to 128"),
        ("voice_token_lm", {"heads": 10**6}, "voice_token_lm.heads: expected 1 to 512"),
        ("speaker_embedding", {"blocks": [4, 10**6, 4]}, "speaker_embedding.blocks: expected 1 to"),
        (
            "speaker_embedding",
            {"blocks": [1] * 33},
            "blocks: expected 32 entries at most, found 33",
        ),
        ("vocoder", {"block_dilations": [[1] * 33, [1]]}, "block_dilations: expected 32 entries"),
        (
            "speech_tokenizer",
            {"dimensions": 10**7},
            "speech_tokenizer.dimensions: expected 1 to 32",
        ),
        ("recognizer", {"max_tokens": 10**7}, "recognizer.max_tokens: expected 1 to 65536"),
        ("flow_matching", {"guidance_dropout": 1.0}, "guidance_dropout: expected .*less than 1"),
        ("vocoder", {"upsample_rates": 480}, "vocoder.upsample_rates: expected a list.*number 480"),
        ("vocoder", {"upsample_rates": [8, "5", 3]}, "upsample_rates: expected a list.*\\['?8"),
        ("speaker_embedding", {"blocks": []}, "speaker_embedding.blocks: expected a list"),
        ("voice_encoder", {"family": "wisper"}, "voice_encoder.family.*did you mean 'whisper'"),
        ("llm", {"family": "gpt"}, "llm.family: expected one of llama, qwen2, found 'gpt'"),
    ],
)
def test_a_wrong_key_is_named(module: str, change: Tables, message: str) -> None:
    content = tables()
    content[module] = content[module] | change
    assert refused(content).problems
    with pytest.raises(PresetError, match=message):
        parse_preset(toml(content), "this.toml")


def test_a_missing_key_is_named() -> None:
    content = tables()
    del content["llm"]["width"]
    (problem,) = refused(content).problems
    assert str(problem) == "llm.width: expected a whole number, found no such key"


def test_a_misspelt_key_is_said_to_be_the_missing_one() -> None:
    content = tables()
    content["llm"]["witdh"] = content["llm"].pop("width")
    assert "llm.witdh" in str(refused(content))
    assert "did you mean 'width'?" in str(refused(content))


def test_all_problems_are_told_at_once() -> None:
    content = tables(llm={"layers": 0}, vocoder={"channels": "many"})
    del content["output_projector"]
    keys = [problem.key for problem in refused(content).problems]
    assert keys == ["llm.layers", "output_projector", "vocoder.channels"]


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        ("input_projector", {"output_width": 20}, "input_projector.output_width: expected 24, as"),
        ("input_projector", {"input_width": 20}, "input_width: expected 16, as voice_encoder"),
        ("recognizer", {"width": 32}, "recognizer.width: expected 16, as voice_encoder.width is"),
        ("duplex_predictor", {"input_width": 8}, "expected 24, as llm.width is, found 8"),
        ("output_projector", {"output_width": 8}, "expected 16, as voice_token_lm.width is"),
        ("flow_matching", {"mel_bins": 40}, "vocoder.mel_bins: expected 40, as flow_matching"),
        ("flow_matching", {"speaker_width": 9}, "expected 8, as speaker_embedding.width is"),
        ("flow_matching", {"chunk_tokens": 12}, "expected 15, as voice_token_lm.speech_group"),
        ("flow_matching", {"look_ahead_tokens": 15}, "expected less than .*chunk_tokens, 15"),
        ("voice_token_lm", {"speech_tokens": 10}, "expected 9, speech_tokenizer.levels"),
        ("speech_tokenizer", {"input_width": 8}, "expected 16, as voice_encoder.width is"),
        ("speech_tokenizer", {"tokens_per_group": 2}, "expected 25 speech tokens a second"),
        ("vocoder", {"sample_rate_hz": 22050}, "vocoder.upsample_rates: expected 50 mel frames"),
        ("input_projector", {"kernel_size": 1}, "at least input_projector.stride, 2"),
        ("input_projector", {"letters": 26}, "letters: expected 42, the letters that .* found 26"),
        ("llm", {"kv_heads": 3}, "llm.heads: expected a multiple of llm.kv_heads, 3, found 4"),
        ("llm", {"head_dim": 5}, "llm.head_dim: expected an even number"),
        ("duplex_predictor", {"heads": 3}, "duplex_predictor.width: expected a multiple of"),
        ("duplex_predictor", {"heads": 8}, "duplex_predictor.width: expected a multiple of 16"),
        ("input_projector", {"heads": 16}, "input_projector.width: expected a multiple of 32"),
        ("speech_tokenizer", {"heads": 16}, "speech_tokenizer.width: expected a multiple of 32"),
        ("speech_tokenizer", {"levels": 4}, "speech_tokenizer.levels: expected an odd number"),
        ("voice_encoder", {"rotary_dim": 5}, "voice_encoder.rotary_dim: expected an even number"),
        ("recognizer", {"rotary_dim": 10}, "recognizer.rotary_dim: expected .* the 8 channels"),
        ("flow_matching", {"encoder_width": 15, "encoder_heads": 1}, "encoder_width: expected an"),
        (
            "vocoder",
            {"upsample_kernel_sizes": [16, 11, 2]},
            "expected each at least its rate .* 2 for",
        ),
        ("vocoder", {"causal": False, "upsample_kernel_sizes": [15, 11, 7]}, "even number more"),
        ("vocoder", {"causal": False, "block_kernel_sizes": [4, 7]}, "block_kernel_sizes: .* odd"),
        (
            "vocoder",
            {"causal": False, "source_kernel_sizes": [7, 7, 10]},
            "expected odd .* found 10",
        ),
        ("vocoder", {"stft_hop": 3}, "vocoder: expected sizes that fit one another.*four times"),
    ],
)
def test_modules_that_do_not_fit_are_refused(module: str, change: Tables, message: str) -> None:
    with pytest.raises(PresetError, match=message):
        parse_preset(toml(tables(**{module: change})), "this.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 10}, "voice_encoder.kernel_size: expected an odd number, found 10"),
        ({"stacked_frames": 8}, "voice_encoder.stacked_frames: expected so few that they end"),
    ],
)
def test_sizes_of_sense_voice_that_do_not_fit_are_refused(change: Tables, message: str) -> None:
    content = tables(**SENSE_VOICE, recognizer=None)
    parse_preset(toml(content), "this.toml")
    content["voice_encoder"] = content["voice_encoder"] | change
    with pytest.raises(PresetError, match=message):
        parse_preset(toml(content), "this.toml")


def test_sizes_that_a_module_refuses_are_told_with_its_table() -> None:
    preset = parse_preset(toml(tables()), "this.toml")
    unfit = dataclasses.replace(preset.duplex_predictor, heads=3)
    with pytest.raises(PresetError, match="duplex_predictor: expected sizes that fit") as caught:
        build_module(dataclasses.replace(preset, duplex_predictor=unfit), "duplex_predictor")
    assert [problem.key for problem in caught.value.problems] == ["duplex_predictor"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minni", "there is no preset 'minni'; did you mean 'mini'?; there are 8b, mini"),
        ("nowhere.toml", "cannot read the preset nowhere.toml: No such file"),
    ],
)
def test_an_unknown_preset_is_an_error(name: str, message: str) -> None:
    with pytest.raises(PresetError) as caught:
        load_preset(name)
    assert message in str(caught.value)


def test_what_is_no_toml_is_an_error() -> None:
    assert "it is not TOML" in str(refused("[llm\nwidth = 3"))


@pytest.mark.parametrize("name", ["", "../mini", ".hidden", "a b", "größe"])
def test_a_name_that_is_no_folders_name_is_refused(name: str) -> None:
    assert refused(tables(name)).problems[0].key == "name"


def test_a_file_cannot_take_the_name_of_another_built_in_preset(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="name: expected a name of its own, found 'mini'"):
        load_preset(write_preset(tmp_path, "mini"))
    same = tmp_path / "copy.toml"
    same.write_text(files("minmo.presets").joinpath("mini.toml").read_text())
    assert load_preset(same) == load_preset("mini")


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("module", MODULES)
def test_sizes_only_are_those_of_the_meta_device(name: str, module: str) -> None:
    preset = load_preset(name)
    with torch.device("meta"):
        on_meta = build_module(preset, module)
    with SizesOnly():
        sized = build_module(preset, module)
    assert _shapes(sized) == _shapes(on_meta)
    real = sum(parameter.numel() for parameter in sized.parameters() if not parameter.is_meta)
    assert real < 2_000_000, "only what is computed, such as positions, is there"


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def test_a_module_that_is_not_there_is_an_error() -> None:
    with pytest.raises(PresetError, match=r"no module 'vocodr'; did you mean 'vocoder'\?"):
        build_module(load_preset("mini"), "vocodr")


@pytest.mark.parametrize("module", MODULES)
def test_nothing_drawn_leaves_all_but_the_parameters_as_they_are(module: str) -> None:
    preset = parse_preset(toml(tables()), "this.toml")
    torch.manual_seed(0)
    drawn = build_module(preset, module)
    torch.manual_seed(0)
    quick = _with(NothingDrawn, preset, module)
    assert _shapes(drawn) == _shapes(quick)
    for (name, buffer), (_, other) in zip(
        drawn.named_buffers(), quick.named_buffers(), strict=True
    ):
        assert torch.equal(buffer, other), name


def _with(mode: Callable[[], Any], preset: Any, module: str) -> nn.Module:
    with mode():
        return build_module(preset, module)
