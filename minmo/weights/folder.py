"""A prepared folder appears whole or not at all; its manifest says what it was made from."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from minmo.weights.errors import WeightsError
from minmo.weights.writing import FILE

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Source:
    """What a folder was made from.

    Attributes:
        artefact: package and version, or repository and revision.
        sha256: hex digest of the archive or of the weights file.
        licence: SPDX identifier.
    """

    artefact: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        module: the module that the folder holds.
        converter_version: the converter that wrote it.
        origin: `packages`, `hub`, `import` or `training`.
        sources: what it was made from.
        files: each file's path inside the folder and its size in bytes.
        hashes: for each module whose weights the folder holds, the sha256 of its tensors
            (`minmo.weights.hashes`); empty where nobody has computed it.
        hashed_file: size and time of change, in ns, of the weights file when the hashes were
            computed: of another one they say nothing.
    """

    module: str
    converter_version: int
    origin: str
    sources: tuple[Source, ...]
    files: dict[str, int]
    hashes: dict[str, str] = field(default_factory=dict)
    hashed_file: list[int] = field(default_factory=list)


def read_manifest(folder: Path) -> Manifest | None:
    """Return a folder's manifest, or None where the folder is absent, unfinished or damaged."""
    try:
        raw = json.loads((folder / MANIFEST).read_text())
        sources = tuple(Source(**source) for source in raw.pop("sources"))
        return Manifest(sources=sources, **raw)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def file_stamp(path: Path) -> list[int]:
    """Return a file's size and time of change in ns; nothing where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def is_whole(folder: Path, manifest: Manifest) -> bool:
    """Say whether every file of the manifest is there with its size."""
    try:
        return all((folder / name).stat().st_size == size for name, size in manifest.files.items())
    except OSError:
        return False


@contextmanager
def replaced(root: Path) -> Iterator[Path]:
    """Yield a folder to fill; on a clean exit it becomes `root`, whose older one goes.

    Raises:
        WeightsError: the disk is full or the folder cannot be written.
    """
    unfinished = root.parent / f".{root.name}.{os.getpid()}.new"
    older = root.parent / f".{root.name}.{os.getpid()}.old"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if root.exists():
            root.rename(older)
        unfinished.rename(root)
    except OSError as error:
        raise WeightsError(
            f"cannot write {root}: {error}; free some room, or allow writing there"
        ) from error
    finally:
        if older.exists() and not root.exists():
            older.rename(root)
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


@contextmanager
def prepared(
    folder: Path,
    module: str,
    converter_version: int,
    origin: str,
    sources: tuple[Source, ...],
    hashes: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """Yield an empty folder to fill; on a clean exit it becomes `folder`, replacing an older one.

    The caller holds the preparation lock, so leftovers of a process that died are swept away.

    Raises:
        WeightsError: the disk is full or the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover)
    unfinished = folder.parent / f".{folder.name}.{os.getpid()}.new"
    unfinished.mkdir()
    try:
        yield unfinished
        files = {}
        for path in sorted(unfinished.rglob("*")):
            if path.is_file():
                # safetensors writes for its owner alone; a folder shared by users must be readable.
                path.chmod(path.stat().st_mode | 0o444)
                files[path.relative_to(unfinished).as_posix()] = path.stat().st_size
        known = dict(hashes or {})
        stamp = file_stamp(unfinished / FILE) if known else []
        manifest = Manifest(module, converter_version, origin, sources, files, known, stamp)
        (unfinished / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
        if folder.exists():
            folder.rename(folder.parent / f".{folder.name}.{os.getpid()}.old")
        unfinished.rename(folder)
        shutil.rmtree(folder.parent / f".{folder.name}.{os.getpid()}.old", ignore_errors=True)
    except OSError as error:
        raise WeightsError(
            f"cannot write {folder}: {error}; free some room, allow writing "
            "there, or move MINMO_HOME"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
