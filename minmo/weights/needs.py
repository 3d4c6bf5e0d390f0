"""What a stack of a preset lacks, and the commands that bring it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from minmo.weights import home
from minmo.weights.errors import WeightsError
from minmo.weights.folder import is_whole, read_manifest
from minmo.weights.load import read_config, weights_folder
from minmo.weights.parts import PRESETS, preset_name
from minmo.weights.speakers import speaker_files
from minmo.weights.spoken import missing_in_set, voice_set

if TYPE_CHECKING:
    from minmo.presets import Preset

_ALWAYS = ("voice_encoder", "recognizer", "llm")
_VOICE = ("voice_token_lm", "flow_matching", "vocoder")


def check_imported(preset: str) -> None:
    """Says at once everything that a stack of a preset needs and that somebody has to import.

    Args:
        preset: a built-in name, or the path of a TOML file.

    Raises:
        WeightsError: something is missing; names the commands that bring it.
    """
    if preset in PRESETS:
        # Packages have all of it.
        return
    from minmo.presets import load_preset

    name = preset_name(preset)
    found = load_preset(preset)
    needed = [module for module in _ALWAYS if getattr(found, module) is not None]
    missing = [module for module in needed if not _is_usable(found, module)]
    if not missing:
        return
    lines = list(_commands(preset, found, missing))
    voice = missing_for_voice(preset)
    if voice:
        lines.append("For a voice of its own (SVOX Pico speaks without it):")
        lines += _commands(preset, found, voice)
    raise WeightsError(
        f"preset {name!r} has no weights of {', '.join(missing)} in {home.module_folder(name, '')}."
        " What brings them:\n  " + "\n  ".join(lines)
    )


def missing_for_voice(preset: str) -> list[str]:
    """Return what a preset's own voice lacks: modules, and `speakers`; nothing if it can speak.

    Only names and sizes of files are looked at, so that a process that will do without PyTorch
    can ask. Of a voice set that is being trained and what was imported, that which lacks less
    counts.

    Args:
        preset: a built-in name, or the path of a TOML file.

    Raises:
        WeightsError: there is no such preset.
    """
    name, root = preset_name(preset), voice_set(preset)
    if root is not None:
        return missing_in_set(root)
    missing = [module for module in _VOICE if not _is_there(name, module)]
    if not voice_reads_text(preset) and not _is_there(name, "output_projector"):
        missing.append("output_projector")
    if not speaker_files(name):
        missing.append(home.SPEAKERS)
    return min(missing, missing_in_set(home.voice_folder(name)), key=len)


def voice_reads_text(preset: str) -> bool:
    """Say whether the voice token LM that is there has a table of text tokens of its own.

    CosyVoice 2's has, and so speaks in the cascade; where there is none yet, that is what one would
    import.

    Raises:
        WeightsError: there is no such preset.
    """
    name, root = preset_name(preset), voice_set(preset)
    if root is None and not _is_there(name, "voice_token_lm"):
        return True
    folder = home.module_folder(name, "voice_token_lm") if root is None else root / "voice_token_lm"
    sizes = read_config(folder).get("sizes", {})
    return bool(sizes.get("text_vocabulary"))


def voice_commands(preset: str) -> list[str]:
    """Return the commands that bring what a preset's own voice lacks; none if it can speak.

    Raises:
        WeightsError: there is no such preset.
    """
    from minmo.presets import load_preset

    missing = missing_for_voice(preset)
    return list(_commands(preset, load_preset(preset), missing)) if missing else []


def _is_usable(preset: Preset, module: str) -> bool:
    try:
        weights_folder(preset, module)
    except WeightsError:
        return False
    return True


def _is_there(name: str, module: str) -> bool:
    folder = home.module_folder(name, module)
    manifest = read_manifest(folder)
    return manifest is not None and is_whole(folder, manifest)


def _commands(argument: str, preset: Preset, missing: Iterable[str]) -> Iterator[str]:
    """One line for each checkpoint that has something of what is missing."""
    brought: dict[tuple[str, str], list[str]] = {}
    for module in missing:
        if module == "output_projector":
            yield "output_projector is trained together with a voice token LM without a text table"
        else:
            brought.setdefault(_brought_by(preset, module), []).append(module)
    for (what, checkpoint), modules in brought.items():
        command = f"minmo weights import {what} --preset {argument}"
        yield f"{command}   # {checkpoint}: {' and '.join(modules)}"


def _brought_by(preset: Preset, module: str) -> tuple[str, str]:
    """What to import for a module, and which published checkpoint that is."""
    if module == home.SPEAKERS:
        return "spk2info.pt", "CosyVoice's list of speakers"
    if module in ("voice_encoder", "recognizer"):
        return "FOLDER", _listener(preset)
    if module != "llm":
        return "FOLDER", "CosyVoice 2, as FunAudioLLM/CosyVoice2-0.5B"
    if preset.llm.qkv_bias:
        return "FOLDER", "a Qwen2.5 of the preset's size, as Qwen/Qwen2.5-7B-Instruct"
    return "FOLDER", "a Llama of the preset's size"


def _listener(preset: Preset) -> str:
    from minmo.model.moonshine_encoder import MoonshineEncoderConfig
    from minmo.model.sense_voice_encoder import SenseVoiceEncoderConfig

    if isinstance(preset.voice_encoder, SenseVoiceEncoderConfig):
        return "SenseVoice, as FunAudioLLM/SenseVoiceSmall"
    if isinstance(preset.voice_encoder, MoonshineEncoderConfig):
        return "a Moonshine of the preset's size"
    return "a Whisper of the preset's size, as openai/whisper-large-v3"
