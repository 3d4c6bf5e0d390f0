"""Results of a run as files of limited size with a list of checksums, and those joined again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minmo.training.bundle.unpack import file_sha256

LIST = "results.json"
FORMAT = 1
_BLOCK_BYTES = 1 << 20


class ResultsError(Exception):
    """Results cannot be joined; the text says which parts are missing or damaged."""


def split(root: Path, patterns: list[str], folder: Path, part_bytes: int) -> list[Path]:
    """Writes the files that patterns name, one behind the other, as parts and a list of them.

    Args:
        root: folder of the files.
        patterns: as `Path.glob` has them, relative to it.
        folder: of the parts; parts of earlier results there are replaced.
        part_bytes: the size that no part exceeds.

    Returns:
        The parts.

    Raises:
        OSError: a file cannot be read or written.
    """
    paths = sorted({path for one in patterns for path in root.glob(one) if path.is_file()})
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / LIST, *folder.glob("results-*.part")]:
        old.unlink(missing_ok=True)
    files: list[dict[str, object]] = []
    parts: list[Path] = []
    content = b""
    for path in paths:
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                content += block
                while len(content) >= part_bytes:
                    parts.append(_write_part(folder, len(parts) + 1, content[:part_bytes]))
                    content = content[part_bytes:]
        name = path.relative_to(root).as_posix()
        files.append({"path": name, "size": size, "sha256": digest.hexdigest()})
    if content:
        parts.append(_write_part(folder, len(parts) + 1, content))
    listed = [
        {"name": part.name, "size": part.stat().st_size, "sha256": file_sha256(part)}
        for part in parts
    ]
    # The list comes last: where it is, every part is.
    (folder / LIST).write_text(
        json.dumps({"format": FORMAT, "parts": listed, "files": files}, indent=1) + "\n"
    )
    return parts


def _write_part(folder: Path, number: int, content: bytes) -> Path:
    path = folder / f"results-{number}.part"
    path.write_bytes(content)
    return path


def collect(folder: Path, into: Path) -> list[Path]:
    """Joins the parts of a folder into the files that they were.

    Args:
        folder: with the list and the parts.
        into: a folder to write the files into.

    Returns:
        The files, in the order of the list.

    Raises:
        ResultsError: the list is missing, or a part is missing or damaged; names every such part.
        OSError: a file cannot be written.
    """
    listed = _read_list(folder)
    problems = []
    for part in listed["parts"]:
        path = folder / part["name"]
        if not path.is_file():
            problems.append(f"missing: {part['name']} ({part['size']} bytes)")
        elif file_sha256(path) != part["sha256"]:
            size = path.stat().st_size
            problems.append(f"damaged: {part['name']} ({size} of {part['size']} bytes)")
    if problems:
        raise ResultsError("\n".join([*problems, f"bring these parts to {folder} again"]))
    unfinished = into / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        blocks = _Blocks([folder / part["name"] for part in listed["parts"]])
        for file in listed["files"]:
            path = unfinished / file["path"]
            if not path.resolve().is_relative_to(unfinished.resolve()):
                raise ResultsError(f"{file['path']} would lie outside {into}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as output:
                output.writelines(blocks.take(file["size"]))
            if file_sha256(path) != file["sha256"]:
                raise ResultsError(f"{file['path']} did not come out as it went in")
        written = []
        for file in listed["files"]:
            target = into / file["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            written.append((unfinished / file["path"]).replace(target))
        return written
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read_list(folder: Path) -> dict[str, Any]:
    path = folder / LIST
    try:
        listed: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ResultsError(f"there is no {LIST} in {folder}: it comes with the parts") from None
    except ValueError as error:
        raise ResultsError(f"{path} is damaged ({error}): copy it again") from None
    if listed.get("format") != FORMAT:
        raise ResultsError(f"{path} has format {listed.get('format')}; known is {FORMAT}")
    return listed


class _Blocks:
    """The parts' bytes in a row."""

    def __init__(self, parts: list[Path]) -> None:
        self._blocks = self._read(parts)
        self._rest = b""

    def take(self, size: int) -> Iterator[bytes]:
        """Yields the next bytes, fewer where the parts have ended."""
        while size:
            block = self._rest or next(self._blocks, b"")
            if not block:
                return
            taken, self._rest = block[:size], block[size:]
            size -= len(taken)
            yield taken

    def _read(self, parts: list[Path]) -> Iterator[bytes]:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    yield block
