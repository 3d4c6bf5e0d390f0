"""Network modules with their weights: the one way in which services and engine load them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from minmo.model.llm import random_llm
from minmo.model.packed import pack_linears
from minmo.model.recognition_head import RecognitionHead
from minmo.presets import (
    NothingDrawn,
    Preset,
    build_module,
    check_module,
    load_preset,
    modules_of,
    with_text_table,
)
from minmo.weights import home
from minmo.weights.aligned import ALIGNED_MODULES, aligned_folder
from minmo.weights.duplex import DUPLEX_MODULE
from minmo.weights.errors import AbsentWeightsError, WeightsError
from minmo.weights.fitting import differences
from minmo.weights.folder import Source, file_stamp, prepared, read_manifest
from minmo.weights.formats import stated_sizes
from minmo.weights.hashes import tensors_sha256
from minmo.weights.load import load_state_dict, read_config, weights_folder
from minmo.weights.naming import fill, select, stored_state, stored_tensors
from minmo.weights.parts import packaged_parts
from minmo.weights.prepare import alone
from minmo.weights.progress import NoProgress
from minmo.weights.reading import map_safetensors
from minmo.weights.spoken import TOKENIZER
from minmo.weights.trained_against import TRAINED_AGAINST, record, recorded
from minmo.weights.writing import FILE, check_finite, write_safetensors

log = logging.getLogger(__name__)

_CONVERTER_VERSION = 1
_READ_FROM_HALF = ("llm", "voice_token_lm")
_PIECES = "pieces"
# How a module is run may change after training; what it computes may not.
_RUNTIME = frozenset({"max_context", "max_tokens", "solver_steps", "guidance", "guidance_dropout"})


def load_module(
    preset: str | Path | Preset,
    name: str,
    *,
    folder: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Loads a module of a preset, for inference.

    Args:
        preset: its name, the path of its TOML file, or itself.
        name: of the module.
        folder: with the weights; None for where they were prepared or imported. The modules that
            it was trained against are looked for beside it first.
        dtype: of computation.
        device: where to compute.

    Raises:
        WeightsError: the weights are missing, damaged, of other sizes than the preset says, or
            were trained against other modules than those that are here.
        PresetError: there is no such preset, or it has no such module.
    """
    preset = _loaded(preset)
    check_module(preset, name)
    folder = weights_folder(preset, name) if folder is None else folder
    preset = _fitted(preset, name, folder)
    _check_sizes(preset, name, folder)
    for other in check_trained_against(preset, name, folder):
        log.warning(
            "%s in %s was trained against a certain %s, which is not here to be compared",
            name,
            folder,
            other,
        )
    tensors = select(preset, name, load_state_dict(folder))
    lines = list(differences(name, stored_tensors(preset, name), tensors))
    if lines:
        raise WeightsError(
            f"{folder / FILE} does not fit preset {preset.name!r}:\n  " + "\n  ".join(lines) + "\n"
            "Use the preset that it was made for, or bring the weights of this one"
        )
    if name == "recognition_head":
        return _recognition_head(preset, tensors, folder).to(device, dtype)
    return fill(preset, name, tensors, dtype, device)


def random_module(
    preset: str | Path | Preset,
    name: str,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    packed: bool = False,
) -> nn.Module:
    """An untrained module for inference, to measure with: the same one for the same seed.

    It is drawn on the CPU, but for the LLM, which is drawn where it computes; the global
    generators are left alone, those of GPUs too.

    Args:
        preset: its name, the path of its TOML file, or itself.
        name: of the module.
        seed: of its weights.
        dtype: of computation.
        device: where to compute.
        packed: whether to round weights to float16 where trained ones are kept in it, which makes
            it as fast on a CPU as they are (`minmo.model.packed`).
    """
    preset = _loaded(preset)
    if name == "llm":
        module: nn.Module = random_llm(preset.llm, seed, dtype, device)
    else:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            # `torch.manual_seed` would seed the generators of GPUs as well.
            torch.default_generator.manual_seed(seed)
            module = build_module(preset, name).to(device, dtype)
    module.requires_grad_(False).eval()
    if packed and name in _READ_FROM_HALF and dtype == torch.float32:
        for parameter in module.parameters():
            parameter.data = parameter.data.half().float()
        pack_linears(module)
    return module


