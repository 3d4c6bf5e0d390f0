"""Results clip by clip, in a file that a second run goes on with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from minmo.evaluation.errors import EvaluationError

_MADE_WITH = "made_with"


class Results:
    """What a system made of clips, kept in a JSONL file if there is one.

    The first line says what made them (hashes of weights, options that change them); every other
    line is one clip. Each is written at once, so that nothing is lost when the run ends early.

    Args:
        path: of the file; None to keep them in memory.
        made_with: what results depend on.

    Raises:
        EvaluationError: the file was made with something else, or is no file of results.
    """

    def __init__(self, path: Path | None, made_with: Mapping[str, Any]) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        self._file: IO[str] | None = None
        if path is not None:
            self._open(path, dict(made_with))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def keys(self) -> set[str]:
        """The clips that have a result."""
        return set(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, key: str, **values: Any) -> None:
        """Keeps the result of a clip."""
        self._rows[key] = values
        if self._file is not None:
            self._write({"clip": key, **values})

    def _open(self, path: Path, made_with: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.exists():
            whole = self._read(path, made_with)
        self._file = path.open("r+" if path.exists() else "w", encoding="utf-8")
        self._file.seek(whole)
        # The last line may have been cut.
        self._file.truncate()
        if not whole:
            self._write({_MADE_WITH: made_with})

    def _read(self, path: Path, made_with: dict[str, Any]) -> int:
        """Reads a file; gives the bytes of its whole lines."""
        whole = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                if number == 0:
                    self._compare(path, row[_MADE_WITH], made_with)
                else:
                    self._rows[row.pop("clip")] = row
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if isinstance(error, EvaluationError):
                    raise
                raise EvaluationError(
                    f"line {number + 1} of {path} is no result; delete the file, or give another "
                    "--out"
                ) from error
            whole += len(line)
        return whole

    @staticmethod
    def _compare(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        changed = sorted(
            key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)
        )
        if changed:
            raise EvaluationError(
                f"{path} was made with another {' and '.join(changed)}; give another --out, or "
                "delete the file"
            )

    def _write(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()


def without_nan(value: Any) -> Any:
    """The same for JSON, which knows no NaN: null instead."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
