"""What a file of weights was trained against, kept in its header: hashes of modules by their names.

Weights work with the modules that they were trained against and with no others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from minmo.weights.reading import map_safetensors

TRAINED_AGAINST = "trained_against"


def record(hashes: Mapping[str, str]) -> dict[str, str]:
    """Returns what a file's header gets."""
    return {TRAINED_AGAINST: json.dumps(dict(hashes), sort_keys=True)}


def recorded(path: Path) -> dict[str, str]:
    """Returns the hashes that a safetensors file's header has; none where it has no such record.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        hashes: dict[str, str] = json.loads(metadata.get(TRAINED_AGAINST, "{}"))
    except (SafetensorError, OSError, ValueError):
        # Says in which tensor the file ends.
        map_safetensors(path, f"delete {path.parent} and bring the weights again")
        raise
    return hashes
