"""Files of JSON lines, compressed where their name ends in .gz."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from minmo.training.data.errors import DataError


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file, one a line; empty lines count for nothing.

    Raises:
        DataError: there is no such file, or a line is no JSON object.
    """
    number = 0
    try:
        with _opened(path, "r") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise DataError(f"{path}, line {number}: it must be a JSON object")
                yield found
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}, line {number}: it cannot be read: {error}") from error


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    """Writes a file of JSON lines, whole or not at all; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name keeps its ending, which decides about compression.
    unfinished = path.with_name(f".part-{path.name}")
    count = 0
    try:
        with _opened(unfinished, "w") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def drop_torn_line(path: Path) -> None:
    """Cuts off what a killed writer left of a last line; the file may be missing."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _opened(path: Path, mode: Literal["r", "w"]) -> TextIO:
    if not path.name.endswith(".gz"):
        return path.open(mode, encoding="utf-8")
    # Without a time of day in it, so that the same lines make the same file.
    return io.TextIOWrapper(gzip.GzipFile(path, mode + "b", mtime=0), encoding="utf-8")
