"""A speaker's file: the embedding and the prompt as safetensors, with a name in the header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minmo.model.flow_encoder import MEL_FRAMES_PER_TOKEN
from minmo.model.speaker import USUAL_CHARACTERS_PER_SECOND, Prompt, Speaker, SpeakerError

_FASTEST, _SLOWEST = 100.0, 1.0


def save_speaker(speaker: Speaker, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Writes a speaker's file, as safetensors.

    Args:
        speaker: who speaks.
        path: a file, replaced if it is there.
        notes: where it comes from and the like, for the file's header.
    """
    tensors = {"embedding": speaker.embedding.float().contiguous()}
    if speaker.prompt is not None:
        tensors["prompt.speech_tokens"] = torch.tensor(speaker.prompt.speech_tokens)
        tensors["prompt.text_tokens"] = torch.tensor(speaker.prompt.text_tokens, dtype=torch.long)
        tensors["prompt.mel"] = speaker.prompt.mel.float().contiguous()
    rate = str(speaker.characters_per_second)
    header = {**(notes or {}), "name": speaker.name, "characters_per_second": rate}
    save_file(tensors, path, header)


def load_speaker(path: Path) -> Speaker:
    """Reads a speaker's file.

    Raises:
        SpeakerError: it is not there or damaged, or what it holds does not fit together.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        speaker = _assemble(path, tensors, metadata)
    except (OSError, SafetensorError, ValueError) as error:
        raise SpeakerError(f"cannot use the speaker's file {path}: {error}") from error
    return speaker


def _assemble(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Speaker:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")
    if "embedding" not in tensors or tensors["embedding"].ndim != 1:
        raise ValueError("it needs a tensor 'embedding' [speaker_width]")
    rate = float(metadata.get("characters_per_second", USUAL_CHARACTERS_PER_SECOND))
    if not _SLOWEST <= rate <= _FASTEST:
        raise ValueError(f"characters_per_second is {rate}; give {_SLOWEST:g} to {_FASTEST:g}")
    name = metadata.get("name", path.stem)
    return Speaker(name, tensors["embedding"].float(), _prompt_of(tensors), rate)


def _prompt_of(tensors: dict[str, Tensor]) -> Prompt | None:
    if "prompt.speech_tokens" not in tensors:
        return None
    if "prompt.mel" not in tensors or tensors["prompt.mel"].ndim != 2:
        raise ValueError("a prompt needs a tensor 'prompt.mel' [frames, mel_bins]")
    speech, mel = tensors["prompt.speech_tokens"].tolist(), tensors["prompt.mel"].float()
    if len(mel) != MEL_FRAMES_PER_TOKEN * len(speech):
        raise ValueError(
            f"its prompt has {len(speech)} speech tokens and {len(mel)} mel frames; "
            f"give {MEL_FRAMES_PER_TOKEN} frames for each token"
        )
    text = tensors.get("prompt.text_tokens")
    return Prompt(tuple(speech), mel, tuple(text.tolist()) if text is not None else ())
