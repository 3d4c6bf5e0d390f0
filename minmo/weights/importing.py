"""Published weights into the folders of a preset: checked against its modules, then copied."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from minmo.presets import Preset, built_in_presets, check_module, load_preset
from minmo.weights import home
from minmo.weights.errors import WeightsError
from minmo.weights.fitting import SHOWN_NAMES, misfits
from minmo.weights.folder import Source, prepared
from minmo.weights.formats import Checkpoint, Found, recognise
from minmo.weights.hashes import tensors_sha256
from minmo.weights.naming import stored_tensors
from minmo.weights.parts import PRESETS
from minmo.weights.prepare import alone
from minmo.weights.progress import NoProgress, Progress
from minmo.weights.reading import file_sha256, read_json
from minmo.weights.writing import FILE, check_finite, write_safetensors

_CONVERTER_VERSION = 1
_NEED_TOKENIZER = ("llm", "recognizer")
_EXAMPLES = 4
_UNKNOWN_LICENCE = "NOASSERTION"


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint, or would.

    Attributes:
        modules: whose weights the folder holds.
        folder: where they are, or would be.
        kind: what the checkpoint is.
        tensors: how many.
        parameters: numbers in them.
        size_bytes: of the tensors.
        dtypes: their number types.
        licence: SPDX identifier; `NOASSERTION` where nobody has said.
        unused: reasons why tensors were left out, with how many of them.
        hashes: sha256 of each module's tensors; empty after a check.
    """

    modules: tuple[str, ...]
    folder: str
    kind: str
    tensors: int
    parameters: int
    size_bytes: int
    dtypes: tuple[str, ...]
    licence: str
    unused: dict[str, int]
    hashes: dict[str, str]


@dataclass(frozen=True)
class _Job:
    """One folder to fill."""

    folder_module: str
    found: dict[str, Found]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them."""
        return {name: tensor for part in self.found.values() for name, tensor in part.state.items()}


def import_weights(
    source: Path,
    preset: Preset,
    *,
    module: str | None = None,
    licence: str | None = None,
    check_only: bool = False,
    progress: Progress | None = None,
) -> list[Imported]:
    """Brings published weights into the folders from which a preset's modules are loaded.

    A folder appears whole or not at all. Tensors are copied one by one, as they were published:
    names change where a module's are others, values and number types never.

    Args:
        source: a folder or file in one of the published formats.
        preset: whose modules they are for.
        module: only this one; None for all that the checkpoint has.
        licence: SPDX identifier for the manifest; None reads it from the folder's README.
        check_only: whether to write nothing.
        progress: hears how far it is.

    Raises:
        WeightsError: the checkpoint is unknown, damaged, or does not fit; names every difference
            and the preset that it fits, if one does.
        PresetError: the preset has no such module.
    """
    progress = progress or NoProgress()
    if module is not None:
        check_module(preset, module)
    checkpoint = recognise(source)
    preset = checkpoint.fitted(preset)
    jobs = list(_jobs(checkpoint, preset, module))
    said = licence or _stated_licence(checkpoint.folder) or _UNKNOWN_LICENCE
    if check_only:
        for job in jobs:
            _check_values(checkpoint, job, progress)
        return [_imported(checkpoint, preset, job, said, {}) for job in jobs]
    with alone(progress):
        return [_import(checkpoint, preset, job, said, progress) for job in jobs]


def _jobs(checkpoint: Checkpoint, preset: Preset, module: str | None) -> Iterator[_Job]:
    offered = checkpoint.modules(preset)
    if not offered or (module is not None and module not in offered):
        wanted = module or "any module"
        has = f"; it has: {', '.join(offered)}" if offered else ""
        raise WeightsError(
            f"{checkpoint.folder} is {checkpoint.kind}, which has nothing for {wanted} of preset "
            f"{preset.name!r}{has}{_advice(checkpoint, preset, module)}"
        )
    together: dict[str, dict[str, Found]] = {}
    for name in (module,) if module else offered:
        # Alone a module has a folder of its own; with its other half it shares one.
        target = name if module else home.SHARED_FOLDER.get(name, name)
        together.setdefault(target, {})[name] = checkpoint.find(preset, name)
    differences = [
        line
        for found in together.values()
        for name, part in found.items()
        for line in _differences(checkpoint, preset, name, part)
    ]
    if differences:
        lines = "\n  ".join(differences)
        raise WeightsError(
            f"{checkpoint.folder} is {checkpoint.kind} and does not fit preset {preset.name!r}:\n"
            f"  {lines}{_advice(checkpoint, preset, module)}"
        )
    for target, found in together.items():
        _check_companions(checkpoint, found)
        yield _Job(target, found)


def _differences(
    checkpoint: Checkpoint, preset: Preset, module: str, found: Found
) -> Iterator[str]:
    config = getattr(preset, module)
    sizes = [
        f"{module}.{name}: the preset has {size}, the checkpoint {stated}"
        for name, stated in checkpoint.sizes(module).items()
        if (size := getattr(config, name)) != stated
    ]
    yield from sizes
    # Other sizes already say why tensors differ; a few then do as examples.
    shown = _EXAMPLES if sizes else SHOWN_NAMES
    expected = stored_tensors(preset, module)
    yield from misfits(module, found.missing, found.left_over, expected, found.state, shown)


def _advice(checkpoint: Checkpoint, preset: Preset, module: str | None) -> str:
    """`; it fits preset ...`, where a built-in one does."""
    for name in built_in_presets():
        other = checkpoint.fitted(load_preset(name))
        offered = checkpoint.modules(other)
        wanted = [module] if module else list(offered)
        if name == preset.name or not wanted or not set(wanted) <= set(offered):
            continue
        if not any(
            line
            for part in wanted
            for line in _differences(checkpoint, other, part, checkpoint.find(other, part))
        ):
            return f"\nIt fits preset {name!r}: use --preset {name}"
    return ""


def _check_companions(checkpoint: Checkpoint, found: Mapping[str, Found]) -> None:
    for module in found:
        names = [path.name for path in checkpoint.companions(module)]
        if module in _NEED_TOKENIZER and "tokenizer.json" not in names:
            raise WeightsError(
                f"{checkpoint.folder} has no tokenizer.json, without which {module} can neither "
                "read nor write text; save the tokenizer there too"
            )


def _check_values(checkpoint: Checkpoint, job: _Job, progress: Progress) -> None:
    task = f"check {job.folder_module}"
    progress.started(task, sum(tensor.nbytes for tensor in job.tensors.values()))
    done = 0
    for module, found in job.found.items():
        path = checkpoint.weights(module)[0]
        for name, tensor in found.state.items():
            check_finite(name, tensor, path, "get it again from where it was published")
            done += tensor.nbytes
            progress.reached(task, done)
    progress.finished(task)


def _import(
    checkpoint: Checkpoint, preset: Preset, job: _Job, licence: str, progress: Progress
) -> Imported:
    folder = home.module_folder(preset.name, job.folder_module)
    tensors = job.tensors
    _check_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
    _check_values(checkpoint, job, progress)
    paths = {path for module in job.found for path in checkpoint.weights(module)}
    digests = file_sha256(sorted(paths), progress)
    sources = tuple(
        Source(f"{path.parent.name}/{path.name}", digest, licence)
        for path, digest in digests.items()
    )
    task = f"hash {job.folder_module}"
    progress.started(task, None)
    hashes = {module: tensors_sha256(found.state) for module, found in job.found.items()}
    progress.finished(task)
    first = next(iter(job.found))
    version = _converter_version(preset.name, job.folder_module)
    with prepared(folder, job.folder_module, version, "import", sources, hashes) as new:
        for path in checkpoint.companions(first):
            shutil.copyfile(path, new / path.name)
        _write_config(checkpoint.config(preset, first), new)
        write_safetensors(new / FILE, tensors, {}, progress, f"write {job.folder_module}")
    return _imported(checkpoint, preset, job, licence, hashes)


def _converter_version(preset: str, module: str) -> int:
    """That of the package's converter where there is one: an import stands in for it."""
    parts = {part.name: part.converter_version for part in PRESETS.get(preset, ())}
    return parts.get(module, _CONVERTER_VERSION)


