"""Phonemes of texts, kept in a file beside them: who has that file needs no tool to make speech.

They are those of what is said for a text (`minmo.engine.spoken_form`): the tool that makes them
reads "$3.50" as "dollar three point five zero", and ends a sentence behind "Dr.".
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from minmo.engine.spoken_form import spoken_form
from minmo.training.data.errors import DataError
from minmo.training.data.jsonl import read_lines, write_lines
from minmo.training.data.lines import Line
from minmo.training.data.tools import PHONEMES, Conversation, installed

Progress = Callable[[int, int], None]
"""Hears how many of how many are done."""

_BATCH = 500


def read_texts(path: Path) -> list[Line]:
    """The lines of a file of texts.

    Raises:
        DataError: it cannot be read, or an id stands there twice.
    """
    lines = [Line.from_json(fields) for fields in read_lines(path)]
    if len({line.id for line in lines}) != len(lines):
        raise DataError(f"{path}: ids stand there twice; each utterance needs its own")
    return lines


def beside(texts: Path) -> Path:
    """The file of the phonemes of a file of texts."""
    name = texts.name.removesuffix(".gz").removesuffix(".jsonl")
    return texts.with_name(f"{name}.phonemes.jsonl.gz")


def phonemes_of(texts: Path, lines: Sequence[Line]) -> list[list[str]] | None:
    """Sentences of phonemes of each line; None where nobody has made them of these texts."""
    path = beside(texts)
    if not path.exists():
        return None
    rows = read_lines(path)
    if next(rows, {}).get("sha256") != _digest(lines):
        return None
    found = [row["phonemes"] for row in rows]
    return found if len(found) == len(lines) else None


def make_phonemes(
    texts: Path, lines: Sequence[Line], say: Callable[[str], None], progress: Progress
) -> list[list[str]]:
    """Makes the phonemes of each line and writes them beside the texts.

    Raises:
        DataError: the tool for it cannot be installed, or fails.
    """
    made: list[list[str]] = []
    batches = [
        [line.text for line in lines[start : start + _BATCH]]
        for start in range(0, len(lines), _BATCH)
    ]
    with (
        Conversation(PHONEMES, installed(PHONEMES, say)) as tool,
        closing(_spoken(batches)) as said,
    ):
        for batch in said:
            made += tool.ask({"texts": batch})["phonemes"]
            progress(len(made), len(lines))

    def rows() -> Iterator[dict[str, Any]]:
        yield {"sha256": _digest(lines)}
        for line, sentences in zip(lines, made, strict=True):
            yield {"id": line.id, "phonemes": sentences}

    write_lines(beside(texts), rows())
    return made


def _spoken(batches: Sequence[list[str]]) -> Generator[list[str], None, None]:
    """What is said for texts, in order; the grammars take most of the time that phonemes take."""
    if len(batches) <= 1:
        yield from map(_said, batches)
        return
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(_said, batches)
        finally:
            pool.shutdown(cancel_futures=True)


def _said(texts: list[str]) -> list[str]:
    return [spoken_form(text).text for text in texts]


def _digest(lines: Sequence[Line]) -> str:
    """Of what is said: who says it is another matter."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line.id}\t{line.text}\n".encode())
    return digest.hexdigest()
