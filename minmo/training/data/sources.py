"""Texts out of files and books, each with its kind and its source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minmo.training.data.cleaning import clean, sentences, words_of
from minmo.training.data.errors import DataError
from minmo.training.data.jsonl import read_lines
from minmo.training.data.lines import Kind

_SHORTEST_SENTENCE_WORDS = 3


@dataclass(frozen=True)
class Text:
    """A text before anybody says it; see `Line` for the fields."""

    text: str
    kind: Kind
    source: str
    answers: tuple[str, ...] = ()
    speaker: str | None = None

    @property
    def key(self) -> str:
        """The same for texts that sound the same."""
        return words_of(self.text)


def named(argument: str) -> tuple[str, Path]:
    """Source and file of `NAME=FILE`, or of `FILE`, whose name without endings is the source."""
    name, separator, path = argument.partition("=")
    if separator and name and "/" not in name:
        return name, Path(path).expanduser()
    return Path(argument).name.split(".")[0], Path(argument).expanduser()


def questions(source: str, path: Path) -> Iterator[Text]:
    """Questions of a file with `question` and, where they are known, `answer` or `answers`."""
    for row in read_lines(path):
        question = _field(row, "question", path)
        found = row.get("answers", row.get("answer", []))
        answers = (found,) if isinstance(found, str) else tuple(str(answer) for answer in found)
        yield from _cleaned(question[:1].upper() + question[1:], "question", source, answers)


def dialogues(source: str, path: Path) -> Iterator[Text]:
    """Turns of a file with `turns`, each with `speaker` and `text`."""
    for row in read_lines(path):
        turns = row.get("turns")
        if not isinstance(turns, list):
            raise DataError(f"{path}: a line has no list `turns` of speaker and text")
        for turn in turns:
            speaker = str(turn.get("speaker", "user"))
            yield from _cleaned(_field(turn, "text", path), "turn", source, (), speaker)


def written(source: str, path: Path) -> Iterator[Text]:
    """Sentences of a file with `text`; each text may be of many."""
    return _sentences(source, (_field(row, "text", path) for row in read_lines(path)))


def book(source: str, folder: Path) -> Iterator[Text]:
    """Sentences of the text files of a folder."""
    paths = sorted(folder.glob("*.txt"))
    return _sentences(source, (path.read_text("utf-8", errors="replace") for path in paths))


def distinct(texts: Iterable[Text]) -> Iterator[Text]:
    """Leaves out what was there before, be it with other punctuation or from another source."""
    seen: set[str] = set()
    for text in texts:
        if text.key not in seen:
            seen.add(text.key)
            yield text


def _sentences(source: str, texts: Iterable[str]) -> Iterator[Text]:
    for text in texts:
        for sentence in sentences(text):
            if len(sentence.split()) >= _SHORTEST_SENTENCE_WORDS:
                yield from _cleaned(sentence, "sentence", source)


def _cleaned(
    text: str, kind: Kind, source: str, answers: tuple[str, ...] = (), speaker: str | None = None
) -> Iterator[Text]:
    if cleaned := clean(text):
        yield Text(cleaned, kind, source, answers, speaker)


def _field(row: Mapping[str, Any], name: str, path: Path) -> str:
    found = row.get(name)
    if not isinstance(found, str):
        raise DataError(f"{path}: a line has no text in {name!r}; it has {', '.join(row)}")
    return found