def _write_config(config: dict[str, Any], folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if config.get("model_type") and not (folder / "generation_config.json").exists():
        tokens = {key: config[key] for key in config if key.endswith("_token_id")}
        (folder / "generation_config.json").write_text(json.dumps(tokens, indent=2) + "\n")
    template = folder / "chat_template.jinja"
    if template.exists():
        # Newer checkpoints keep it in a file of its own; it is read from the tokenizer's config.
        path = folder / "tokenizer_config.json"
        tokenizer = read_json(path) if path.exists() else {}
        tokenizer["chat_template"] = template.read_text()
        path.write_text(json.dumps(tokenizer, indent=2) + "\n")
        template.unlink()


def _check_room(folder: Path, needed: int) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise WeightsError(
            f"the weights need {needed / 1e6:.0f} MB in {folder}, where {free / 1e6:.0f} MB are "
            "free; free some room or move MINMO_HOME"
        )


def _imported(
    checkpoint: Checkpoint, preset: Preset, job: _Job, licence: str, hashes: dict[str, str]
) -> Imported:
    tensors = job.tensors.values()
    reasons = Counter(
        reason
        for found in job.found.values()
        for name, reason in found.unused.items()
        if name not in job.tensors
    )
    return Imported(
        modules=tuple(job.found),
        folder=str(home.module_folder(preset.name, job.folder_module)),
        kind=checkpoint.kind,
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors),
        size_bytes=sum(tensor.nbytes for tensor in tensors),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        licence=licence,
        unused=dict(reasons),
        hashes=hashes,
    )


def _stated_licence(folder: Path) -> str | None:
    """What the model card's front matter says, if there is one."""
    try:
        card = (folder / "README.md").read_text(errors="replace")
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    stated = re.search(r"^license:\s*[\"']?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    known = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
    return known.get(stated[1].lower(), stated[1]) if stated else None
