"""Hidden states of scenes, computed once and kept on disk.

The LLM learns nothing while the predictor does, and reading a scene takes seconds, so what it makes
of it is kept, in float16. A scene's name tells what it sounds like, and the folder tells what read
it: nothing old is ever taken for something new.

    ROOT/.states/<first digits of what reads them>/<scene>.npz
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from minmo.training.duplex_reading import SceneStates
from minmo.training.errors import TrainingError

STATES = ".states"
_DIGITS = 16


def digest_of(parts: Mapping[str, object]) -> str:
    """A digest of all that decides what a scene's hidden states are, beside the scene."""
    text = json.dumps({key: repr(value) for key, value in parts.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class StatesStore:
    """Hidden states by the scenes' names.

    Args:
        digest: of what reads the scenes.
        folder: for all of them; None for `.states` beside the shards of each.
    """

    def __init__(self, digest: str, folder: Path | None = None) -> None:
        self._digest, self._folder = digest[:_DIGITS], folder

    def __call__(self, scene: str, root: Path, make: Callable[[], SceneStates]) -> SceneStates:
        """What `make` gives of a scene, now or the first time.

        Args:
            scene: its name.
            root: folder of its shards.
            make: reads it.

        Raises:
            TrainingError: what was kept cannot be read, or there is no room for more.
        """
        path = (self._folder or root / STATES) / self._digest / f"{scene}.npz"
        if not path.exists():
            _write(path, make())
        return _read(path)


def _write(path: Path, states: SceneStates) -> None:
    """Writes a file, whole or not at all; two processes may write the same one."""
    partial = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            partial,
            hidden=states.hidden.to("cpu", torch.float16).numpy(),
            times=states.times.numpy(),
            lengths=np.array([len(rows) for rows in states.branches], np.int64),
            rows=np.concatenate([np.zeros(0, np.int64), *(r.numpy() for r in states.branches)]),
        )
        partial.replace(path)
    except OSError as error:
        raise TrainingError(
            f"hidden states cannot be kept in {path.parent}: {error.strerror or error}; give "
            "another folder with options.states"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> SceneStates:
    try:
        with np.load(path) as kept:
            hidden, times = torch.from_numpy(kept["hidden"]), torch.from_numpy(kept["times"])
            rows = torch.split(torch.from_numpy(kept["rows"]), kept["lengths"].tolist())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{path} is damaged ({error}); delete it, it is made again") from error
    return SceneStates(hidden, times, tuple(rows))
