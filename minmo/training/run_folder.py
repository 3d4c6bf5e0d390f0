"""A run's folder: its configuration stays the same as long as its checkpoints are used."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from minmo.training import checkpoint
from minmo.training.checkpoint import CONFIG
from minmo.training.config import TrainingConfig, changed_keys, load_config, to_yaml
from minmo.training.errors import TrainingError

Resume = Literal["auto", "must", "restart"]


def claim(config: TrainingConfig, run: Path, resume: Resume) -> None:
    """Makes the run's folder this configuration's.

    Raises:
        TrainingError: it is another's, or there is nothing to go on from.
    """
    if resume == "restart":
        checkpoint.remove_run(run)
    path = run / CONFIG
    there = checkpoint.latest(run) is not None
    if resume == "must" and not there:
        raise TrainingError(f"{run} has no checkpoint to go on from; leave --resume out")
    if there:
        try:
            changed = changed_keys(load_config(path), config)
        except TrainingError as error:
            raise TrainingError(
                f"{run} has checkpoints and no usable {CONFIG} ({error}); use another --out, or "
                "--restart, which removes them"
            ) from error
        if changed:
            raise TrainingError(
                f"{run} was trained with another configuration ({'; '.join(changed)}); use the "
                "same, another --out (--init goes on from its weights), or --restart, which "
                "removes its checkpoints"
            )
    run.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(to_yaml(config))
    partial.replace(path)
