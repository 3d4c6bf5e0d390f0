"""LoRA on the LLM's linear layers (arXiv 2106.09685), through `peft`.

Our layers are fused; an adapter's published form names the layers that they were fused from. A
fused layer's adapter is exactly one adapter for each of its parts: they share the matrix down to
the rank and have their rows of the matrix up. So adapters trained here fit the plain Llama and
Qwen2 models as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minmo.model.llm import Llm, LlmConfig

LINEARS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""The linear layers of a block."""

_ADAPTER = "default"
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def add_lora(
    llm: Llm,
    rank: int = 8,
    alpha: int = 16,
    targets: Sequence[str] = LINEARS,
    dropout: float = 0.0,
) -> None:
    """Puts adapters beside linear layers, in place; only they can be trained afterwards.

    They change nothing before the first training step.

    Args:
        llm: with plain weights, not packed.
        rank: of each adapter.
        alpha: an adapter's output is scaled by `alpha / rank`.
        targets: which layers of a block, of `LINEARS`.
        dropout: share of an adapter's inputs that is dropped in training.

    Raises:
        ValueError: there is no such layer, or it is packed or has an adapter.
        ImportError: `peft` is not installed (`pip install 'minmo[train]'`).
    """
    from peft import LoraConfig, inject_adapter_in_model

    if unknown := set(targets) - set(LINEARS):
        raise ValueError(f"targets {sorted(unknown)} are no layers; choose from {LINEARS}")
    for name, module in llm.layers.named_modules():
        if name.rsplit(".", 1)[-1] in targets and type(module) is not nn.Linear:
            raise ValueError(
                f"layers.{name} is a {type(module).__name__}: an adapter needs a plain linear "
                "layer; load the LLM with packed=False, and add adapters once"
            )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets)
    )
    inject_adapter_in_model(config, llm, _ADAPTER)


def merge_lora(llm: Llm) -> None:
    """Adds the adapters to the weights and takes them away, in place."""
    for name, layer in list(_adapted(llm)):
        base = layer.get_base_layer()
        with torch.no_grad():
            base.weight += layer.get_delta_weight(_ADAPTER).to(base.weight)
        parent, _, child = name.rpartition(".")
        setattr(llm.get_submodule(parent), child, base)


def lora_config(llm: Llm) -> dict[str, Any]:
    """The content of `adapter_config.json` for the adapters, in peft's format.

    Raises:
        ValueError: there are no adapters.
    """
    layers = list(_adapted(llm))
    if not layers:
        raise ValueError("the LLM has no adapters; call add_lora first")
    layer = layers[0][1]
    targets = {part for name, _ in layers for part in _parts(llm.config, name.rsplit(".", 1)[-1])}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": layer.r[_ADAPTER],
        "lora_alpha": layer.lora_alpha[_ADAPTER],
        "target_modules": sorted(targets),
        "bias": "none",
        "inference_mode": True,
    }


def lora_state_dict(llm: Llm) -> dict[str, Tensor]:
    """The adapters' tensors under peft's names for the plain model, unfused."""
    state = {}
    for name, layer in _adapted(llm):
        parent, _, child = name.rpartition(".")
        down, up = _matrices(layer)
        parts = _parts(llm.config, child)
        for part, rows in zip(parts, torch.split(up, list(parts.values())), strict=True):
            whole = f"{_PREFIX}model.{parent}.{part}"
            state[whole + _DOWN] = down.detach().clone()
            state[whole + _UP] = rows.detach().clone()
    return state


