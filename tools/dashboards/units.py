"""Values as Grafana writes them, for the units that the dashboards use."""

from __future__ import annotations

import math
from collections.abc import Callable

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_THOUSANDS = ("", "K", "Mil", "Bil")


def text(value: float, unit: str) -> str:
    """A value with its unit. Raises KeyError for a unit that none of the dashboards has."""
    if math.isnan(value):
        return "-"
    return _UNITS[unit](value)


def _plain(value: float) -> str:
    size = abs(value)
    digits = 0 if value == round(value) or size >= 100 else 1 if size >= 10 else 2
    return f"{value:.{digits}f}"


def _seconds(value: float) -> str:
    size = abs(value)
    for scale, name, limit in ((1e6, "µs", 1e-3), (1e3, "ms", 1.0), (1.0, "s", 60.0)):
        if size < limit:
            return f"{_plain(float(f'{value * scale:.3g}'))} {name}" if value else "0 s"
    return f"{_plain(value / 60)} min" if size < 3600 else f"{_plain(value / 3600)} h"


def _scaled(value: float, factor: float, names: tuple[str, ...]) -> str:
    number = 0
    while abs(value) >= factor and number + 1 < len(names):
        value /= factor
        number += 1
    return f"{_plain(value)} {names[number]}".strip()


_UNITS: dict[str, Callable[[float], str]] = {
    "s": _seconds,
    "percentunit": lambda value: f"{_plain(value * 100)} %",
    "short": lambda value: _scaled(value, 1000, _THOUSANDS),
    "none": _plain,
    "bytes": lambda value: _scaled(value, 1024, _BINARY),
    "Bps": lambda value: f"{_scaled(value, 1000, ('B', 'kB', 'MB', 'GB'))}/s",
    "reqps": lambda value: f"{_plain(value)} req/s",
    "cps": lambda value: f"{_plain(value)} c/s",
    "ops": lambda value: f"{_plain(value)} ops/s",
    "eps": lambda value: f"{_plain(value)} events/s",
    "bool_yes_no": lambda value: "Yes" if value else "No",
}
