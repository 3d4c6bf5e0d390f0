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


def save_adapter(llm: Llm, folder: Path, llm_sha256: str, base_model: str | None = None) -> None:
    """Writes the adapters of an LLM into a folder that peft reads.

    Args:
        llm: with adapters (`minmo.model.lora.add_lora`).
        folder: made if it isn't there.
        llm_sha256: hash of the plain LLM's weights that they were trained beside
            (`minmo.weights.modules.module_sha256`), recorded as what they were trained against.
        base_model: name of the plain model on a hub, for who loads the adapter with peft.
    """
    from safetensors.torch import save_file

    from minmo.model.lora import lora_config, lora_state_dict
    from minmo.weights.trained_against import record

    config = lora_config(llm) | {"base_model_name_or_path": base_model}
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt", **record({"llm": llm_sha256})}
    save_file(lora_state_dict(llm), folder / _TENSORS, metadata=header)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_adapter(llm: Llm, folder: Path, llm_sha256: str) -> None:
    """Fills the adapters of an LLM from a folder that `save_adapter` wrote.

    Args:
        llm: with adapters.
        folder: with theirs.
        llm_sha256: hash of the plain LLM's weights (`minmo.weights.modules.module_sha256`).

    Raises:
        WeightsError: the folder cannot be read, the adapter does not fit, or it was trained
            against another LLM.
    """
    from minmo.model.lora import load_lora_state_dict

    config, tensors = _read(folder)
    _check_llm(folder, llm_sha256)
    try:
        load_lora_state_dict(llm, config, tensors)
    except ValueError as error:
        raise WeightsError(f"cannot load the adapter in {folder}: {error}") from error


def merge_adapter(
    weights: Mapping[str, Tensor], folder: Path, llm_sha256: str
) -> dict[str, Tensor]:
    """Adds an adapter to an LLM's weights with Hugging Face's names.

    What is trained against the adapted LLM afterwards is trained against the merged weights, whose
    hash is that of all that computes.

    Args:
        weights: of the plain LLM.
        folder: of an adapter, ours or one in peft's format that others published.
        llm_sha256: hash of the weights (`minmo.weights.modules.module_sha256`); adapters that
            others published say of none that they were trained against it.

    Raises:
        WeightsError: the folder cannot be read, the adapter does not fit, or it was trained
            against another LLM.
    """
    from minmo.model.lora import merge_published_lora

    config, tensors = _read(folder)
    _check_llm(folder, llm_sha256)
    try:
        return merge_published_lora(weights, config, tensors)
    except ValueError as error:
        raise WeightsError(f"cannot merge the adapter in {folder}: {error}") from error


def _check_llm(folder: Path, llm_sha256: str) -> None:
    from minmo.weights.trained_against import recorded

    expected = recorded(folder / _TENSORS).get("llm", llm_sha256)
    if expected != llm_sha256:
        raise WeightsError(
            f"the adapter in {folder} was trained against another llm: expected sha256 {expected}, "
            f"found {llm_sha256}; bring back that llm, or train the adapter again with this one"
        )


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
