"""A TOML table as a config dataclass: every key there, known, of its type, in its range."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from minmo.presets.errors import Problem

Config = TypeVar("Config")

_LARGEST = 1_000_000_000_000
# What a size may be at most, by its key or by what its key ends with: far above every network that
# is known, far below what would take forever to build. The first that matches counts.
_MOST = {
    "layers_per_block": 32,
    "mid_blocks": 128,
    "left_blocks": 100_000,
    "blocks": 128,
    "layers": 512,
    "steps": 1_000,
    "heads": 512,
    "head_dim": 4_096,
    "rotary_dim": 4_096,
    "mlp_width": 1_000_000,
    "width": 131_072,
    "channels": 131_072,
    "growth": 4_096,
    "bottleneck_scale": 64,
    "mel_bins": 4_096,
    "harmonics": 1_000,
    "kernel_size": 1_001,
    "kernel_sizes": 1_001,
    "dilations": 1_001,
    "rates": 1_000,
    "stride": 64,
    "stacked_frames": 64,
    "stft_size": 65_536,
    "stft_hop": 16_384,
    "levels": 1_001,
    "dimensions": 32,
    "tokens_per_group": 1_000,
    "frames_per_group": 1_000,
    "text_group": 1_000,
    "speech_group": 1_000,
    "chunk_tokens": 1_000,
    "look_ahead_tokens": 1_000,
    "block_frames": 10_000,
    "left_chunks": 10_000,
    "left_groups": 100_000,
    "left_context": 1_000_000,
    "max_tokens": 65_536,
    "max_context": 16_777_216,
    "sample_rate_hz": 1_000_000,
    "theta": _LARGEST,
}
_MOST_OTHERWISE = 16_777_216
_MOST_ENTRIES = 32
# Counts of what may be absent; all others are 1 at least.
_MAY_BE_ZERO = frozenset(
    {
        "left_blocks",
        "left_context",
        "letters",
        "spelling_width",
        "look_ahead_tokens",
        "look_ahead",
        "harmonics",
        "text_vocabulary",
        "guidance",
        "start_token",
        "end_token",
    }
)
_PROBABILITIES = ("_dropout", "dropout")


def read_table(
    cls: type[Config],
    table: Mapping[str, Any],
    where: str,
    problems: list[Problem],
    implied: Mapping[str, Any],
) -> Config | None:
    """Returns the table as `cls`, or None where it adds to `problems`.

    Args:
        cls: a dataclass whose fields are the table's keys; those with a default may be left out.
        table: what the file has.
        where: the table's name.
        problems: receives what is wrong.
        implied: fields that follow from the family, which the table must not repeat.
    """
    before = len(problems)
    problems.extend(_wrong_keys(cls, table, where, implied))
    hints = get_type_hints(cls)
    values = dict(implied)
    for name, value in table.items():
        if name in hints:
            key = f"{where}.{name}"
            wrong = _wrong_type(hints[name], value, key) or _out_of_range(name, value, key)
            if wrong:
                problems.append(wrong)
            values[name] = _frozen(value, hints[name])
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(Problem(where, "sizes that fit one another", f"these: {error}"))
        return None


def similar(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` where something known has a similar name, else nothing."""
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _wrong_keys(
    cls: type[Any], table: Mapping[str, Any], where: str, implied: Mapping[str, Any]
) -> Iterator[Problem]:
    known = {field.name: field for field in fields(cls) if field.name not in implied}
    missing = [
        name
        for name, field in known.items()
        if name not in table and field.default is MISSING and field.default_factory is MISSING
    ]
    for name in table:
        if name not in known:
            hint = similar(name, missing or list(known))
            yield Problem(f"{where}.{name}", f"one of {', '.join(known)}", f"an unknown key{hint}")
    for name in missing:
        kind = _named(get_type_hints(cls)[name])
        yield Problem(f"{where}.{name}", kind, "no such key")


def _wrong_type(hint: Any, value: Any, key: str) -> Problem | None:
    if _fits(hint, value):
        return None
    return Problem(key, _named(hint), _shown(value))


def _fits(hint: Any, value: Any) -> bool:
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if not isinstance(value, list):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return bool(value) and all(_fits(inner[0], item) for item in value)
        return len(value) == len(inner) and all(map(_fits, inner, value))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _named(hint: Any) -> str:
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return f"a list, each of it {_named(inner[0])}"
        return f"a list of {len(inner)}: {', '.join(map(_named, inner))}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names[hint]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    kinds = {str: "the text ", float: "the number ", int: "the number ", list: "the list "}
    return f"{kinds.get(type(value), '')}{value!r}"


def _out_of_range(name: str, value: Any, key: str) -> Problem | None:
    if (entries := _longest(value)) > _MOST_ENTRIES:
        return Problem(key, f"{_MOST_ENTRIES} entries at most", f"{entries}")
    numbers = [number for number in _numbers(value) if not isinstance(number, bool)]
    most = _most(name)
    for number in numbers:
        if name.endswith(_PROBABILITIES):
            limits, inside = "0 or more and less than 1", 0 <= number < 1
        elif name in _MAY_BE_ZERO:
            limits, inside = f"0 to {most}", 0 <= number <= most
        elif isinstance(number, float):
            limits, inside = f"more than 0, up to {_LARGEST}", 0 < number <= _LARGEST
        else:
            limits, inside = f"1 to {most}", 1 <= number <= most
        if not inside or not math.isfinite(number):
            return Problem(key, limits, _shown(value))
    return None


def _most(name: str) -> int:
    """The most that a whole number of this key may be."""
    fitting = (most for end, most in _MOST.items() if name == end or name.endswith(f"_{end}"))
    return next(fitting, _MOST_OTHERWISE)


def _longest(value: Any) -> int:
    """Entries of the longest list in a value."""
    return max(len(value), *map(_longest, value)) if isinstance(value, list) else 0


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _frozen(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item, None) for item in value)
    return float(value) if hint is float else value
