"""Presets small enough to build a hundred times, written as a user writes them."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

Tables = dict[str, Any]

# The sizes of `mini`, made tiny; what a test needs otherwise it changes.
_TINY: Tables = {
    "voice_encoder": {"width": 16, "mlp_width": 32, "layers": 2, "heads": 2, "rotary_dim": 6},
    "recognizer": {"width": 16, "mlp_width": 32, "layers": 2, "heads": 2, "rotary_dim": 6}
    | {"vocabulary_size": 50, "max_tokens": 20},
    "input_projector": {"input_width": 16, "width": 16, "mlp_width": 32, "heads": 2}
    | {"output_width": 24},
    "llm": {"vocabulary_size": 60, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2}
    | {"head_dim": 6, "mlp_width": 40, "max_context": 64},
    "duplex_predictor": {"input_width": 24, "width": 8, "mlp_width": 16, "heads": 2},
    "output_projector": {"input_width": 24, "output_width": 16},
    "voice_token_lm": {"speech_tokens": 9, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2}
    | {"head_dim": 4, "mlp_width": 24, "max_context": 128},
    "speech_tokenizer": {"input_width": 16, "width": 16, "mlp_width": 32, "heads": 2}
    | {"layers": 1, "dimensions": 2},
    "speaker_embedding": {"width": 8, "growth": 4, "initial_channels": 8, "blocks": [1, 1, 1]},
    "flow_matching": {"speech_tokens": 9, "speaker_width": 8, "encoder_width": 16}
    | {"encoder_heads": 2, "encoder_mlp_width": 32, "encoder_layers": 1, "upsampled_layers": 1}
    | {"estimator_width": 16, "estimator_head_dim": 8, "estimator_mid_blocks": 1},
    "vocoder": {"channels": 16, "pitch_channels": 8},
}


def tables(name: str = "tiny", base: str = "mini", **changes: Tables | None) -> Tables:
    """The tables of a tiny preset.

    Args:
        name: its name.
        base: the built-in preset from which everything comes that has no size.
        changes: keys to set in each table; None leaves a table out.
    """
    content = tomllib.loads(files("minmo.presets").joinpath(f"{base}.toml").read_text())
    for module, sizes in _TINY.items():
        content[module] |= {key: size for key, size in sizes.items() if key in content[module]}
    content |= {"name": name, "summary": "for tests"}
    for module, change in changes.items():
        if change is None:
            del content[module]
        elif "family" in change:
            content[module] = change
        else:
            content[module] = content.get(module, {}) | change
    return content


def toml(content: Tables) -> str:
    """The tables as TOML; JSON writes numbers, texts and lists as TOML does."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items() if not _table(value)]
    for key, value in content.items():
        if _table(value):
            lines += ["", f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
    return "\n".join(lines) + "\n"


def write_preset(folder: Path, name: str = "tiny", base: str = "mini", **changes: Any) -> Path:
    """Writes a tiny preset and returns its path."""
    path = folder / f"{name}.toml"
    path.write_text(toml(tables(name, base, **changes)))
    return path


def _table(value: object) -> bool:
    return isinstance(value, dict)
