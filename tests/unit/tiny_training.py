"""Spoken clips in Shar folders, and a stage that learns in milliseconds."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from rich.console import Console
from torch import Tensor, nn

from minmo.training.batches import Batch, Source
from minmo.training.config import TrainingConfig, with_changes
from minmo.training.stage import Stage, Trainee, Weights
from minmo.training.watch import Watch

TEXTS = ("the cat sat", "on the mat", "a cat", "the mat sat on a cat", "mat and cat")


def write_shard(folder: Path, name: str, count: int, seconds: float = 0.5) -> Path:
    """Writes a Shar folder of tones, as lhotse lays them out; lengths differ from clip to clip."""
    folder = folder / name
    folder.mkdir(parents=True)
    cuts = []
    with tarfile.open(folder / "recording.tar", "w") as tar:
        for number in range(count):
            key = f"{name.replace('.', '-')}-{number:04d}"
            length = int(16_000 * seconds * (1 + number % 5 / 4))
            tone = 0.3 * np.sin(np.arange(length) * (0.05 + 0.01 * number)).astype(np.float32)
            content = io.BytesIO()
            soundfile.write(content, tone, 16_000, format="FLAC", subtype="PCM_16")
            for suffix, data in ((".flac", content.getvalue()), (".json", b"{}")):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            said = {"text": TEXTS[number % 5], "speaker": "s", "custom": {"kind": "sentence"}}
            cuts.append({"id": key, "duration": length / 16_000, "supervisions": [said]})
    with gzip.open(folder / "cuts.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(cut) + "\n" for cut in cuts)
    return folder


def toy_config(data: Path, **changes: Any) -> TrainingConfig:
    """A run of the toy stage, by steps, with all that a test may ask for in the curves."""
    config = TrainingConfig("toy")
    given = {
        "data.folders": {str(data): 1.0},
        "data.seconds": 4.0,
        "data.pool": 4,
        "data.workers": 0,
        "threads": 1,
        "seed": 3,
        "optimizer.learning_rates": {"net": 0.01},
        "schedule.steps": 12,
        "watch.log_steps": 1,
        "watch.valid_minutes": None,
        "watch.save_minutes": None,
    }
    return with_changes(config, given | {k.replace("__", "."): v for k, v in changes.items()})


class ToyTrainee(Trainee):
    """Guesses how long a clip is from its sound, by a net that drops units at random."""

    best = "error"

    def __init__(self, hook: Callable[[int], float | None]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.other = nn.Linear(2, 2)
        self._hook, self.calls = hook, 0

    def kept(self) -> Mapping[str, nn.Module]:
        return {"net": self.net, "other": self.other}

    def _error(self, batch: Batch) -> Tensor:
        sound = batch.samples
        heard = torch.stack((sound.abs().sum(1) / 5000, sound.std(1), sound.mean(1)), dim=1)
        wanted = batch.lengths / 16_000
        return (self.net(heard)[:, 0] - wanted).square().mean()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        factor = self._hook(self.calls)
        self.calls += 1
        error = self._error(batch)
        return {"loss": error if factor is None else error * factor, "error": error}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        errors = [float(self._error(batch)) for batch in batches]
        return {"error": sum(errors) / len(errors), "batches": float(len(errors))}


class ToyStage(Stage):
    """The stage; `hook` is called before each batch and may give a factor of the loss."""

    name = "toy"

    def __init__(self, hook: Callable[[int], float | None] = lambda call: None) -> None:
        self.hook = hook
        self.built: ToyTrainee | None = None

    def check(self, config: TrainingConfig) -> None:
        pass

    def build(
        self, config: TrainingConfig, weights: Weights, sources: Sequence[Source]
    ) -> ToyTrainee:
        self.built = ToyTrainee(self.hook)
        for name, module in self.built.kept().items():
            if name in weights:
                module.load_state_dict(weights[name])
        return self.built

    def export(self, config: TrainingConfig, weights: Weights, folder: Path | None) -> Path:
        raise NotImplementedError


def silent() -> Watch:
    """Shows nothing."""
    return Watch(Console(), quiet=True)
