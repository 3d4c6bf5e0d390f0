"""The speech tokenizer: the voice encoder's frames to speech tokens, 25 a second.

Finite scalar quantisation (arXiv 2309.15505) inside a network that recognises speech, as in
CosyVoice 2 (arXiv 2412.10117, section 2.2): what the tokens keep is what is needed to tell the
words, and here also to make the frames again. Only training needs it, to name the tokens of the
recordings that the voice token LM and the flow matching learn from.

Attention sees the frames of its own group and a bounded number of groups before it, so that a
stream gives the tokens of the whole clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.causal_transformer import CausalLayerState, CausalTransformerLayer
from minmo.model.streaming import (
    SlotState,
    advance,
    block_mask,
    context_positions,
    frame_positions,
    is_there,
)

# A saturated tanh times a whole half range would round to the last level on a knife's edge.
_INSIDE = 0.999
# Of a digit, as a share of its reach: that of the tanh of a normal variable, as digits begin.
_SPREAD = 0.6


@dataclass(frozen=True)
class SpeechTokenizerConfig:
    """Sizes of the speech tokenizer.

    Attributes:
        input_width: of the voice encoder's frames.
        width: of the Transformer layers.
        mlp_width: inner width of a layer's MLP.
        heads: attention heads.
        layers: Transformer layers before the quantiser.
        levels: values of each quantised dimension; odd.
        dimensions: quantised dimensions; there are `levels ** dimensions` speech tokens.
        frames_per_group: frames that become `tokens_per_group` tokens.
        tokens_per_group: tokens of a group.
        left_groups: groups before its own that a frame attends to.
        decoder_layers: Transformer layers after the quantiser, of which only training has use.
    """

    input_width: int
    width: int
    mlp_width: int
    heads: int
    layers: int
    levels: int
    dimensions: int
    frames_per_group: int
    tokens_per_group: int
    left_groups: int
    decoder_layers: int

    @property
    def speech_tokens(self) -> int:
        """How many different tokens there are."""
        return int(self.levels**self.dimensions)

    def tokens_of(self, frames: Tensor) -> Tensor:
        """Tokens of so many frames; those of an unfinished group have none."""
        return frames // self.frames_per_group * self.tokens_per_group


class FiniteScalarQuantizer(nn.Module):
    """Projects down to few dimensions and rounds each of them to few levels.

    A token's number has the rounded levels as its digits, the first dimension the lowest.

    Args:
        width: of the vectors.
        levels: of each dimension; odd, so that zero is one of them.
        dimensions: digits of a token.
    """

    def __init__(self, width: int, levels: int, dimensions: int) -> None:
        super().__init__()
        if levels < 3 or levels % 2 == 0:
            raise ValueError(f"levels is {levels}: it must be odd and at least 3")
        self.levels = levels
        self.reach = levels // 2
        self.project_down = nn.Linear(width, dimensions)
        if not self.project_down.weight.is_meta:
            # For vectors of variance 1 so are the digits: from the start all levels are in use.
            nn.init.normal_(self.project_down.weight, std=width**-0.5)
        self.project_up = nn.Linear(dimensions, width)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Quantises; the gradient passes the rounding as if it were not there.

        Args:
            vectors: `[..., width]`.

        Returns:
            Quantised vectors `[..., width]` and tokens `[...]`.
        """
        smooth = self.smooth(vectors)
        rounded = smooth.round()
        straight_through = smooth + (rounded - smooth).detach()
        quantized: Tensor = self.project_up(straight_through)
        return quantized, self._token(rounded)

    def smooth(self, vectors: Tensor) -> Tensor:
        """The digits `[..., dimensions]` of vectors `[..., width]`, before they are rounded."""
        return torch.tanh(self.project_down(vectors)) * (self.reach * _INSIDE)

    def decode(self, tokens: Tensor) -> Tensor:
        """Quantised vectors `[..., width]` of tokens `[...]`."""
        digits = tokens[..., None] // self._digit_values(tokens.device) % self.levels
        vectors: Tensor = self.project_up((digits - self.reach).to(self.project_up.weight.dtype))
        return vectors

    def _token(self, rounded: Tensor) -> Tensor:
        digits = rounded.detach().long() + self.reach
        return (digits * self._digit_values(rounded.device)).sum(-1)

    def _digit_values(self, device: torch.device) -> Tensor:
        return self.levels ** torch.arange(self.project_down.out_features, device=device)


