"""The stage token2wav: speech tokens to mel, as CosyVoice 2 learns it (arXiv 2412.10117, 2.4).

Speakers have no encoder: each has an embedding in a table that is learned with the flow, and the
one that the product is to speak with is exported as a speaker's file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minmo.model.chunking import Chunking
from minmo.model.features import VocoderMel
from minmo.model.flow_encoder import MEL_FRAMES_PER_TOKEN as _FRAMES
from minmo.model.flow_matching import FlowMatching
from minmo.model.flow_matching_loss import flow_matching_loss, random_chunking
from minmo.model.streaming import is_there
from minmo.presets import build_module, load_preset
from minmo.training.bandwidth import ClipBands, known_bins
from minmo.training.batches import Batch, Source
from minmo.training.config import TrainingConfig
from minmo.training.filling import fill
from minmo.training.means import WeightedMeans
from minmo.training.mel_data import check_mel_data, clip_mels, open_tokens, whole_tokens
from minmo.training.named_by import NAMED_BY, NamedBy, named_by
from minmo.training.speaker_table import SpeakerTable
from minmo.training.speech_tokens import Tokens
from minmo.training.stage import Stage, Trainee, Weights
from minmo.training.tables import build
from minmo.weights.spoken import write_spoken

FLOW, SPEAKERS = "flow_matching", "speakers"
_EVALUATION_SEED = 1


@dataclass(frozen=True)
class Token2WavOptions:
    """How the flow is learned, and whose voice it is.

    Attributes:
        speaker: who is exported as the default speaker; empty for the one with most speech.
        band_limits: whether a clip teaches nothing of frequencies that it has lost.
        solve_every: of so many valid clips one is made by the solver, to measure `mel`.
    """

    speaker: str = ""
    band_limits: bool = True
    solve_every: int = 4

    def __post_init__(self) -> None:
        if self.solve_every < 1:
            raise ValueError(f"solve_every is {self.solve_every}: it is 1 or more")


class Token2WavStage(Stage):
    """The stage; see the module."""

    name = "token2wav"

    def check(self, config: TrainingConfig) -> None:
        """Refuses what it does not know; see `Stage.check`."""
        _options(config)
        check_mel_data(config, (FLOW, SPEAKERS))

    def build(
        self, config: TrainingConfig, weights: Weights, sources: Sequence[Source]
    ) -> Token2WavTrainee:
        """Builds the flow and the table of speakers; see `Stage.build`."""
        flow, options = _flow(config, weights), _options(config)
        clips = [clip for source in sources for clip in source.clips]
        table = SpeakerTable.for_clips(clips, weights.get(SPEAKERS), flow.config.speaker_width)
        tokens = open_tokens(config)
        named = NamedBy.going_on(weights, tokens.tokenizer_sha256)
        return Token2WavTrainee(flow, table, tokens, options, named)

    def export(self, config: TrainingConfig, weights: Weights, folder: Path | None) -> Path:
        """Writes the flow and its default speaker into the voice set; see `Stage.export`."""
        flow = _flow(config, weights)
        table = SpeakerTable.from_state(weights[SPEAKERS], flow.config.speaker_width)
        speaker = table.speaker(_options(config).speaker)
        preset = load_preset(config.preset)
        return write_spoken(
            preset, {FLOW: flow}, folder, (speaker,), tokenizer_sha256=named_by(weights)
        )


class TokenExamples(NamedTuple):
    """Clips as flow matching learns them.

    Attributes:
        tokens: `[batch, tokens]`.
        mel: `[batch, 2 * tokens, mel_bins]`, zeros behind each clip.
        speakers: `[batch, speaker_width]`.
        lengths: `[batch]`, tokens of each clip.
        bins: `[batch, mel_bins]`, true for those that the recording has.
    """

    tokens: Tensor
    mel: Tensor
    speakers: Tensor
    lengths: Tensor
    bins: Tensor

    def select(self, rows: Sequence[int]) -> TokenExamples:
        """Some of them."""
        return TokenExamples(*(part[rows] for part in self))

    @property
    def counted(self) -> Tensor:
        """`[batch, 2 * tokens, mel_bins]`, true for what the recordings say."""
        there = is_there(self.lengths * _FRAMES, self.mel.shape[1])
        return there[..., None] & self.bins[:, None]


class Token2WavTrainee(Trainee):
    """The flow and its speakers.

    Args:
        flow: flow matching.
        speakers: of the clips.
        tokens: speech tokens of the clips, by their ids.
        options: of the stage.
        named: by whom they were.
    """

    best = "mel"

    def __init__(
        self,
        flow: FlowMatching,
        speakers: SpeakerTable,
        tokens: Mapping[str, Tokens],
        options: Token2WavOptions,
        named: NamedBy,
    ) -> None:
        super().__init__()
        self.named_by = named
        self.flow, self.speakers = flow, speakers
        self.features = VocoderMel(flow.config.mel_bins)
        self._tokens, self._options = tokens, options
        self._bands = ClipBands(options.band_limits)

    def kept(self) -> Mapping[str, nn.Module]:
        """The flow, the table of speakers, and whose tokens they have learned."""
        return {FLOW: self.flow, SPEAKERS: self.speakers, NAMED_BY: self.named_by}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The flow's loss; see `Trainee.losses`."""
        examples = self._examples(batch)
        chunking = random_chunking(
            self.flow.config, examples.tokens.shape[1], torch.default_generator
        )
        return {"loss": self._loss(examples, torch.default_generator, chunking)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """`loss`, with the same noise and times every time, and `mel`: how far made mel is."""
        means, generator = WeightedMeans(), torch.Generator().manual_seed(_EVALUATION_SEED)
        seen, every = 0, self._options.solve_every
        for batch in batches:
            # As precise as the product.
            with torch.autocast(batch.samples.device.type, enabled=False):
                examples = self._examples(batch)
                loss = self._loss(examples, generator, self.flow.config.chunking)
                means.add("loss", loss, int(examples.lengths.sum()))
                rows = [row for row in range(len(batch.clips)) if (seen + row) % every == 0]
                if rows:
                    solved = examples.select(rows)
                    made = self.flow(solved.tokens, solved.speakers, lengths=solved.lengths)
                    distances = (made - solved.mel).abs()[solved.counted]
                    means.add("mel", distances.mean(), len(distances))
            seen += len(batch.clips)
        return means.figures()

    def _loss(
        self, examples: TokenExamples, generator: torch.Generator, chunking: Chunking
    ) -> Tensor:
        return flow_matching_loss(
            self.flow,
            examples.tokens,
            examples.mel,
            examples.speakers,
            examples.lengths,
            generator,
            chunking,
            examples.bins,
        )

    def _examples(self, batch: Batch) -> TokenExamples:
        device = batch.samples.device
        tokens = whole_tokens(batch, self._tokens)
        mels = clip_mels(self.features, batch, [_FRAMES * len(row) for row in tokens])
        return TokenExamples(
            pad_sequence(tokens, batch_first=True).to(device),
            pad_sequence(mels, batch_first=True),
            self.speakers([clip.speaker for clip in batch.clips]),
            torch.tensor([len(row) for row in tokens], device=device),
            known_bins(self.features, self._bands(batch)),
        )


def _options(config: TrainingConfig) -> Token2WavOptions:
    return build(Token2WavOptions, config.options, "options")


def _flow(config: TrainingConfig, weights: Weights) -> FlowMatching:
    flow = cast(FlowMatching, build_module(load_preset(config.preset), FLOW))
    if FLOW in weights:
        fill(flow, FLOW, weights[FLOW])
    return flow
