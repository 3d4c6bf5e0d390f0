"""The stage speech-tokenizer: speech tokens learn to carry words (CosyVoice 2, arXiv 2412.10117).

The tokenizer quantises the frames of the pretrained voice encoder, which is frozen and hears whole
clips, and a decoder that is thrown away afterwards reads the letters out of the tokens (section 2.2
there; the letters are those of speech-to-text). What a clip sounds like beyond its words comes back
by a small loss of making the frames again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minmo.model.speech_tokenizer import (
    CodeUsage,
    Decoded,
    Quantized,
    SpeechTokenDecoder,
    SpeechTokenizer,
    SpeechTokenizerLoss,
    speech_tokenizer_loss,
    spread_loss,
)
from minmo.model.spelling import LETTERS, letters_of
from minmo.presets import build_module, load_preset
from minmo.training.batches import Batch, Source
from minmo.training.config import TrainingConfig
from minmo.training.errors import TrainingError
from minmo.training.filling import fill
from minmo.training.listening import check_heard
from minmo.training.remembering import RememberedFrames, check_remembering
from minmo.training.stage import Stage, Trainee, Weights
from minmo.training.tables import build
from minmo.training.transcripts import error_rate, letters_text, plain_words
from minmo.training.whole_clips import WholeClipEncoder
from minmo.weights.spoken import TOKENIZER, write_spoken

DECODER = "speech_token_decoder"
MODULES = (TOKENIZER, DECODER)
_SHORTEST_SECONDS = 0.2


@dataclass(frozen=True)
class SpeechTokenizerOptions:
    """What the stage minimises.

    Attributes:
        reconstruction: weight of making the voice encoder's frames again, beside the recognition
            of letters, which has 1.
        spread: weight of keeping the tokens apart from each other, without which the first minutes,
            in which nothing is recognised yet, leave a few of them.
        remember_mb: megabytes of the voice encoder's frames to keep, 87 for an hour of `mini`'s;
            each clip stays as it was first heard, so silence and speed must not be drawn anew.
            0 to encode each time.
        least_used: share of all speech tokens that must be in use when it is measured: as many
            tokens, used equally often, would be as hard to guess (perplexity). With less twice in
            a row the tokens have collapsed, and the run ends.
    """

    reconstruction: float = 0.1
    spread: float = 1.0
    remember_mb: float = 0.0
    least_used: float = 0.01

    def __post_init__(self) -> None:
        if min(self.reconstruction, self.spread, self.remember_mb) < 0:
            raise ValueError("reconstruction, spread and remember_mb are 0 or more")
        if not 0 <= self.least_used < 1:
            raise ValueError(f"least_used is {self.least_used:g}: it is from 0 to below 1")


class SpeechTokenizerStage(Stage):
    """The stage; see the module."""

    name = "speech-tokenizer"

    def check(self, config: TrainingConfig) -> None:
        """Refuses what it does not know; see `Stage.check`."""
        check_heard(config)
        for module in config.optimizer.learning_rates:
            if module not in MODULES:
                raise TrainingError(
                    f"optimizer.learning_rates names {module!r}; speech-tokenizer trains: "
                    f"{', '.join(MODULES)}; the voice encoder stays as it was pretrained"
                )
        if _options(config).remember_mb:
            check_remembering(config)
        if config.data.shortest < _SHORTEST_SECONDS:
            raise TrainingError(
                f"data.shortest is {config.data.shortest:g} s: a clip with a speech token has "
                f"{_SHORTEST_SECONDS:g} s at least"
            )

    def build(
        self, config: TrainingConfig, weights: Weights, sources: Sequence[Source]
    ) -> SpeechTokenizerTrainee:
        """Builds the modules; see `Stage.build`."""
        preset = load_preset(config.preset)
        tokenizer = cast(SpeechTokenizer, build_module(preset, TOKENIZER))
        decoder = SpeechTokenDecoder(preset.speech_tokenizer, len(LETTERS))
        for name, module in zip(MODULES, (tokenizer, decoder), strict=True):
            if name in weights:
                fill(module, name, weights[name])
        encoder = WholeClipEncoder.pretrained(config.preset)
        return SpeechTokenizerTrainee(encoder, tokenizer, decoder, _options(config))

    def export(self, config: TrainingConfig, weights: Weights, folder: Path | None) -> Path:
        """Writes the tokenizer into the voice set, without its decoder; see `Stage.export`."""
        preset = load_preset(config.preset)
        tokenizer = build_module(preset, TOKENIZER)
        fill(tokenizer, TOKENIZER, weights[TOKENIZER])
        return write_spoken(preset, {TOKENIZER: tokenizer}, folder)


class SpeechTokenizerTrainee(Trainee):
    """The tokenizer, and what teaches it.

    Args:
        encoder: the pretrained voice encoder.
        tokenizer: what is trained.
        decoder: reads letters and frames out of its tokens.
        options: of the stage.
    """

    best = "cer"

    def __init__(
        self,
        encoder: WholeClipEncoder,
        tokenizer: SpeechTokenizer,
        decoder: SpeechTokenDecoder,
        options: SpeechTokenizerOptions,
    ) -> None:
        super().__init__()
        self.encoder, self.tokenizer, self.decoder = encoder, tokenizer, decoder
        self._options = options
        self._collapsed = 0
        self._remembered = RememberedFrames(options.remember_mb) if options.remember_mb else None

    def kept(self) -> Mapping[str, nn.Module]:
        """The tokenizer and its decoder."""
        return {TOKENIZER: self.tokenizer, DECODER: self.decoder}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted sum, its parts and the tokens' perplexity; see `Trainee.losses`."""
        if self._remembered is None:
            frames, counts = self.encoder.frames(batch.samples, batch.lengths)
        else:
            frames, counts = self._remembered(self.encoder, batch)
        quantized, decoded = self._read(frames, counts)
        found = self._loss(batch, frames, quantized, decoded)
        usage = self._usage()
        usage.update(quantized.tokens, quantized.lengths)
        spread = spread_loss(quantized)
        return {
            "loss": found.loss + self._options.spread * spread,
            "recognition": found.recognition,
            "reconstruction": found.reconstruction,
            "spread": spread,
            "perplexity": torch.tensor(usage.perplexity),
        }

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Letter and word error rates of what the tokens say, and how they are used.

        Raises:
            TrainingError: the tokens have collapsed, for the second time in a row.
        """
        wanted: list[str] = []
        heard: list[str] = []
        usage, error, clips = self._usage(), 0.0, 0
        for batch in batches:
            frames, counts = self.encoder.frames(batch.samples, batch.lengths)
            quantized, decoded = self._read(frames, counts)
            usage.update(quantized.tokens, quantized.lengths)
            found = self._loss(batch, frames, quantized, decoded)
            error += float(found.reconstruction) * len(batch.clips)
            clips += len(batch.clips)
            wanted += [plain_words(text) for text in batch.texts]
            texts = letters_text(decoded.scores, quantized.lengths)
            heard += [plain_words(text) for text in texts]
        least = self._options.least_used * len(usage.counts)
        self._collapsed = self._collapsed + 1 if usage.perplexity < least else 0
        # The first steps may leave few tokens, which come apart again.
        if self._collapsed > 1:
            raise TrainingError(
                f"the speech tokens have collapsed: {usage.used} of {len(usage.counts)} are in "
                f"use, as hard to guess as {usage.perplexity:.1f}, and options.least_used wants "
                f"{least:.0f}; lower optimizer.learning_rates, raise options.spread, or give "
                "more speech"
            )
        return {
            "cer": error_rate(wanted, heard, letters=True),
            "wer": error_rate(wanted, heard),
            "used_tokens": float(usage.used),
            "perplexity": usage.perplexity,
            "reconstruction": error / max(1, clips),
        }

    def _read(self, frames: Tensor, counts: Tensor) -> tuple[Quantized, Decoded]:
        quantized = self.tokenizer.quantize(frames, counts)
        return quantized, self.decoder(quantized.vectors, quantized.lengths)

    def _loss(
        self, batch: Batch, frames: Tensor, quantized: Quantized, decoded: Decoded
    ) -> SpeechTokenizerLoss:
        letters = [torch.tensor(letters_of(text), dtype=torch.int64) for text in batch.texts]
        lengths = torch.tensor([len(row) for row in letters], device=frames.device)
        units = pad_sequence(letters, batch_first=True).to(frames.device)
        weight = self._options.reconstruction
        return speech_tokenizer_loss(decoded, quantized, frames, units, lengths, weight)

    def _usage(self) -> CodeUsage:
        return CodeUsage(self.tokenizer.config.speech_tokens)


def _options(config: TrainingConfig) -> SpeechTokenizerOptions:
    return build(SpeechTokenizerOptions, config.options, "options")
