"""A table of keys and values as a frozen dataclass: every key known, every value of its type."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from minmo.training.errors import TrainingError

Config = TypeVar("Config")


def build(cls: type[Config], table: Mapping[str, Any], where: str) -> Config:
    """A configuration dataclass from a table.

    Args:
        cls: a dataclass of this module's kind.
        table: of its keys.
        where: it comes from, for messages.

    Raises:
        TrainingError: a key is unknown, missing, or has a wrong value; names the nearest key.
    """
    return cast(Config, _build(cls, table, where, ""))


def _build(cls: type, table: Any, where: str, prefix: str) -> object:
    if not isinstance(table, Mapping):
        raise TrainingError(f"{where}: {prefix or 'it'} is {table!r}, not a table")
    hints = get_type_hints(cls)
    known = [one.name for one in fields(cls)]
    for key in table:
        if key not in known:
            raise TrainingError(
                f"{where}: there is no key {join(prefix, str(key))!r}"
                f"{similar(str(key), known)}; keys here: {', '.join(known)}"
            )
    values = {
        key: _value(hints[key], value, where, join(prefix, key)) for key, value in table.items()
    }
    try:
        return cls(**values)
    except ValueError as error:
        at = f"{prefix}: " if prefix else ""
        raise TrainingError(f"{where}: {at}{error}") from error
    except TypeError as error:
        missing = [
            one.name for one in fields(cls) if one.name not in values and not _has_default(one)
        ]
        raise TrainingError(f"{where}: missing: {', '.join(missing)}") from error


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    """The value as its type hint has it.

    Raises:
        TrainingError: it is of another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _build(cast(type, hint), value, where, key)
    if origin in {Union, UnionType}:
        if value is None and NoneType in arguments:
            return None
        return _value(next(one for one in arguments if one is not NoneType), value, where, key)
    if origin is None:
        return _scalar(hint, value, where, key)
    return _collection(origin, arguments, value, where, key)


def _collection(origin: Any, arguments: tuple[Any, ...], value: Any, where: str, key: str) -> Any:
    if origin is tuple:
        return _tuple(arguments, value, where, key)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise TrainingError(
                f"{where}: {key} is {_shown(value)}{similar(str(value), arguments)}; "
                f"it is one of: {', '.join(map(str, arguments))}"
            )
        return value
    if not isinstance(value, Mapping):
        raise TrainingError(f"{where}: {key} is {_shown(value)}, not a table")
    return {str(k): _value(arguments[1], v, where, f"{key}.{k}") for k, v in value.items()}


def _tuple(arguments: tuple[Any, ...], value: Any, where: str, key: str) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TrainingError(f"{where}: {key} is {_shown(value)}, not a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise TrainingError(f"{where}: {key} has {len(value)} entries; it has {len(arguments)}")
    pairs = zip(arguments, value, strict=True)
    return tuple(_value(hint, one, where, key) for hint, one in pairs)


def _scalar(hint: Any, value: Any, where: str, key: str) -> Any:
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3 as text.
        with suppress(ValueError):
            value = float(value)
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        name = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise TrainingError(f"{where}: {key} is {_shown(value)}, not {name[hint]}")
    return value


def _has_default(one: Any) -> bool:
    return one.default is not MISSING or one.default_factory is not MISSING


def join(prefix: str, key: str) -> str:
    """A key within a table, with a dot between."""
    return f"{prefix}.{key}" if prefix else key


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def similar(name: str, known: Sequence[Any]) -> str:
    """A hint at the nearest of the known names, or nothing."""
    nearest = get_close_matches(name, [str(one) for one in known], n=1, cutoff=0.5)
    return f", did you mean {nearest[0]!r}?" if nearest else ""
