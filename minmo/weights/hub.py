"""Checkpoints from the Hugging Face hub, for machines that reach it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minmo.weights import llama_gguf, moonshine
from minmo.weights.errors import WeightsError
from minmo.weights.folder import Source

# Each module's model type, the dtype it is kept in, the output layer that repeats its embedding.
_KINDS = {
    "voice_encoder": ("moonshine", torch.float32, "proj_out.weight"),
    "llm": ("llama", llama_gguf.STORED_DTYPE, "lm_head.weight"),
}
_WANTED = ("*.json", "*.safetensors", "*.jinja")
_COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def snapshot(repository: str) -> Path:
    """Download a repository's checkpoint into the hub's own cache and return its folder.

    Raises:
        WeightsError: `huggingface_hub` is not installed, or the hub cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise WeightsError(
            "--from-hub needs huggingface_hub: `pip install huggingface_hub`, or leave the option "
            "out to take the weights from packages"
        ) from None
    try:
        return Path(snapshot_download(repository, allow_patterns=list(_WANTED)))
    except Exception as error:
        # The client raises the errors of several HTTP libraries, and its own on top.
        raise WeightsError(
            f"the hub did not give {repository}: {type(error).__name__}: {error}; "
            "leave --from-hub out to take the weights from packages"
        ) from error


def convert(checkpoint: Path, module: str, folder: Path) -> None:
    """Bring a hub checkpoint into the form that package weights have.

    Args:
        checkpoint: a folder with `config.json`, safetensors files and a tokenizer.
        module: `voice_encoder` or `llm`.
        folder: an existing folder that receives the files.

    Raises:
        WeightsError: the checkpoint is of another kind, or lacks a tensor or a file.
    """
    model_type, dtype, tied = _KINDS[module]
    config = _json(checkpoint / "config.json")
    if config.get("model_type") != model_type:
        raise WeightsError(
            f"{checkpoint} holds a {config.get('model_type')!r} model; {module} is {model_type!r}"
        )
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{path} is damaged: {error}") from error
    if config.get("tie_word_embeddings", True):
        tensors.pop(tied, None)
    _check_names(module, config, tensors, checkpoint)
    save_file(
        {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in _COPIED:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, folder / name)
    if not (folder / "tokenizer.json").exists():
        raise WeightsError(f"{checkpoint} has no tokenizer.json")
    _inline_chat_template(checkpoint, folder)


def source(repository: str, checkpoint: Path, licence: str) -> Source:
    """Describe a snapshot for the manifest: its revision, and the digest of its weights."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return Source(f"{repository}@{checkpoint.name}", digest.hexdigest(), licence)


def _check_names(
    module: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], checkpoint: Path
) -> None:
    if module == "llm":
        expected = llama_gguf.expected_names(
            int(config["num_hidden_layers"]), tied=bool(config.get("tie_word_embeddings", True))
        )
    else:
        expected = moonshine.expected_names(
            int(config["encoder_num_hidden_layers"]), int(config["decoder_num_hidden_layers"])
        )
    if wrong := sorted(expected ^ tensors.keys()):
        state = "lacks" if wrong[0] in expected else "holds an unknown tensor"
        raise WeightsError(f"{checkpoint} {state} {wrong[0]!r} ({len(wrong)} such differences)")


def _inline_chat_template(checkpoint: Path, folder: Path) -> None:
    """Newer checkpoints keep the chat template in a file of its own; ours is in the config."""
    template = checkpoint / "chat_template.jinja"
    if template.exists():
        path = folder / "tokenizer_config.json"
        config = _json(path) if path.exists() else {}
        config["chat_template"] = template.read_text()
        path.write_text(json.dumps(config, indent=2) + "\n")


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    return content