@dataclass
class TransformerState(SlotState):
    """What Transformer layers remember of the streams.

    Attributes:
        positions: `[slots]`, frames before the next one.
        layers: of each layer.
    """

    positions: Tensor
    layers: list[CausalLayerState]


class _GroupTransformer(nn.Module):
    """Transformer layers in which a frame sees its own group and a few groups before it."""

    def __init__(self, config: SpeechTokenizerConfig, layers: int, group: int) -> None:
        super().__init__()
        self.group, self.left_groups = group, config.left_groups
        sizes = (config.width, config.heads, config.mlp_width, self.kept)
        self._layers = [CausalTransformerLayer(*sizes) for _ in range(layers)]
        self.layers = nn.ModuleList(self._layers)
        self.norm = nn.LayerNorm(config.width)

    @property
    def kept(self) -> int:
        """Frames of left context."""
        return self.left_groups * self.group

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Reads whole clips: streams of a single chunk.

        Args:
            frames: `[batch, frames, width]`, whole groups.
            lengths: `[batch]`, frames that are there.

        Returns:
            `[batch, frames, width]`.
        """
        state = self.initial_state(len(frames), frames.device, frames.dtype)
        return self.step(frames, lengths, state)

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> TransformerState:
        """The state of streams that start."""
        positions = torch.zeros(slots, dtype=torch.long, device=device)
        layers = [layer.initial_state(slots, device, dtype) for layer in self._layers]
        return TransformerState(positions, layers)

    def step(self, chunk: Tensor, lengths: Tensor, state: TransformerState) -> Tensor:
        """The next whole groups, `[slots, frames, width]` to the same."""
        frames = chunk.shape[1]
        if not frames:
            return chunk
        queries = frame_positions(state.positions, frames)
        keys = context_positions(state.positions, lengths, self.kept, frames)
        mask = block_mask(queries, keys, self.group, self.left_groups)
        for layer, memory in zip(self._layers, state.layers, strict=True):
            chunk = layer.step(chunk, lengths, mask, memory)
        state.positions += lengths
        read: Tensor = self.norm(chunk)
        return read


class _RateChange(nn.Module):
    """Groups of frames to groups of another size: mixed over time per channel, then linear."""

    def __init__(self, group: int, into: int, width: int, output_width: int) -> None:
        super().__init__()
        self.group, self.into = group, into
        spread = torch.zeros(into, group)
        for target in range(into):
            centre = (target + 0.5) * group / into - 0.5
            nearest = [max(0.0, 1 - abs(source - centre)) for source in range(group)]
            spread[target] = torch.tensor(nearest) / sum(nearest)
        # Starts as linear interpolation; each channel learns its own.
        self.mix = nn.Parameter(spread[:, :, None].repeat(1, 1, width))
        self.linear = nn.Linear(width, output_width)

    def forward(self, frames: Tensor) -> Tensor:
        """`[batch, groups * group, width]` to `[batch, groups * into, output_width]`."""
        batch, count, width = frames.shape
        grouped = frames.view(batch, count // self.group, self.group, width)
        mixed = torch.einsum("bgfw,tfw->bgtw", grouped, self.mix)
        changed: Tensor = self.linear(mixed.flatten(1, 2))
        return changed


class Quantized(NamedTuple):
    """Speech as tokens.

    Attributes:
        tokens: `[batch, tokens]`.
        vectors: `[batch, tokens, width]`, the same, differentiable past the rounding.
        digits: `[batch, tokens, dimensions]`, the same before the rounding, -1 to 1.
        lengths: `[batch]`, tokens that are there.
    """

    tokens: Tensor
    vectors: Tensor
    digits: Tensor
    lengths: Tensor


@dataclass
class SpeechTokenizerState(SlotState):
    """What the tokenizer remembers of the streams.

    Attributes:
        waiting: `[slots, frames_per_group - 1, input_width]`, frames of an unfinished group, the
            last ones of these rows.
        waiting_count: `[slots]`, how many.
        layers: of the Transformer layers.
    """

    waiting: Tensor
    waiting_count: Tensor
    layers: TransformerState


class SpeechTokenizer(nn.Module):
    """Transformer layers, a change of rate, and the quantiser."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.input = nn.Linear(config.input_width, config.width)
        self.encoder = _GroupTransformer(config, config.layers, config.frames_per_group)
        self.rate = _RateChange(
            config.frames_per_group, config.tokens_per_group, config.width, config.width
        )
        self.norm = nn.LayerNorm(config.width)
        self.quantizer = FiniteScalarQuantizer(config.width, config.levels, config.dimensions)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Names the speech tokens of whole clips.

        Args:
            features: `[batch, frames, input_width]` of the voice encoder.
            lengths: `[batch]`, frames that are there; all where None.

        Returns:
            `[batch, frames // frames_per_group * tokens_per_group]`; behind a clip's
            `config.tokens_of(lengths)` they have no meaning.
        """
        return self.quantize(features, lengths).tokens

    def quantize(self, features: Tensor, lengths: Tensor | None = None) -> Quantized:
        """As `forward`, with the vectors that training reads."""
        frames = features.shape[1] // self.config.frames_per_group * self.config.frames_per_group
        if lengths is None:
            lengths = features.new_full((features.shape[0],), frames, dtype=torch.long)
        tokens = self.config.tokens_of(lengths)
        # An unfinished group has no tokens, and its frames no influence on others.
        whole = lengths // self.config.frames_per_group * self.config.frames_per_group
        encoded = self.encoder(self.input(features[:, :frames]), whole)
        read = self.norm(self.rate(encoded))
        vectors, names = self.quantizer(read)
        digits = self.quantizer.smooth(read) / self.quantizer.reach
        return Quantized(names, vectors, digits, tokens)

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> SpeechTokenizerState:
        """The state of streams that start."""
        shape = (slots, self.config.frames_per_group - 1, self.config.input_width)
        return SpeechTokenizerState(
            torch.zeros(shape, device=device, dtype=dtype),
            torch.zeros(slots, dtype=torch.long, device=device),
            self.encoder.initial_state(slots, device, dtype),
        )

    def step(
        self, chunk: Tensor, lengths: Tensor, state: SpeechTokenizerState
    ) -> tuple[Tensor, Tensor]:
        """Names the tokens of the groups that these frames complete.

        Args:
            chunk: `[slots, frames, input_width]`, the next frames.
            lengths: `[slots]`, how many of them are there.
            state: of the streams; changed in place.

        Returns:
            Tokens `[slots, most]` and how many of them each slot has, `[slots]`.
        """
        group = self.config.frames_per_group
        # Each slot's frames, the waiting ones first, moved to the start of its row.
        joined, tail = advance(state.waiting, chunk, lengths)
        there = state.waiting_count + lengths
        first = group - 1 - state.waiting_count
        most = joined.shape[1] // group * group
        rows = (first[:, None] + torch.arange(most, device=chunk.device)).clamp(
            max=joined.shape[1] - 1
        )
        frames = joined.gather(1, rows[:, :, None].expand(-1, -1, joined.shape[2]))
        whole = there // group * group
        state.waiting.copy_(tail)
        state.waiting_count.copy_(there - whole)
        encoded = self.encoder.step(self.input(frames), whole, state.layers)
        _, tokens = self.quantizer(self.norm(self.rate(encoded)))
        return tokens, self.config.tokens_of(whole)


class Decoded(NamedTuple):
    """What the decoder reads out of speech tokens.

    Attributes:
        scores: `[batch, tokens, vocabulary_size + 1]`, log probabilities of text units; the last
            one is the blank.
        features: `[batch, frames, input_width]`, the voice encoder's frames made again.
    """

    scores: Tensor
    features: Tensor


class SpeechTokenDecoder(nn.Module):
    """Recognises words and makes the frames again from quantised vectors; for training only.

    Args:
        config: of the tokenizer.
        vocabulary_size: text units that it recognises.
    """

    def __init__(self, config: SpeechTokenizerConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.layers = _GroupTransformer(config, config.decoder_layers, config.tokens_per_group)
        self.recognition = nn.Linear(config.width, vocabulary_size + 1)
        self.reconstruction = _RateChange(
            config.tokens_per_group, config.frames_per_group, config.width, config.input_width
        )

    def forward(self, vectors: Tensor, lengths: Tensor) -> Decoded:
        """Reads quantised vectors.

        Args:
            vectors: `[batch, tokens, width]`.
            lengths: `[batch]`, tokens that are there.
        """
        read = self.layers(vectors, lengths)
        return Decoded(self.recognition(read).log_softmax(-1), self.reconstruction(read))


class SpeechTokenizerLoss(NamedTuple):
    """The losses of a batch, scalars.

    Attributes:
        loss: their weighted sum, differentiable.
        recognition: connectionist temporal classification, for each text unit.
        reconstruction: squared error of the frames, relative to their variance.
    """

    loss: Tensor
    recognition: Tensor
    reconstruction: Tensor


def speech_tokenizer_loss(
    decoded: Decoded,
    quantized: Quantized,
    features: Tensor,
    units: Tensor,
    unit_lengths: Tensor,
    reconstruction_weight: float = 1.0,
) -> SpeechTokenizerLoss:
    """How well the tokens keep the words and the frames.

    Clips with more text units than tokens cannot be recognised and count for the frames only.

    Args:
        decoded: what was read out of the tokens.
        quantized: the tokens.
        features: `[batch, frames, input_width]` of the voice encoder.
        units: `[batch, units]`, text units spoken.
        unit_lengths: `[batch]`, units that are there.
        reconstruction_weight: of the frames' loss beside the words'.
    """
    recognition = F.ctc_loss(
        decoded.scores.float().transpose(0, 1),
        units,
        quantized.lengths,
        unit_lengths,
        blank=decoded.scores.shape[-1] - 1,
        zero_infinity=True,
    )
    # Both have whole groups: as many frames for each token everywhere.
    frames, tokens = decoded.features.shape[1], decoded.scores.shape[1]
    there = is_there(quantized.lengths * frames // max(1, tokens), frames)
    wanted, made = features[:, :frames][there], decoded.features[there]
    spread = (wanted - wanted.mean(0)).square().sum()
    reconstruction = (made - wanted).square().sum() / spread.clamp(min=1e-6)
    return SpeechTokenizerLoss(
        recognition + reconstruction_weight * reconstruction, recognition, reconstruction
    )


def spread_loss(quantized: Quantized) -> Tensor:
    """How far the digits of tokens are from being of use: each spread out, no two alike.

    Recognition begins with hearing nothing but blanks, for which one token is enough; digits that
    no longer differ then are hard to bring back. The variance and covariance terms of VICReg (arXiv
    2105.04906, section 4.1) keep them apart; once they are, the first is zero.

    Args:
        quantized: the tokens of a batch.

    Returns:
        A scalar, from 0 to 2; 0 for less than two tokens.
    """
    digits = quantized.digits[is_there(quantized.lengths, quantized.digits.shape[1])].float()
    if len(digits) < 2:
        return digits.new_zeros(())
    centred = digits - digits.mean(0)
    deviation = (centred.square().mean(0) + 1e-6).sqrt()
    narrow = F.relu(1 - deviation / _SPREAD).mean()
    scaled = centred / deviation
    alike = scaled.T @ scaled / len(digits)
    others = alike - torch.diag(alike.diagonal())
    dimensions = len(alike)
    return narrow + others.square().sum() / max(1, dimensions * (dimensions - 1))


class CodeUsage:
    """Counts speech tokens: a tokenizer that uses few of them has collapsed.

    Args:
        speech_tokens: how many different ones there are.
    """

    def __init__(self, speech_tokens: int) -> None:
        self.counts = torch.zeros(speech_tokens, dtype=torch.long)

    def update(self, tokens: Tensor, lengths: Tensor) -> None:
        """Counts tokens `[batch, tokens]`, so many of each row as `lengths`, `[batch]`, says."""
        counted = tokens[is_there(lengths, tokens.shape[1])].cpu()
        self.counts += torch.bincount(counted, minlength=len(self.counts))

    @property
    def used(self) -> int:
        """Different tokens seen."""
        return int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float:
        """As many tokens, used equally often, would be as hard to guess; 1 if none was seen."""
        shares = self.counts[self.counts > 0].double() / self.counts.sum()
        return float(torch.exp(-(shares * shares.log()).sum()))