def load_lora_state_dict(llm: Llm, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Fills the adapters of an LLM with what was saved of such adapters.

    Args:
        llm: with adapters (`add_lora`).
        config: what `lora_config` gave.
        state: what `lora_state_dict` gave.

    Raises:
        ValueError: the adapters are others. Foreign adapters have a matrix
            down for each part of a fused layer: they cannot be trained on here, but merged.
    """
    left = dict(state)
    for name, layer in _adapted(llm):
        alpha = layer.lora_alpha[_ADAPTER]
        if config["lora_alpha"] != alpha:
            raise ValueError(
                f"the adapter's lora_alpha is {config['lora_alpha']}, the LLM's {alpha}: add "
                "adapters with the same one"
            )
        parent, _, child = name.rpartition(".")
        down, up = _matrices(layer)
        wholes = [f"{_PREFIX}model.{parent}.{part}" for part in _parts(llm.config, child)]
        try:
            downs = [left.pop(whole + _DOWN) for whole in wholes]
            ups = torch.cat([left.pop(whole + _UP) for whole in wholes])
        except KeyError as missing:
            raise ValueError(f"the adapter lacks the tensor {missing.args[0]!r}") from None
        if any(not torch.equal(downs[0], other) for other in downs):
            raise ValueError(
                f"the parts of {name} have adapters of their own: merge this adapter into the "
                "weights (merge_published_lora) instead of loading it"
            )
        if downs[0].shape != down.shape or ups.shape != up.shape:
            raise ValueError(
                f"{name} has rank {len(down)}, the adapter {len(downs[0])}: add adapters of its "
                "rank, and of its LLM"
            )
        with torch.no_grad():
            down.copy_(downs[0])
            up.copy_(ups)
    if left:
        raise ValueError(f"the LLM has no adapter for {sorted(left)[0]!r}; look at the targets")


def merge_published_lora(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], adapter: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Adds an adapter in peft's format to a Llama's or Qwen2's weights, before they are fused.

    Args:
        weights: tensors with Hugging Face's names; left as they are.
        config: the adapter's `adapter_config.json`.
        adapter: the adapter's tensors.

    Returns:
        All of `weights`, those that the adapter changes in their own number type.

    Raises:
        ValueError: the adapter is of another kind, or made for another model.
    """
    refused = {
        "peft_type": (config.get("peft_type"), "LORA"),
        "bias": (config.get("bias", "none"), "none"),
        "use_dora": (bool(config.get("use_dora")), False),
        "fan_in_fan_out": (bool(config.get("fan_in_fan_out")), False),
        "alpha_pattern": (config.get("alpha_pattern") or {}, {}),
        "modules_to_save": (config.get("modules_to_save") or [], []),
    }
    for key, (found, computed) in refused.items():
        if found != computed:
            raise ValueError(f"the adapter's {key} is {found!r}; only {computed!r} can be merged")
    merged, left = dict(weights), dict(adapter)
    for name in [name for name in adapter if name.endswith(_DOWN)]:
        whole = name.removesuffix(_DOWN)
        down, up = left.pop(name).float(), left.pop(whole + _UP, None)
        target = whole.removeprefix(_PREFIX) + ".weight"
        target = target if target in merged else target.removeprefix("model.")
        if up is None or target not in merged:
            missing = whole + _UP if up is None else target
            raise ValueError(f"the adapter does not fit the weights: there is no {missing!r}")
        weight, rank = merged[target], len(down)
        if weight.shape != (len(up), down.shape[1]):
            raise ValueError(
                f"the adapter changes {target!r} as {[len(up), down.shape[1]]}; the weights have "
                f"{list(weight.shape)}: it was made for another model"
            )
        scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        merged[target] = (weight.float() + scale * (up.float() @ down)).to(weight.dtype)
    if left:
        raise ValueError(f"the adapter has a tensor that cannot be merged: {sorted(left)[0]!r}")
    return merged


def _adapted(llm: Llm) -> Iterator[tuple[str, Any]]:
    """Peft's layers, each around one of ours, with their names."""
    from peft.tuners.lora import Linear

    for name, module in llm.named_modules():
        if isinstance(module, Linear):
            yield name, module


def _matrices(layer: Any) -> tuple[Tensor, Tensor]:
    """Down `[rank, in]` and up `[out, rank]`."""
    return layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight


def _parts(config: LlmConfig, linear: str) -> dict[str, int]:
    """The layers that a layer was fused from, each with its rows."""
    keys = config.kv_heads * config.head_dim
    return {
        "qkv_proj": {"q_proj": config.heads * config.head_dim, "k_proj": keys, "v_proj": keys},
        "o_proj": {"o_proj": config.width},
        "gate_up_proj": {"gate_proj": config.mlp_width, "up_proj": config.mlp_width},
        "down_proj": {"down_proj": config.width},
    }[linear]
