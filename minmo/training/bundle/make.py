"""Makes a bundle: gathers what training needs on the other machine and writes its parts."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minmo.presets import load_preset
from minmo.training.bundle import run, start, wheels
from minmo.training.bundle.code import code
from minmo.training.bundle.errors import BundleError
from minmo.training.bundle.parts import Entry, Part, write_parts
from minmo.training.bundle.plan import Plan
from minmo.training.bundle.weights import HOME, weights
from minmo.training.data.packages import folder_of
from minmo.training.data.phonemes import beside
from minmo.training.data.voice import VOICE
from minmo.training.speech_tokens import are_named, tokenizer_sha256, tokens_file
from minmo.weights import home
from minmo.weights.progress import NoProgress, Progress
from minmo.weights.spoken import TOKENIZER

TEXTS = "texts/texts.jsonl.gz"
"""Where the texts lie in a bundle; their phonemes lie beside them."""

MODULES = ("voice_encoder", "llm")
# The command line, and what it needs to say what went wrong.
_MODULES_TO_TRY = ("minmo.cli.main", "minmo.client.errors", "minmo.settings", "minmo.stack.errors")
_RUN = b"""#!/bin/sh
# Makes speech, trains on it and measures what came of it: ./run.sh [--minutes M]; see --help.
set -eu
exec "${PYTHON:-python3}" "$(dirname "$0")/start.py" "$@"
"""


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle.

    Attributes:
        plan: what is done with it.
        preset: whose modules: its name or the path of its TOML file.
        modules: whose weights are packed.
        texts: a file of texts that have their phonemes beside them, or None for no speech to make.
        recordings: folders of Shar folders, by the name that each has under `home/speech`.
        files: other files, by their paths in the bundle.
        python: version of the other machine's Python.
        has: packages that the other machine has.
        roots: packages that are needed, with a module of each to try; what they need comes by
            itself.
    """

    plan: Plan
    preset: str = "mini"
    modules: tuple[str, ...] = MODULES
    texts: Path | None = None
    recordings: dict[str, Path] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    python: str = "3.11"
    has: tuple[str, ...] = ("torch", "transformers", "numpy")
    roots: Mapping[str, str] = field(default_factory=lambda: wheels.ROOTS)


def make(
    contents: Contents,
    folder: Path,
    part_bytes: int,
    *,
    told: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> list[Part]:
    """Writes a bundle's parts.

    Args:
        contents: of the bundle.
        folder: for the parts; those of an earlier bundle are replaced.
        part_bytes: the size that no part exceeds.
        told: hears what is being done.
        progress: hears how many bytes are packed.

    Raises:
        BundleError: something is missing, or does not fit.
        WeightsError: weights are missing or damaged.
        OSError: a file cannot be read or written.
    """
    progress = progress or NoProgress()
    with tempfile.TemporaryDirectory(prefix="minmo-bundle-") as name:
        scratch = Path(name)
        entries = [*_programs(contents), *code(), *_given(contents)]
        if contents.roots:
            told(f"fetching wheels for Python {contents.python}")
            fetched = wheels.fetch(contents.python, contents.has, scratch, contents.roots)
            entries += [Entry(f"wheels/{wheel.name}", wheel) for wheel in fetched]
        if contents.texts is not None:
            entries += _speech(contents.texts, progress)
        told("gathering weights")
        entries += weights(contents.preset, contents.modules, scratch)
        task, total = "pack", sum(entry.size() for entry in entries)
        progress.started(task, total)
        parts = write_parts(
            entries,
            folder,
            part_bytes=part_bytes,
            cache=home.home() / "bundle-cache",
            about={"plan": [step.name for step in contents.plan.steps]},
            reached=lambda done: progress.reached(task, done),
        )
        progress.finished(task)
        return parts


def _programs(contents: Contents) -> list[Entry]:
    about = {
        "python": contents.python,
        "has": list(contents.has),
        "imports": [*contents.roots.values(), *_MODULES_TO_TRY],
    }
    return [
        Entry("run.sh", _RUN, executable=True),
        Entry("start.py", Path(start.__file__)),
        Entry(start.ABOUT, (json.dumps(about, indent=1) + "\n").encode()),
        Entry(run.PLAN, (json.dumps(contents.plan.to_json(), indent=1) + "\n").encode()),
    ]


def _given(contents: Contents) -> list[Entry]:
    entries = [_file(path, source) for path, source in sorted(contents.files.items())]
    if _is_file(contents.preset):
        entries.append(_file(_preset_path(contents.preset), Path(contents.preset)))
    for name, folder in sorted(contents.recordings.items()):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        # What an interrupted writer left begins with a dot.
        kept = [path for path in paths if not _is_hidden(path.relative_to(folder))]
        if not any(path.name.startswith("cuts") for path in kept):
            raise BundleError(
                f"{folder} has no shards of recordings: expected folders train.0000 and so on, "
                "each with cuts.jsonl.gz and recording.tar"
            )
        if TOKENIZER in contents.modules:
            kept += _tokens(folder, contents.preset)
        entries += [
            Entry(f"{HOME}/speech/{name}/{path.relative_to(folder).as_posix()}", path)
            for path in kept
        ]
    return entries


def _tokens(folder: Path, preset: str) -> list[Path]:
    """Files of the speech tokens that the packed tokenizer has named, of shards as they are."""
    sha256 = tokenizer_sha256(preset)
    shards = sorted({path.parent for path in folder.glob("[!.]*/cuts*.jsonl.gz")})
    return [
        tokens_file(folder, shard.name, sha256)
        for shard in shards
        if are_named(folder, shard, sha256)
    ]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".made" for part in path.parts)


def preset_there(preset: str) -> str:
    """A preset as the unpacked bundle has it: its name, or the path of its file in a plan.

    Raises:
        PresetError: there is no such preset.
    """
    return f"{{root}}/{_preset_path(preset)}" if _is_file(preset) else preset


def _is_file(preset: str) -> bool:
    return preset.endswith(".toml")


def _preset_path(preset: str) -> str:
    return f"presets/{load_preset(preset).name}.toml"


def _file(path: str, source: Path) -> Entry:
    if not source.is_file():
        raise BundleError(f"there is no file {source}")
    return Entry(path, source)


def _speech(texts: Path, progress: Progress) -> list[Entry]:
    """Texts with their phonemes, and the voice that says them."""
    if not texts.is_file():
        raise BundleError(f"there is no file {texts}")
    phonemes = beside(texts)
    if not phonemes.is_file():
        raise BundleError(
            f"{texts} has no phonemes beside it ({phonemes.name}), and the tool that makes them "
            "stays here: run `minmo data speech` on it once, with --limit 1"
        )
    voice = folder_of(VOICE, progress)
    where = f"{HOME}/{voice.relative_to(voice.parents[1]).as_posix()}"
    files = sorted(path for path in voice.rglob("*") if path.is_file())
    return [
        _compressed(TEXTS, texts),
        _compressed(f"{TEXTS.removesuffix('.jsonl.gz')}.phonemes.jsonl.gz", phonemes),
        *(Entry(f"{where}/{path.relative_to(voice).as_posix()}", path) for path in files),
    ]


def _compressed(path: str, source: Path) -> Entry:
    """A file of lines as it is where it is compressed, else compressed, without a time in it."""
    if source.suffix == ".gz":
        return Entry(path, source)
    return Entry(path, gzip.compress(source.read_bytes(), mtime=0))
