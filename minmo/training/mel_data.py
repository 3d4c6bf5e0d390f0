"""Clips as the mel spectrograms that flow matching makes and the vocoder reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minmo.model.features import VocoderMel
from minmo.model.flow_encoder import MEL_FRAMES_PER_TOKEN
from minmo.training.batches import Batch
from minmo.training.config import TrainingConfig
from minmo.training.errors import TrainingError
from minmo.training.speech_tokens import SpeechTokens, Tokens

# Three speech tokens are 120 ms, and a loss mirrors 1024 samples at both ends.
_SHORTEST_SECONDS = 0.2


def check_mel_data(config: TrainingConfig, trained: Sequence[str]) -> None:
    """Refuses what there would be no mel of, or another one than the product's.

    Args:
        config: of the run.
        trained: the modules that its stage trains.

    Raises:
        TrainingError: says what to set.
    """
    data, rate = config.data, VocoderMel.sample_rate_hz
    for name in config.optimizer.learning_rates:
        if name not in trained:
            raise TrainingError(
                f"optimizer.learning_rates names {name!r}; {config.stage} trains: "
                f"{', '.join(trained)}"
            )
    for wrong, setting in (
        (not data.audio, "data.audio=true"),
        (data.sample_rate != rate, f"data.sample_rate={rate}"),
        (data.silence != (0, 0), "data.silence=[0, 0]"),
        (data.shortest < _SHORTEST_SECONDS, f"data.shortest={_SHORTEST_SECONDS:g} or more"),
        (config.augmentation.changes_anything, "augmentation.clean=1 and augmentation.speed=0"),
    ):
        if wrong:
            raise TrainingError(f"{config.stage} learns from clips as they are: set {setting}")


def open_tokens(config: TrainingConfig) -> SpeechTokens:
    """The speech tokens of a run's clips.

    Raises:
        TrainingError: they have not been named; says how to.
    """
    measured = config.watch.valid_steps is not None or config.watch.valid_minutes is not None
    sets = [*config.data.train, *([config.data.valid] if measured else [])]
    return SpeechTokens.open([Path(folder) for folder in config.data.folders], sets, config.preset)


def clip_mels(features: VocoderMel, batch: Batch, frames: Sequence[int]) -> list[Tensor]:
    """The mel of each clip's first frames, the same whatever batch it is in.

    Args:
        features: of the product.
        batch: of clips.
        frames: of each clip, no more than it has whole hops.

    Returns:
        `[frames, mel_bins]` for each, float32.
    """
    rows = zip(batch.samples, frames, strict=True)
    with torch.autocast(batch.samples.device.type, enabled=False):
        return [features(row[None, : count * features.hop])[0] for row, count in rows]


def whole_tokens(batch: Batch, tokens: Mapping[str, Tokens]) -> list[Tensor]:
    """The speech tokens of each clip whose sound is whole.

    Args:
        batch: of clips.
        tokens: of clips, by their ids.

    Returns:
        `[tokens]` for each, int64.
    """
    samples = VocoderMel.hop * MEL_FRAMES_PER_TOKEN
    return [
        torch.as_tensor(tokens[clip.id], dtype=torch.int64)[: length // samples]
        for clip, length in zip(batch.clips, batch.lengths.tolist(), strict=True)
    ]
