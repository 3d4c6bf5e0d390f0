"""Folders with a LoRA adapter of the LLM, in peft's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minmo.weights.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from minmo.model.llm import Llm

_CONFIG = "adapter_config.json"
_TENSORS = "adapter_model.safetensors"


def save_adapter(llm: Llm, folder: Path, base_model: str | None = None) -> None:
    """Writes the adapters of an LLM into a folder that peft reads.

    Args:
        llm: with adapters (`minmo.model.lora.add_lora`).
        folder: made if it isn't there.
        base_model: name of the plain model on a hub, for who loads the adapter with peft.
    """
    from safetensors.torch import save_file

    from minmo.model.lora import lora_config, lora_state_dict

    config = lora_config(llm) | {"base_model_name_or_path": base_model}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(lora_state_dict(llm), folder / _TENSORS)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_adapter(llm: Llm, folder: Path) -> None:
    """Fills the adapters of an LLM from a folder that `save_adapter` wrote.

    Raises:
        WeightsError: the folder cannot be read, or the adapter does not fit.
    """
    from minmo.model.lora import load_lora_state_dict

    config, tensors = _read(folder)
    try:
        load_lora_state_dict(llm, config, tensors)
    except ValueError as error:
        raise WeightsError(f"cannot load the adapter in {folder}: {error}") from error


def merge_adapter(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Adds a published adapter to an LLM's weights with Hugging Face's names.

    Raises:
        WeightsError: the folder cannot be read, or the adapter does not fit.
    """
    from minmo.model.lora import merge_published_lora

    config, tensors = _read(folder)
    try:
        return merge_published_lora(weights, config, tensors)
    except ValueError as error:
        raise WeightsError(f"cannot merge the adapter in {folder}: {error}") from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config: dict[str, Any] = json.loads((folder / _CONFIG).read_text())
        return config, load_file(folder / _TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"cannot read an adapter from {folder}: {error}; it needs {_CONFIG} and {_TENSORS}"
        ) from error
