"""The voice set: the modules that were trained together so that a preset speaks.

They are a set, as the aligned modules are (`minmo.weights.aligned`): what reads the LLM, the voice
token LM, the flow matching and the vocoder, each in a folder of its own, and the speakers whose
voices the flow matching knows. Beside them lies the speech tokenizer, which only training needs.

    ROOT/output_projector, voice_token_lm, flow_matching, vocoder, speech_tokenizer
    ROOT/speakers/default.safetensors

A set that was trained here, in `MINMO_HOME`, comes before the one that MinMo brings as soon as it
can speak; sets are never mixed. Stages train some of the modules each, so a set is written module
by module.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from minmo.weights import home
from minmo.weights.errors import WeightsError
from minmo.weights.folder import Source, is_whole, read_manifest, replaced
from minmo.weights.parts import preset_name

if TYPE_CHECKING:
    from torch import nn

    from minmo.model.speaker import Speaker
    from minmo.presets import Preset

SPOKEN_MODULES = ("output_projector", "voice_token_lm", "flow_matching", "vocoder")
"""The modules of a set, in the order of the data."""
TOKENIZER = "speech_tokenizer"
"""Names the speech tokens that the others speak in; only training needs it."""
_AGAINST = {
    TOKENIZER: ("voice_encoder",),
    "flow_matching": (TOKENIZER,),
    "voice_token_lm": ("llm", TOKENIZER),
    "output_projector": ("llm", TOKENIZER),
}


def packaged_voice(preset: str) -> Path:
    """Return where MinMo itself would bring the voice of the preset of this name."""
    # `minmo.presets` itself would bring PyTorch.
    return Path(str(files("minmo"))) / "presets" / "trained" / preset / home.VOICE


def voice_set(preset: str | Path | Preset) -> Path | None:
    """Return the folder of the set that speaks: one made here, else MinMo's; None for neither.

    A set that lacks a module or speakers, as one that is being trained does, is not one that
    speaks. Only names are looked at.

    Args:
        preset: a built-in name, the path of a TOML file, or the preset itself.

    Raises:
        WeightsError: there is no such preset.
    """
    return speaking_set(_name(preset))


def speaking_set(name: str) -> Path | None:
    """As `voice_set`, of the preset under whose name weights are kept."""
    return next((place for place in _places(name) if _speaks(place)), None)


def tokenizer_folder(preset: str | Path | Preset) -> Path | None:
    """Return the folder of the speech tokenizer: one made here, else MinMo's; None for neither.

    Raises:
        WeightsError: there is no such preset.
    """
    folders = (place / TOKENIZER for place in _places(_name(preset)))
    return next((folder for folder in folders if folder.is_dir()), None)


def missing_in_set(root: Path) -> list[str]:
    """Return what a set lacks to speak: modules, and `speakers`; names and sizes are looked at."""
    missing = []
    for module in SPOKEN_MODULES:
        manifest = read_manifest(root / module)
        if manifest is None or not is_whole(root / module, manifest):
            missing.append(module)
    return missing if _has_speakers(root) else [*missing, home.SPEAKERS]


def check_spoken(preset: str | Path | Preset) -> None:
    """Refuses a voice set whose modules were not trained together, or not with what is here.

    Nothing is refused where no set speaks.

    Raises:
        WeightsError: says what is damaged, or expected and found.
    """
    from minmo.weights.modules import check_trained_against, trained_against

    root = voice_set(preset)
    if root is None:
        return
    agreed: dict[str, tuple[str, str]] = {}
    for module in SPOKEN_MODULES:
        check_trained_against(preset, module, root / module)
        for other, found in trained_against(root / module).items():
            first, expected = agreed.setdefault(other, (module, found))
            if found != expected:
                raise WeightsError(
                    f"{root} does not fit together: {module} was trained against the {other} of "
                    f"sha256 {found}, {first} against {expected}; train one of the two again"
                )


def write_spoken(
    preset: str | Path | Preset,
    modules: Mapping[str, nn.Module],
    folder: Path | None = None,
    speakers: Iterable[Speaker] = (),
    *,
    sources: Iterable[Source] = (),
    notes: Mapping[str, str] | None = None,
    tokenizer_sha256: str | None = None,
) -> Path:
    """Writes modules of a voice set, float16; the others of the set stay as they are.

    Where there is no set of one's own yet it begins as MinMo's, unless a new speech tokenizer is
    written, which none of MinMo's modules was trained with. The set changes as a whole or not at
    all.

    Args:
        preset: that the modules were built from.
        modules: some of `SPOKEN_MODULES` and the speech tokenizer, by their names.
        folder: of the set; None for where `voice_set` looks first.
        speakers: whose embeddings the flow matching was trained with. They come with it and
            replace those of an older one.
        sources: what the modules were trained on, for the manifests.
        notes: for the headers of the speakers' files: licence, source.
        tokenizer_sha256: hash of the speech tokenizer whose tokens the modules were trained with;
            None where it is the one that is here.

    Returns:
        The folder of the set.

    Raises:
        WeightsError: a module has no place in the set or does not fit the preset, a speaker does
            not fit the flow matching, what a module was trained against is not here, or another
            is, or the folder cannot be written.
    """
    import torch

    from minmo.presets import Preset, load_preset
    from minmo.weights.modules import module_sha256, write_module

    if not isinstance(preset, Preset):
        preset = load_preset(preset)
    speakers = list(speakers)
    _check(preset, modules, speakers)
    root = home.voice_folder(preset.name) if folder is None else folder
    with replaced(root) as new:
        base = root
        if folder is None and not root.is_dir() and TOKENIZER not in modules:
            base = packaged_voice(preset.name)
        if base.is_dir():
            shutil.copytree(base, new, dirs_exist_ok=True)
        # The tokenizer first: the others record its hash.
        for name in sorted(modules, key=lambda name: name != TOKENIZER):
            against = {
                other: module_sha256(preset, other, _in(new, other))
                for other in _AGAINST.get(name, ())
            }
            _check_tokenizer(name, against.get(TOKENIZER), tokenizer_sha256)
            write_module(
                preset,
                name,
                modules[name],
                trained_against=against,
                sources=tuple(sources),
                folder=new / name,
                dtype=torch.float16,
            )
        if "flow_matching" in modules:
            _write_speakers(new / home.SPEAKERS, preset.name, speakers, notes)
    return root


def _check(preset: Preset, modules: Mapping[str, nn.Module], speakers: list[Speaker]) -> None:
    known = (*SPOKEN_MODULES, TOKENIZER)
    strange = [name for name in modules if name not in known]
    if strange or not modules:
        given = ", ".join(strange) or "nothing"
        raise WeightsError(f"a voice set is made of {', '.join(known)}; given: {given}")
    if speakers and "flow_matching" not in modules:
        raise WeightsError("speakers are written with the flow matching that learned them")
    width = preset.flow_matching.speaker_width
    for speaker in speakers:
        if tuple(speaker.embedding.shape) != (width,):
            shape = " x ".join(map(str, speaker.embedding.shape))
            raise WeightsError(
                f"the embedding of speaker {speaker.name!r} is {shape}; preset {preset.name!r} has "
                f"{width}"
            )


def _check_tokenizer(name: str, here: str | None, learned: str | None) -> None:
    """Refuses a module that knows the tokens of another speech tokenizer than the one here."""
    if None not in (here, learned) and here != learned:
        raise WeightsError(
            f"{name} was trained with the tokens of the speech tokenizer of sha256 {learned}, and "
            f"the one that is here is {here}: bring that one back (`minmo train export` of the run "
            "that made it), or name the tokens anew (`minmo data tokens`) and train again"
        )


def _write_speakers(
    folder: Path, preset: str, speakers: Iterable[Speaker], notes: Mapping[str, str] | None
) -> None:
    from minmo.weights.speaker_file import save_speaker
    from minmo.weights.speakers import speaker_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for speaker in speakers:
        path = folder / speaker_file(preset, speaker.name).name
        save_speaker(speaker, path, notes)
        # safetensors writes for its owner alone; a folder shared by users must be readable.
        path.chmod(path.stat().st_mode | 0o444)


def _in(root: Path, module: str) -> Path | None:
    """Where a module lies in a set; None where it does not."""
    return root / module if (root / module).is_dir() else None


def _places(name: str) -> tuple[Path, Path]:
    return home.voice_folder(name), packaged_voice(name)


def _speaks(root: Path) -> bool:
    return all((root / module).is_dir() for module in SPOKEN_MODULES) and _has_speakers(root)


def _has_speakers(root: Path) -> bool:
    return any((root / home.SPEAKERS).glob("[!.]*.safetensors"))


def _name(preset: str | Path | Preset) -> str:
    # A `Preset` is not asked for by its class, which comes with PyTorch.
    return preset_name(os.fspath(preset)) if isinstance(preset, str | Path) else preset.name
