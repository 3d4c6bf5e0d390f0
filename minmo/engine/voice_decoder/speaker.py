"""Who speaks: a file with a speaker's embedding and, for voices that are cloned, a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minmo.engine.voice_decoder.marks import USUAL_CHARACTERS_PER_SECOND

_MEL_FRAMES_PER_TOKEN = 2
_FASTEST, _SLOWEST = 100.0, 1.0


class SpeakerError(ValueError):
    """A speaker's file cannot be used; the text says what is wrong with it."""


@dataclass(frozen=True)
class Prompt:
    """A recording of the speaker, for the voice to go on from.

    Attributes:
        speech_tokens: of the recording, 25 a second.
        mel: `[2 * speech tokens, mel_bins]`, of the recording.
        text_tokens: what is said in it, in the vocabulary of the LLM; may be empty.
    """

    speech_tokens: tuple[int, ...]
    mel: Tensor
    text_tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Speaker:
    """Somebody whose voice can be spoken with.

    Attributes:
        name: what callers ask for.
        embedding: `[speaker_width]`, float32.
        prompt: a recording to go on from, if there is one.
        characters_per_second: how fast the speaker speaks; places the marks.
    """

    name: str
    embedding: Tensor
    prompt: Prompt | None = None
    characters_per_second: float = USUAL_CHARACTERS_PER_SECOND


def random_speaker(width: int, seed: int = 0, name: str = "random") -> Speaker:
    """Nobody: a random embedding of length 1, for tests and measurements."""
    embedding = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return Speaker(name, embedding / embedding.norm())


def save_speaker(speaker: Speaker, path: Path) -> None:
    """Writes a speaker's file, as safetensors."""
    tensors = {"embedding": speaker.embedding.float().contiguous()}
    if speaker.prompt is not None:
        tensors["prompt.speech_tokens"] = torch.tensor(speaker.prompt.speech_tokens)
        tensors["prompt.text_tokens"] = torch.tensor(speaker.prompt.text_tokens, dtype=torch.long)
        tensors["prompt.mel"] = speaker.prompt.mel.float().contiguous()
    rate = str(speaker.characters_per_second)
    save_file(tensors, path, {"name": speaker.name, "characters_per_second": rate})


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
    if len(mel) != _MEL_FRAMES_PER_TOKEN * len(speech):
        raise ValueError(
            f"its prompt has {len(speech)} speech tokens and {len(mel)} mel frames; "
            f"give {_MEL_FRAMES_PER_TOKEN} frames for each token"
        )
    text = tensors.get("prompt.text_tokens")
    return Prompt(tuple(speech), mel, tuple(text.tolist()) if text is not None else ())
