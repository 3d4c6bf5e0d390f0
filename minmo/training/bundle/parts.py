"""Files into parts of limited size: each part a zip, the first one a program that unpacks them all.

The same files give the same parts, byte for byte: what is packed has no times and no owners.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import shutil
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from minmo.training.bundle import unpack
from minmo.training.bundle.errors import BundleError

PREFIX = "minmo-training"
SUMS = "SHA256SUMS"
_CHUNK_BYTES = 1 << 22
# What is kept free in the first part for the index and the program: packed, an entry takes less.
_PROGRAM_BYTES, _ENTRY_BYTES = 1 << 16, 256
# Headers of a member, with its name twice, and the end of the archive.
_MEMBER_BYTES, _END_BYTES = 256, 1024
_LEVEL = 6
# Deflate is fast and tells whether it is worth trying harder.
_WORTH_IT = 0.9


@dataclass(frozen=True)
class Entry:
    """A file of the bundle.

    Attributes:
        path: inside the bundle, with forward slashes.
        source: a file, or the content itself.
        executable: whether it is a program.
    """

    path: str
    source: Path | bytes
    executable: bool = False

    def size(self) -> int:
        """In bytes."""
        return self.source.stat().st_size if isinstance(self.source, Path) else len(self.source)


@dataclass(frozen=True)
class Part:
    """A part that was written.

    Attributes:
        path: of the file.
        size: in bytes.
        sha256: hex digest of the file.
    """

    path: Path
    size: int
    sha256: str


def write_parts(
    entries: Iterable[Entry],
    folder: Path,
    *,
    part_bytes: int,
    about: dict[str, object],
    chunk_bytes: int = _CHUNK_BYTES,
    cache: Path | None = None,
    reached: Callable[[int], None] = lambda _: None,
) -> list[Part]:
    """Writes the parts and their checksums, replacing those of an earlier bundle.

    Args:
        entries: in the order in which they are packed.
        folder: to write into.
        part_bytes: the size that no part exceeds.
        about: what else the index says.
        chunk_bytes: files are cut into chunks of so many bytes.
        cache: folder of what has been compressed before, which takes minutes; None for none.
        reached: hears how many bytes have been packed.

    Raises:
        BundleError: a part would be too small for its index, or two files have one path.
        OSError: a file cannot be read or written.
    """
    entries = list(entries)
    paths = [entry.path for entry in entries]
    if doubled := sorted(path for path, count in Counter(paths).items() if count > 1):
        raise BundleError(f"two files of the bundle have the path {doubled[0]!r}")
    chunks = sum(-(-entry.size() // chunk_bytes) for entry in entries)
    reserved = _PROGRAM_BYTES + _ENTRY_BYTES * (len(entries) + chunks)
    smallest = reserved + chunk_bytes + _MEMBER_BYTES + _END_BYTES
    if part_bytes < smallest:
        raise BundleError(
            f"parts of {part_bytes / 1e6:.2f} MB are too small for the index of these files; "
            f"they need {smallest / 1e6:.2f} MB"
        )
    unfinished = folder / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with _Writer(unfinished, part_bytes, reserved) as writer:
            files, done = [], 0
            for entry in entries:
                listed, digest, size = [], hashlib.sha256(), 0
                for content, packed, how in _packed(entry, chunk_bytes, cache):
                    listed.append([*writer.add(packed), how])
                    digest.update(content)
                    size += len(content)
                    done += len(content)
                    reached(done)
                mode = 0o755 if entry.executable else 0o644
                files.append(
                    {"path": entry.path, "size": size, "sha256": digest.hexdigest(), "mode": mode}
                    | {"chunks": listed}
                )
            names = writer.finish(
                {"format": unpack.FORMAT, "chunk_bytes": chunk_bytes, **about, "files": files}
            )
        for old in [*folder.glob(f"{PREFIX}-*.zip"), folder / SUMS]:
            old.unlink(missing_ok=True)
        parts = []
        for name in names:
            path = (unfinished / name).rename(folder / name)
            parts.append(Part(path, path.stat().st_size, unpack.file_sha256(path)))
        lines = [f"{part.sha256}  {part.path.name}\n" for part in parts]
        (folder / SUMS).write_text("".join(lines))
        return parts
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _packed(
    entry: Entry, chunk_bytes: int, cache: Path | None
) -> Iterator[tuple[bytes, bytes, str]]:
    """Yields each chunk, what is stored of it, and how; compresses a few chunks at once."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[tuple[bytes, bytes, str]]] = []
        for content in _chunks(entry, chunk_bytes):
            waiting.append(pool.submit(_pack, content, cache))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _chunks(entry: Entry, chunk_bytes: int) -> Iterator[bytes]:
    if isinstance(entry.source, bytes):
        for start in range(0, len(entry.source), chunk_bytes):
            yield entry.source[start : start + chunk_bytes]
        return
    with entry.source.open("rb") as file:
        while content := file.read(chunk_bytes):
            yield content