def module_sha256(preset: str | Path | Preset, name: str, folder: Path | None = None) -> str:
    """The hash of a module's weights as they are here.

    The manifest's counts as long as the file is the one that it was computed of; else it is
    computed, once in a process for a file that stays as it is.

    Raises:
        AbsentWeightsError: they are not here.
        WeightsError: they are damaged.
    """
    preset = _loaded(preset)
    folder = weights_folder(preset, name) if folder is None else folder
    manifest, stamp = read_manifest(folder), file_stamp(folder / FILE)
    if manifest is not None and name in manifest.hashes and manifest.hashed_file == stamp:
        return manifest.hashes[name]
    return _computed_sha256(preset, name, folder, tuple(stamp))


@lru_cache(maxsize=32)
def _computed_sha256(preset: Preset, name: str, folder: Path, stamp: tuple[int, ...]) -> str:
    tensors = map_safetensors(folder / FILE, f"delete {folder} and bring the weights again")
    return tensors_sha256(select(preset, name, tensors))


def write_module(
    preset: str | Path | Preset,
    name: str,
    module: nn.Module,
    *,
    trained_against: Mapping[str, str] | Iterable[str] = (),
    sources: Iterable[Source] = (),
    folder: Path | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes a trained module; its folder appears whole or not at all.

    Args:
        preset: that it was built from.
        name: of the module.
        module: with its weights.
        trained_against: the modules that it was trained against, and so works with: their names,
            for those that are here, or their hashes by name (`module_sha256`).
        sources: what it was trained on, for the manifest.
        folder: where to write; None for where `load_module` finds it, unless what is there came
            from a package or belongs to other modules too.
        dtype: to store floating-point weights in; None for what they are.
        metadata: what else the file's header gets, such as a predictor's thresholds.

    Returns:
        The folder.

    Raises:
        WeightsError: the weights hold NaN or infinity, do not fit the preset, or cannot be written.
        PresetError: there is no such preset, or it has no such module.
    """
    preset = _loaded(preset)
    folder = _own_folder(preset, name) if folder is None else folder
    if isinstance(module, RecognitionHead):
        preset = replace(preset, recognition_pieces=module.blank)
    state = {key: _stored(tensor, dtype) for key, tensor in stored_state(preset, name, module)}
    if isinstance(module, RecognitionHead):
        # A vocabulary is not so large that token ids need more.
        state[_PIECES] = state[_PIECES].int()
    if lines := list(differences(name, stored_tensors(preset, name), state)):
        raise WeightsError(
            f"the module is not {name} of preset {preset.name!r}:\n  " + "\n  ".join(lines)
        )
    if not isinstance(trained_against, Mapping):
        trained_against = {other: module_sha256(preset, other) for other in trained_against}
    hashes = {name: tensors_sha256(state)}
    content = {
        "module": name,
        "sizes": asdict(getattr(preset, name)),
        TRAINED_AGAINST: dict(trained_against),
    }
    with (
        alone(NoProgress()),
        prepared(folder, name, _CONVERTER_VERSION, "training", tuple(sources), hashes) as new,
    ):
        write_safetensors(new / FILE, state, {**(metadata or {}), **record(trained_against)})
        (new / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    return folder


def trained_against(folder: Path) -> dict[str, str]:
    """The hashes of the modules that a folder's module was trained against, by their names.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    return recorded(folder / FILE)


def check_trained_against(
    preset: str | Path | Preset, name: str, folder: Path | None = None
) -> tuple[str, ...]:
    """Refuses a module that was trained against other weights than those that are here.

    Args:
        preset: the preset.
        name: of the module.
        folder: with its weights; None for where `load_module` finds them. Another module that
            lies beside it, as in a set that was trained together, is the one that is meant.

    Returns:
        Modules that it was trained against and that are not here, so that nobody can compare: a
        machine that only speaks needs no LLM.

    Raises:
        WeightsError: names the other module, the hash expected and the hash found; or the other
            is here and damaged.
    """
    preset = _loaded(preset)
    folder = weights_folder(preset, name) if folder is None else folder
    absent = []
    for other, expected in trained_against(folder).items():
        if other == TOKENIZER and not (folder.parent / other).exists():
            # Nothing but training needs it, and that of another set says nothing of this one.
            continue
        if other not in modules_of(preset):
            absent.append(other)
            continue
        try:
            where = _partner(preset, name, other, folder)
            found = module_sha256(preset, other, where)
        except AbsentWeightsError:
            absent.append(other)
            continue
        except WeightsError as error:
            raise WeightsError(
                f"{name} in {folder} was trained against a certain {other}, and the one that is "
                f"here cannot be compared: {error}"
            ) from error
        if found != expected:
            raise WeightsError(
                f"{name} in {folder} was trained against another {other}: expected sha256 "
                f"{expected}, found {found} in {where}; bring back that {other}, or train {name} "
                "again with this one"
            )
    return tuple(absent)


def _loaded(preset: str | os.PathLike[str] | Preset) -> Preset:
    return preset if isinstance(preset, Preset) else load_preset(os.fspath(preset))


def _partner(preset: Preset, name: str, other: str, folder: Path) -> Path:
    """Where the module lies that a module in a folder has to work with."""
    if name == DUPLEX_MODULE and other in ALIGNED_MODULES:
        # It decides on what the LLM makes of speech: those modules are never the pretrained ones.
        return aligned_folder(preset, other)
    return _in_set(preset, other, folder) or weights_folder(preset, other)


def _in_set(preset: Preset, other: str, folder: Path) -> Path | None:
    """Where another module lies beside a folder that is none of those that packages fill."""
    beside = folder.parent / other
    apart = folder.parent != home.module_folder(preset.name, "")
    return beside if apart and beside.exists() else None


def _own_folder(preset: Preset, name: str) -> Path:
    check_module(preset, name)
    folder = home.module_folder(preset.name, name)
    manifest = read_manifest(folder)
    others = sorted(manifest.hashes.keys() - {name}) if manifest is not None else []
    packaged = any(part.name == name for part in packaged_parts(preset.name))
    if packaged or others:
        holds = f"also holds {' and '.join(others)}" if others else "is for what packages have"
        raise WeightsError(
            f"{folder} {holds}, which {name} would replace: write it into a folder of its own"
        )
    return folder


def _fitted(preset: Preset, name: str, folder: Path) -> Preset:
    """The preset, with what is no size of its own: which text the weights of a module know."""
    sizes = read_config(folder).get("sizes", {})
    if name == "recognition_head":
        return replace(preset, recognition_pieces=sizes.get("pieces"))
    stated = sizes.get("text_vocabulary", 0)
    if name != "voice_token_lm" or not stated or preset.voice_token_lm.text_vocabulary:
        return preset
    return with_text_table(preset, stated)


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _check_sizes(preset: Preset, name: str, folder: Path) -> None:
    """Compares what shapes don't show, such as the number of heads, where the folder states it."""
    stated = stated_sizes(folder, name)
    wanted = json.loads(json.dumps(asdict(getattr(preset, name))))
    for key, value in stated.items():
        if key in wanted and key not in _RUNTIME and wanted[key] != value:
            raise WeightsError(
                f"{folder / 'config.json'} says {name}.{key} is {value}, and preset "
                f"{preset.name!r} says {wanted[key]}; use the preset that the weights were made "
                "for, or bring the weights of this one"
            )


def _recognition_head(preset: Preset, tensors: dict[str, Tensor], folder: Path) -> RecognitionHead:
    """The head with its weights, and with the rows of the LLM's table that it compares with."""
    rows, pieces = "model.embed_tokens.weight", tensors[_PIECES].long()
    path = weights_folder(preset, "llm") / FILE
    table = select(preset, "llm", map_safetensors(path, "bring the LLM again")).get(rows)
    wanted = (preset.llm.vocabulary_size, preset.llm.width)
    if table is None or tuple(table.shape) != wanted:
        found = "none" if table is None else " x ".join(map(str, table.shape))
        raise WeightsError(
            f"the recognition head reads {rows} of the LLM in {path}: expected "
            f"{wanted[0]} x {wanted[1]}, found {found}; bring the LLM of preset {preset.name!r}"
        )
    if int(pieces.min()) < 0 or int(pieces.max()) >= len(table):
        raise WeightsError(
            f"{folder / FILE} has pieces from {int(pieces.min())} to {int(pieces.max())}; the LLM "
            f"has the tokens 0 to {len(table) - 1}; bring the head that was trained with it"
        )
    chosen = table[pieces]
    check_finite(rows, chosen, path, "bring the LLM again")
    with NothingDrawn():
        head = RecognitionHead(preset.recognition_head, chosen)
    head.load_state_dict({**tensors, _PIECES: pieces}, assign=True)
    return head.requires_grad_(False).eval()
