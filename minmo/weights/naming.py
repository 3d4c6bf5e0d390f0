"""Under which names and in which shapes the tensors of each module are kept in its folder.

The LLM, Whisper and Moonshine keep the names of `transformers`, so that their folders load there
too. A folder of an encoder may hold the recogniser as its other half. Everything else has the
names of its own state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from minmo.model.llm import Llm, LlmConfig
from minmo.model.sense_voice_encoder import SenseVoiceEncoderConfig
from minmo.model.voice_token_lm import VoiceTokenLm
from minmo.presets import NothingDrawn, Preset, SizesOnly, build_module

# What `transformers` computes or ties, and some versions of it write all the same.
_REPEATED = ("rotary_emb.inv_freq",)


def prefix_of(preset: Preset, module: str) -> str:
    """What stands before the module's own names in its folder."""
    if module == "recognizer":
        return "model.decoder."
    if module == "voice_encoder" and not isinstance(preset.voice_encoder, SenseVoiceEncoderConfig):
        return "model.encoder."
    return ""


def stored_tensors(preset: Preset, module: str) -> dict[str, Tensor]:
    """Every tensor that the module's weights consist of, without memory: shapes and kinds."""
    if module == "llm":
        shapes = _llm_shapes(preset.llm)
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    prefix = prefix_of(preset, module)
    with SizesOnly():
        state = build_module(preset, module).state_dict()
    return {prefix + name: tensor for name, tensor in state.items()}


def select(preset: Preset, module: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a folder's tensors that are the module's, under the names of its folder."""
    prefix = prefix_of(preset, module)
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not is_repeated(preset, name)
    }


def is_repeated(preset: Preset, name: str) -> bool:
    """Whether a tensor of `transformers` only repeats others."""
    if name.endswith(_REPEATED) or name == "proj_out.weight":
        return True
    return name == "lm_head.weight" and preset.llm.tied_embeddings


def fill(
    preset: Preset,
    module: str,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device | str,
) -> nn.Module:
    """Builds a module for inference from the tensors of its folder.

    Raises:
        ValueError: a tensor is missing, left over, or has another shape.
    """
    if module == "llm":
        return Llm.from_state_dict(preset.llm, tensors, dtype, device, packed=True)
    if module == "voice_token_lm":
        return VoiceTokenLm.from_state_dict(
            preset.voice_token_lm, tensors, dtype, device, packed=True
        )
    with NothingDrawn():
        network = build_module(preset, module)
    prefix = prefix_of(preset, module)
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return network.requires_grad_(False).to(device, dtype).eval()


def stored_state(preset: Preset, module: str, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a built module under the names of its folder."""
    prefix = prefix_of(preset, module)
    for name, tensor in network.state_dict().items():
        if module == "llm":
            yield from _split(preset.llm, name, tensor)
        else:
            yield prefix + name, tensor


def _split(config: LlmConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One of our LLM's tensors as `transformers` has it: several that we compute at once."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    fused = {
        "qkv_proj": (("q_proj", "k_proj", "v_proj"), (queries, keys, keys)),
        "gate_up_proj": (("gate_proj", "up_proj"), (config.mlp_width, config.mlp_width)),
    }
    if name == "lm_head.weight":
        if not config.tied_embeddings:
            yield name, tensor
        return
    for joined, (parts, rows) in fused.items():
        if joined in name:
            for part, piece in zip(parts, torch.split(tensor, list(rows)), strict=True):
                yield f"model.{name.replace(joined, part)}", piece
            return
    yield f"model.{name}", tensor


def _llm_shapes(config: LlmConfig) -> dict[str, tuple[int, ...]]:
    width, queries = config.width, config.heads * config.head_dim
    keys = config.kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (config.mlp_width, width),
        "mlp.up_proj.weight": (config.mlp_width, width),
        "mlp.down_proj.weight": (width, config.mlp_width),
    }
    if config.qkv_bias:
        layer |= {
            f"self_attn.{name}_proj.bias": (rows,)
            for name, rows in (("q", queries), ("k", keys), ("v", keys))
        }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocabulary_size, width),
        "model.norm.weight": (width,),
    }
    for number in range(config.layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocabulary_size, width)
    return shapes
