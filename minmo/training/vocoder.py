"""The stage vocoder: mel to waveform.

Crops of real speech teach it by the distance of spectra at several resolutions (Yamamoto et al.
2020, section 2.2), of mel, and of the pitch that its source follows (Li et al. 2023, HiFTNet).
Small discriminators that look at spectra then take away the blur (Jang et al. 2021, section 2.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from minmo.model.features import VocoderMel
from minmo.model.vocoder import Vocoder
from minmo.model.vocoder_loss import (
    adversarial_loss,
    feature_matching_loss,
    mel_loss,
    pitch_loss,
    stft_loss,
)
from minmo.model.vocoder_published import fold_weights, normalise_weights
from minmo.presets import build_module, load_preset
from minmo.training.bandwidth import ClipBands, limit_band
from minmo.training.batches import Batch, Source
from minmo.training.clip_memory import ClipMemory
from minmo.training.config import TrainingConfig
from minmo.training.crops import Crops
from minmo.training.discriminators import LearningDiscriminators
from minmo.training.errors import TrainingError
from minmo.training.filling import fill
from minmo.training.flow_mels import FlowMels
from minmo.training.means import WeightedMeans
from minmo.training.mel_data import check_mel_data, clip_mels
from minmo.training.pitch import PitchDistance, pitch_of
from minmo.training.stage import Stage, Trainee, Weights
from minmo.training.tables import build
from minmo.weights.spoken import write_spoken

VOCODER, DISCRIMINATORS = "vocoder", "discriminators"
# Where in its noise a crop's source begins.
_NOISE_SAMPLES = 1 << 17
_NORMALISED = ".parametrizations."
_PARTS = ("stft", "mel", "pitch", "adversarial", "feature")


@dataclass(frozen=True)
class VocoderOptions:
    """What the vocoder learns from, and what it minimises.

    Attributes:
        crops: stretches of a batch's clips that a step learns from.
        crop_seconds: of each.
        stft_weight: of the spectra's distance.
        mel_weight: of the mel's distance.
        pitch_weight: of the pitch predictor's distance, in Hz.
        true_pitch: share of crops whose source follows the measured pitch; that of the others
            follows the predicted one, as in the product.
        adversarial_weight: of what the discriminators see through; 0 to do without them.
        feature_weight: of how far made speech is from real speech in their layers.
        discriminator_rate: their learning rate.
        band_limits: whether a clip teaches nothing of frequencies that it has lost.
        flow: folder of a run of token2wav: mel that its flow makes of the clips' speech tokens is
            what is read then, as in the product. Empty to read the clips' own mel.
        remember_mb: megabytes of clips' pitch to keep, 1 for an hour of speech, and of the flow's
            mel, 29 for an hour.
    """

    crops: int = 16
    crop_seconds: float = 0.64
    stft_weight: float = 1.0
    mel_weight: float = 2.0
    pitch_weight: float = 0.02
    true_pitch: float = 0.5
    adversarial_weight: float = 0.0
    feature_weight: float = 2.0
    discriminator_rate: float = 2e-4
    band_limits: bool = True
    flow: str = ""
    remember_mb: float = 500.0

    def __post_init__(self) -> None:
        for name in (*(f"{part}_weight" for part in _PARTS), "remember_mb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name):g}: it is 0 or more")
        if self.stft_weight == self.mel_weight == 0:
            raise ValueError("stft_weight or mel_weight is more than 0")
        if self.crops < 1 or not 0.2 <= self.crop_seconds <= 10:
            raise ValueError("crops is 1 or more, and crop_seconds is from 0.2 to 10")
        if not 0 <= self.true_pitch <= 1 or not 0 < self.discriminator_rate <= 1:
            raise ValueError("true_pitch is from 0 to 1, and discriminator_rate above 0, to 1")


class VocoderStage(Stage):
    """The stage; see the module."""

    name = "vocoder"

    def check(self, config: TrainingConfig) -> None:
        """Refuses what it does not know; see `Stage.check`."""
        _options(config)
        check_mel_data(config, (VOCODER,))
        if config.precision != "float32":
            raise TrainingError(
                f"precision is {config.precision}, which would be heard in the samples that the "
                "vocoder makes: set precision=float32"
            )

    def build(
        self, config: TrainingConfig, weights: Weights, sources: Sequence[Source]
    ) -> VocoderTrainee:
        """Builds the vocoder, and the discriminators if there are any; see `Stage.build`."""
        options = _options(config)
        discriminators = None
        if options.adversarial_weight:
            discriminators = LearningDiscriminators(options.discriminator_rate)
            if DISCRIMINATORS in weights:
                fill(discriminators, DISCRIMINATORS, weights[DISCRIMINATORS])
        flow = None
        if options.flow:
            flow = FlowMels.of_run(config, Path(options.flow).expanduser(), options.remember_mb)
        return VocoderTrainee(_vocoder(config, weights), options, discriminators, flow)

    def export(self, config: TrainingConfig, weights: Weights, folder: Path | None) -> Path:
        """Writes the vocoder into the voice set; see `Stage.export`."""
        vocoder = _vocoder(config, weights)
        fold_weights(vocoder)
        return write_spoken(load_preset(config.preset), {VOCODER: vocoder}, folder=folder)


class VocoderTrainee(Trainee):
    """The vocoder, its weights normalised, and what judges it.

    Args:
        vocoder: that is trained.
        options: of the stage.
        discriminators: or None.
        flow: makes the mel that is read; None for the clips' own.
    """

    best = "mel"

    def __init__(
        self,
        vocoder: Vocoder,
        options: VocoderOptions,
        discriminators: LearningDiscriminators | None = None,
        flow: FlowMels | None = None,
    ) -> None:
        super().__init__()
        self.vocoder, self.discriminators, self.flow = vocoder, discriminators, flow
        self.features = VocoderMel(vocoder.config.mel_bins)
        self._options = options
        self._bands = ClipBands(options.band_limits)
        self._pitches = ClipMemory(options.remember_mb)

    def kept(self) -> Mapping[str, nn.Module]:
        """The vocoder, and the discriminators with what their optimizer knows."""
        if self.discriminators is None:
            return {VOCODER: self.vocoder}
        return {VOCODER: self.vocoder, DISCRIMINATORS: self.discriminators}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted sum and its parts; see `Trainee.losses`."""
        options, hop, rate = self._options, self.features.hop, batch.sample_rate
        mels, device = self._mels(batch), batch.samples.device
        frames = [len(mel) for mel in mels]
        crops = Crops(frames, options.crops, round(options.crop_seconds * rate / hop))
        mel, real = crops(mels), crops(list(batch.samples), hop)
        pitch = crops(self._pitches_of(batch))
        predicted = self.vocoder.pitch(mel)
        is_true = (torch.rand(options.crops, 1) < options.true_pitch).to(device)
        starts = torch.randint(_NOISE_SAMPLES, (options.crops,)).to(device)
        followed = torch.where(is_true, pitch, predicted.detach())
        made = self.vocoder(mel, followed, starts)
        bands = self._bands(batch)[crops.clips]
        if bool((bands < rate / 2).any()):
            made, real = (limit_band(one, bands, rate) for one in (made, real))
        parts = {
            "stft": stft_loss(made, real),
            "mel": mel_loss(made, real, self.features),
            "pitch": pitch_loss(predicted, pitch),
        }
        if self.discriminators is not None:
            discriminator = self.discriminators.learn(made, real)
            seen = self.discriminators(made)
            with torch.no_grad():
                wanted = self.discriminators(real)
            parts["adversarial"] = adversarial_loss(seen)
            parts["feature"] = feature_matching_loss(seen, wanted)
        total = [getattr(options, f"{name}_weight") * part for name, part in parts.items()]
        if self.discriminators is not None:
            parts["discriminator"] = discriminator
        return {"loss": torch.stack(total).sum(), **parts}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """How far speech made of each clip's mel is from the clip: spectra, mel, pitch, voicing."""
        means, pitch = WeightedMeans(), PitchDistance()
        for batch in batches:
            rate, hop = batch.sample_rate, self.features.hop
            clips = zip(self._mels(batch), self._pitches_of(batch), self._bands(batch), strict=True)
            for number, (mel, wanted, band) in enumerate(clips):
                real = batch.samples[number, : len(mel) * hop]
                made = self.vocoder(mel[None])[0]
                heard = pitch_of(made, rate, hop)
                pitch = pitch.plus(PitchDistance.between(heard, wanted[: len(mel)].cpu()))
                both = limit_band(torch.stack((made, real)), band.expand(2), rate)
                means.add("stft", stft_loss(both[:1], both[1:]), len(mel))
                means.add("mel", mel_loss(both[:1], both[1:], self.features), len(mel))
        return means.figures() | pitch.figures()

    def _mels(self, batch: Batch) -> list[Tensor]:
        if self.flow is not None:
            mels: list[Tensor] = self.flow(batch)
            return mels
        hop = self.features.hop
        return clip_mels(self.features, batch, [length // hop for length in batch.lengths.tolist()])

    def _pitches_of(self, batch: Batch) -> list[Tensor]:
        """Measured pitch of each clip, `[samples // hop]`."""
        rate, hop, device = batch.sample_rate, self.features.hop, batch.samples.device
        rows = zip(batch.clips, batch.samples, batch.lengths.tolist(), strict=True)
        return [
            self._pitches(clip.id, partial(pitch_of, row[:length], rate, hop)).to(device)
            for clip, row, length in rows
        ]


def _options(config: TrainingConfig) -> VocoderOptions:
    return build(VocoderOptions, config.options, "options")


def _vocoder(config: TrainingConfig, weights: Weights) -> Vocoder:
    """The vocoder with normalised weights, which are plain where they were exported."""
    vocoder = cast(Vocoder, build_module(load_preset(config.preset), VOCODER))
    state = weights.get(VOCODER, {})
    normalised = any(_NORMALISED in name for name in state)
    if state and not normalised:
        fill(vocoder, VOCODER, state)
    normalise_weights(vocoder)
    if normalised:
        fill(vocoder, VOCODER, state)
    return vocoder
