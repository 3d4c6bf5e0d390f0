"""CosyVoice's list of speakers, `spk2info.pt`, into the speakers of a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minmo.model.flow_encoder import MEL_FRAMES_PER_TOKEN
from minmo.model.speaker import Prompt, Speaker
from minmo.presets import Preset
from minmo.weights.errors import WeightsError
from minmo.weights.prepare import alone
from minmo.weights.progress import NoProgress, Progress
from minmo.weights.reading import load_torch
from minmo.weights.speaker_file import save_speaker
from minmo.weights.speakers import speaker_file

_EMBEDDINGS = ("flow_embedding", "llm_embedding", "embedding")
_TEXT, _MEL = "prompt_text", "prompt_speech_feat"
_SPEECH, _SPEECH_OF_LM = "flow_prompt_speech_token", "llm_prompt_speech_token"
_PROMPT = (_TEXT, _SPEECH_OF_LM, _SPEECH, _MEL)

_UNKNOWN_LICENCE = "NOASSERTION"


@dataclass(frozen=True)
class ImportedSpeaker:
    """What became of a speaker, or would.

    Attributes:
        name: what callers ask for.
        path: the file.
        prompt_tokens: speech tokens of the recording that the voice goes on from; 0: none.
        cut_tokens: speech tokens that were left out at its start.
        text_tokens: what is said in it.
        licence: SPDX identifier; `NOASSERTION` where nobody has said.
    """

    name: str
    path: str
    prompt_tokens: int
    cut_tokens: int
    text_tokens: int
    licence: str


def is_spk2info(source: Path) -> bool:
    """Say whether a file is a list of speakers, by what it holds."""
    if not source.is_file() or source.suffix != ".pt":
        return False
    try:
        content = load_torch(source)
    except WeightsError:
        return False
    known = {*_EMBEDDINGS, *_PROMPT}
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(entry, dict) and known & entry.keys() for entry in content.values())
    )


def import_speakers(
    source: Path,
    preset: Preset,
    *,
    licence: str | None = None,
    check_only: bool = False,
    progress: Progress | None = None,
) -> list[ImportedSpeaker]:
    """Brings the speakers of a list into the folder of a preset's speakers, replacing namesakes.

    All of them are checked before the first is written; each file appears whole or not at all.

    Args:
        source: `spk2info.pt`.
        preset: whose voice is to speak as them.
        licence: SPDX identifier to record.
        check_only: whether to write nothing.
        progress: hears how far it is.

    Raises:
        WeightsError: a speaker does not fit the preset; names it, and what is missing or wrong.
    """
    progress = progress or NoProgress()
    read = [_read(str(name), entry, preset) for name, entry in load_torch(source).items()]
    said = licence or _UNKNOWN_LICENCE
    imported = []
    for speaker, cut in read:
        prompt = speaker.prompt or Prompt((), torch.empty(0))
        path = speaker_file(preset.name, speaker.name)
        counts = len(prompt.speech_tokens), cut, len(prompt.text_tokens)
        imported.append(ImportedSpeaker(speaker.name, str(path), *counts, said))
    if not check_only:
        notes = {"source": f"{source.absolute().parent.name}/{source.name}", "licence": said}
        with alone(progress):
            for speaker, _ in read:
                _write(speaker, speaker_file(preset.name, speaker.name), notes)
    return imported


def _write(speaker: Speaker, path: Path, notes: Mapping[str, str]) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_speaker(speaker, unfinished, notes)
        # safetensors writes for its owner alone; other users may serve with it.
        unfinished.chmod(0o644)
        unfinished.replace(path)
    except OSError as error:
        raise WeightsError(
            f"cannot write {path}: {error}; free some room or move MINMO_HOME"
        ) from (error)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(name: str, entry: Mapping[str, Any], preset: Preset) -> tuple[Speaker, int]:
    """A speaker, and how many speech tokens of the prompt were cut."""
    speaker_file(preset.name, name)
    embedding = _embedding(name, entry, preset.flow_matching.speaker_width)
    there = [key for key in _PROMPT if key in entry]
    if not there:
        # Older lists know a speaker by the embedding alone.
        return Speaker(name, embedding), 0
    if missing := [key for key in _PROMPT if key not in entry]:
        raise WeightsError(
            f"speaker {name!r} has {', '.join(there)} and lacks {', '.join(missing)}, which a "
            "prompt needs; make the list again with CosyVoice's add_zero_shot_spk"
        )
    return _with_prompt(name, embedding, entry, preset)


def _with_prompt(
    name: str, embedding: Tensor, entry: Mapping[str, Any], preset: Preset
) -> tuple[Speaker, int]:
    flow = preset.flow_matching
    text, speech = _tokens(name, entry, _TEXT), _tokens(name, entry, _SPEECH)
    if speech != _tokens(name, entry, _SPEECH_OF_LM):
        raise WeightsError(
            f"speaker {name!r} has other speech tokens in {_SPEECH_OF_LM} than in {_SPEECH}; a "
            "prompt is one recording: make the list again with CosyVoice's add_zero_shot_spk"
        )
    if text and min(text) < 0:
        raise WeightsError(f"speaker {name!r}: {_TEXT} holds {min(text)}, which is no token")
    wrong = [token for token in speech if not 0 <= token < flow.speech_tokens]
    if wrong:
        raise WeightsError(
            f"speaker {name!r}: {_SPEECH} holds {wrong[0]}; speech tokens of preset "
            f"{preset.name!r} are 0 to {flow.speech_tokens - 1}"
        )
    mel = _field(name, entry, _MEL).float()
    mel = mel.reshape(-1, mel.shape[-1])
    frames = MEL_FRAMES_PER_TOKEN * len(speech)
    if mel.shape != (frames, flow.mel_bins):
        raise WeightsError(
            f"speaker {name!r}: {_MEL} is {list(mel.shape)}; {len(speech)} speech tokens of "
            f"preset {preset.name!r} go with {[frames, flow.mel_bins]}"
        )
    # Token2wav reads a prompt in whole chunks. What is too much goes at the start: the voice goes
    # on from the end, where text and sound must stay together, or it would first say what of the
    # text was cut. Words whose sound is cut at the start count as said.
    cut = len(speech) % flow.chunk_tokens
    if cut == len(speech):
        raise WeightsError(
            f"the prompt of speaker {name!r} has {len(speech)} speech tokens; the voice goes on "
            f"from {flow.chunk_tokens} or more, {flow.chunk_tokens / 25:g} s of a recording"
        )
    prompt = Prompt(tuple(speech[cut:]), mel[MEL_FRAMES_PER_TOKEN * cut :], tuple(text))
    return Speaker(name, embedding, prompt), cut


def _embedding(name: str, entry: Mapping[str, Any], width: int) -> Tensor:
    key = next((key for key in _EMBEDDINGS if key in entry), None)
    if key is None:
        raise WeightsError(f"speaker {name!r} has no embedding: none of {', '.join(_EMBEDDINGS)}")
    embedding = _field(name, entry, key).float().reshape(-1)
    if len(embedding) != width:
        raise WeightsError(
            f"speaker {name!r}: {key} has {len(embedding)} numbers; flow_matching.speaker_width "
            f"of the preset is {width}"
        )
    return embedding


def _tokens(name: str, entry: Mapping[str, Any], key: str) -> list[int]:
    found = _field(name, entry, key)
    if found.is_floating_point():
        raise WeightsError(f"speaker {name!r}: {key} is {found.dtype}; tokens are whole numbers")
    return [int(token) for token in found.reshape(-1).tolist()]


def _field(name: str, entry: Mapping[str, Any], key: str) -> Tensor:
    """A tensor `[1, length, ...]` or `[length, ...]`, up to the length that is stated beside it."""
    found = entry[key]
    if not isinstance(found, Tensor) or not found.numel():
        raise WeightsError(f"speaker {name!r}: {key} is no tensor with numbers in it")
    if found.is_floating_point() and not torch.isfinite(found).all():
        raise WeightsError(f"speaker {name!r}: {key} holds NaN or infinity")
    length = entry.get(f"{key}_len")
    if length is not None and found.ndim > 1:
        found = found[:, : int(length)]
    return found