def _pack(content: bytes, cache: Path | None) -> tuple[bytes, bytes, str]:
    if len(zlib.compress(content, 1)) < _WORTH_IT * len(content):
        packed = _compressed(content, cache)
        if len(packed) < len(content):
            return content, packed, unpack.XZ
    return content, content, unpack.RAW


def _compressed(content: bytes, cache: Path | None) -> bytes:
    if cache is None:
        return lzma.compress(content, preset=_LEVEL)
    path = cache / f"{hashlib.sha256(content).hexdigest()}.{_LEVEL}.xz"
    with contextlib.suppress(OSError, lzma.LZMAError):
        known = path.read_bytes()
        if lzma.decompress(known) == content:
            return known
    packed = lzma.compress(content, preset=_LEVEL)
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
    partial.write_bytes(packed)
    partial.replace(path)
    return packed


class _Writer:
    """Fills one part after the other; the first stays open for the index."""

    def __init__(self, folder: Path, part_bytes: int, reserved: int) -> None:
        self._folder, self._part_bytes = folder, part_bytes
        self._names = [f"{PREFIX}-1.zip"]
        self._first = zipfile.ZipFile(folder / self._names[0], "w", zipfile.ZIP_STORED)
        self._current = self._first
        self._used = reserved + _END_BYTES
        self._count = 0

    def add(self, packed: bytes) -> tuple[int, str]:
        """Adds a chunk; returns the number of its part and its name there."""
        need = len(packed) + _MEMBER_BYTES
        if self._used + need > self._part_bytes:
            self._next()
        name = f"{self._count:06d}"
        self._count += 1
        self._used += need
        _add(self._current, name, packed, zipfile.ZIP_STORED)
        return len(self._names) - 1, name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._current.close()
        self._first.close()

    def finish(self, index: dict[str, object]) -> list[str]:
        """Writes the index and the program into the first part; returns the parts' names."""
        if self._current is not self._first:
            self._current.close()
        parts: list[dict[str, object]] = [{"name": self._names[0]}]
        for name in self._names[1:]:
            path = self._folder / name
            size = path.stat().st_size
            parts.append({"name": name, "size": size, "sha256": unpack.file_sha256(path)})
        program = Path(unpack.__file__).read_bytes()
        text = json.dumps({**index, "parts": parts}, indent=0, sort_keys=True).encode()
        _add(self._first, unpack.INDEX, text, zipfile.ZIP_DEFLATED)
        _add(self._first, "__main__.py", program, zipfile.ZIP_DEFLATED)
        self._first.close()
        return self._names

    def _next(self) -> None:
        if self._current is not self._first:
            self._current.close()
        self._names.append(f"{PREFIX}-{len(self._names) + 1}.zip")
        self._current = zipfile.ZipFile(self._folder / self._names[-1], "w", zipfile.ZIP_STORED)
        self._used = _END_BYTES


def _add(archive: zipfile.ZipFile, name: str, content: bytes, method: int) -> None:
    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    member.external_attr = 0o644 << 16
    member.create_system = 3
    archive.writestr(member, content, method)
