"""Checkpoints: written whole or not at all, found again, and read by what comes after.

    checkpoints/step-00001200/   model.safetensors, state.json, optimizer.pt (and ema.safetensors)
    checkpoints/best-00000900/   model.safetensors, state.json: what is exported

`model.safetensors` has every module's tensors as `<module>.<its own name>`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minmo.training.errors import TrainingError
from minmo.training.stage import Weights
from minmo.weights.errors import WeightsError
from minmo.weights.writing import write_safetensors

FOLDER = "checkpoints"
CONFIG = "config.yaml"
_MODEL, _EMA, _OPTIMIZER, _STATE = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.pt",
    "state.json",
)
_NAME = re.compile(r"(step|best)-(\d+)")


@dataclass(frozen=True)
class RunState:
    """Where a run is.

    Attributes:
        step: steps taken.
        seconds: that it has run.
        position: in the order of batches, of `Position.to_json`.
        fingerprint: of the clips.
        clips: heard so far, by all processes.
        hours: of audio heard so far.
        skipped: steps that were skipped.
        skipped_in_row: of them, those just now.
        ema_updates: of the running mean.
        best: the best figure so far; None before the first.
        figures: measured at this step, where it was.
        finished: whether the run has ended by its schedule.
    """

    step: int = 0
    seconds: float = 0.0
    position: Mapping[str, Any] | None = None
    fingerprint: str = ""
    clips: int = 0
    hours: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0
    ema_updates: int = 0
    best: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    finished: bool = False


def write_checkpoint(
    run: Path,
    kind: str,
    state: RunState,
    model: Mapping[str, Tensor],
    *,
    ema: Mapping[str, Tensor] | None = None,
    optimizer: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Writes a checkpoint and removes older ones of its kind.

    Args:
        run: the run's folder.
        kind: `step`, or `best`, of which there is one.
        state: of the run.
        model: tensors, as `<module>.<name>`.
        ema: running means of those that are trained.
        optimizer: anything that PyTorch can save.
        keep: checkpoints of this kind to keep, this one among them.

    Raises:
        TrainingError: weights are not finite, or there is no room.
    """
    root = run / FOLDER
    final, new = root / f"{kind}-{state.step:08d}", root / f".new-{kind}-{state.step:08d}"
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        write_safetensors(new / _MODEL, model, {})
        if ema is not None:
            write_safetensors(new / _EMA, ema, {})
        if optimizer is not None:
            torch.save(optimizer, new / _OPTIMIZER)
        (new / _STATE).write_text(json.dumps(asdict(state), indent=2) + "\n")
        for path in new.iterdir():
            _to_disk(path)
        if final.exists():
            shutil.rmtree(final)
        new.rename(final)
        _to_disk(root)
    except (OSError, WeightsError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise TrainingError(
            f"cannot write checkpoint {final}: {error}; free some room and start it again: it goes "
            "on from the last checkpoint"
        ) from error
    for old in _found(run, kind)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(run: Path) -> Path | None:
    """The last checkpoint that a run can go on from."""
    found = _found(run, "step")
    return found[-1] if found else None


def best(run: Path) -> Path | None:
    """The checkpoint with the best figure, or None."""
    found = _found(run, "best")
    return found[-1] if found else None


def read_state(checkpoint: Path) -> RunState:
    """Where the run was.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        return RunState(**json.loads((checkpoint / _STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(checkpoint, error) from error


def read_weights(checkpoint: Path, *, mean: bool = False) -> Weights:
    """State dicts of a checkpoint's modules.

    Args:
        checkpoint: its folder.
        mean: whether to take the running means of weights that have one.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        tensors = load_file(checkpoint / _MODEL)
        if mean and (checkpoint / _EMA).exists():
            tensors |= load_file(checkpoint / _EMA)
    except (OSError, SafetensorError) as error:
        raise _damaged(checkpoint, error) from error
    weights: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, name = key.partition(".")
        weights.setdefault(module, {})[name] = tensor
    return weights


def read_means(checkpoint: Path) -> dict[str, Tensor] | None:
    """Running means of a checkpoint, as `<module>.<name>`, or None.

    Raises:
        TrainingError: they are damaged.
    """
    path = checkpoint / _EMA
    try:
        return load_file(path) if path.exists() else None
    except (OSError, SafetensorError) as error:
        raise _damaged(checkpoint, error) from error


def read_optimizer(checkpoint: Path) -> dict[str, Any]:
    """What `write_checkpoint` got as the optimizer.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        content: dict[str, Any] = torch.load(
            checkpoint / _OPTIMIZER, map_location="cpu", weights_only=True
        )
    except Exception as error:  # What a damaged pickle raises is not for anyone to list.
        raise _damaged(checkpoint, error) from error
    return content


def trained_weights(folder: Path) -> Weights:
    """The weights that a run has come to: its best ones, else its last.

    Args:
        folder: the run's, or that of one of its checkpoints.

    Raises:
        TrainingError: there are none.
    """
    chosen = folder if (folder / _MODEL).exists() and (folder / _STATE).exists() else None
    chosen = chosen or best(folder) or latest(folder)
    if chosen is None:
        raise TrainingError(
            f"{folder} holds no checkpoint: expected the --out folder of a run that has written one"
        )
    return read_weights(chosen, mean=True)


def remove_run(run: Path) -> None:
    """Removes what a run wrote, to start it again; other files stay."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    shutil.rmtree(run / "curves", ignore_errors=True)
    (run / CONFIG).unlink(missing_ok=True)


def _found(run: Path, kind: str) -> list[Path]:
    """Whole checkpoints of a kind, the oldest first."""
    root = run / FOLDER
    if not root.is_dir():
        return []
    numbered = [
        (int(match[2]), path)
        for path in root.iterdir()
        if (match := _NAME.fullmatch(path.name)) and match[1] == kind
    ]
    return [path for _, path in sorted(numbered)]


def _to_disk(path: Path) -> None:
    """Waits until what was written survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(checkpoint: Path, error: Exception) -> TrainingError:
    line = " ".join(str(error).split())[:200]
    return TrainingError(
        f"checkpoint {checkpoint} is damaged ({type(error).__name__}: {line}); delete it, and the "
        "run goes on from the one before"
    )
