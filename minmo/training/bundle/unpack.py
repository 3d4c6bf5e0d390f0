"""Unpacks a bundle: `python3 minmo-training-1.zip FOLDER`, with the other parts beside it.

Python runs this file out of the first part, on a machine that has nothing else of MinMo's; so it
uses the standard library alone. Every part is checked before anything is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

INDEX = "bundle.json"
FORMAT = 1
RAW, XZ = "raw", "xz"
_BLOCK_BYTES = 1 << 20


class UnpackError(Exception):
    """The bundle cannot be unpacked; the text says which parts are missing or damaged."""


def file_sha256(path: Path) -> str:
    """The hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_index(first: Path) -> dict[str, Any]:
    """The index that the first part holds.

    Raises:
        UnpackError: it is missing, damaged, or of another format.
    """
    try:
        with zipfile.ZipFile(first) as archive:
            index: dict[str, Any] = json.loads(archive.read(INDEX))
    except FileNotFoundError:
        raise UnpackError(f"{first.name} is missing in {first.parent}") from None
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UnpackError(f"{first.name} is damaged ({error}): copy it again") from None
    if index.get("format") != FORMAT:
        raise UnpackError(f"{first.name} has format {index.get('format')}; known is {FORMAT}")
    return index


def problems(index: dict[str, Any], first: Path) -> list[str]:
    """What is wrong with the parts beside the first one, a line for each part.

    The first part's index cannot hold its own digest: of it the chunks are checked.
    """
    found = []
    for part in index["parts"][1:]:
        path = first.with_name(part["name"])
        if not path.is_file():
            found.append(f"missing: {part['name']}")
        elif (size := path.stat().st_size) != part["size"]:
            found.append(f"damaged: {part['name']} has {size} of {part['size']} bytes")
        elif file_sha256(path) != part["sha256"]:
            found.append(f"damaged: {part['name']} has another sha256 than {INDEX} says")
    try:
        with zipfile.ZipFile(first) as archive:
            if bad := archive.testzip():
                found.insert(0, f"damaged: {first.name} ({bad})")
    except (OSError, zipfile.BadZipFile) as error:
        found.insert(0, f"damaged: {first.name} ({error})")
    return found


def unpack(first: Path, folder: Path) -> int:
    """Checks the parts and writes the files; a file that is there already is left.

    Args:
        first: the first part.
        folder: to unpack into.

    Returns:
        How many files were written.

    Raises:
        UnpackError: a part is missing or damaged, or a file did not come out as it went in.
        OSError: a file cannot be written.
    """
    index = read_index(first)
    if found := problems(index, first):
        raise UnpackError("\n".join([*found, f"bring these parts to {first.parent} again"]))
    archives = [zipfile.ZipFile(first.with_name(part["name"])) for part in index["parts"]]
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            written = sum(
                _write(archives, index["chunk_bytes"], file, folder, pool)
                for file in index["files"]
            )
    finally:
        for archive in archives:
            archive.close()
    return written


def _write(
    archives: list[zipfile.ZipFile],
    chunk_bytes: int,
    file: dict[str, Any],
    folder: Path,
    pool: ThreadPoolExecutor,
) -> bool:
    path = folder / file["path"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnpackError(f"{file['path']} would lie outside {folder}")
    is_there = path.is_file() and path.stat().st_size == file["size"]
    if is_there and file_sha256(path) == file["sha256"]:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")

    def place(number: int) -> None:
        part, member, how = file["chunks"][number]
        content = archives[part].read(member)
        if how == XZ:
            content = lzma.decompress(content)
        os.pwrite(output.fileno(), content, number * chunk_bytes)

    with partial.open("wb") as output:
        list(pool.map(place, range(len(file["chunks"]))))
    if file_sha256(partial) != file["sha256"]:
        raise UnpackError(f"{file['path']} did not come out as it went in: is the disk full?")
    partial.chmod(file["mode"])
    partial.replace(path)
    return True


def main(arguments: list[str] | None = None, first: Path | None = None) -> int:
    """Runs the command; returns its exit status.

    Args:
        arguments: of the command line; the process's own by default.
        first: the first part; the file that Python runs by default.
    """
    # Run out of an archive, this file's path is `<archive>/__main__.py`.
    first = first or Path(__file__).absolute().parent
    parser = argparse.ArgumentParser(
        prog=f"python3 {first.name}",
        description="Unpacks a training bundle; its other parts lie beside this file.",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="folder to unpack into")
    parser.add_argument("--check", action="store_true", help="only check the parts")
    options = parser.parse_args(arguments)
    if options.folder is None and not options.check:
        parser.error("name the folder to unpack into")
    try:
        if options.check:
            if found := problems(read_index(first), first):
                raise UnpackError("\n".join(found))
            print("every part is here and whole")
            return 0
        written = unpack(first, options.folder)
    except UnpackError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cannot write {error.filename or options.folder}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{written} files are in {options.folder}; start it with {options.folder / 'run.sh'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
