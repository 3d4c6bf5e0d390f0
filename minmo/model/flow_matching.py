"""Chunk-aware causal flow matching: speech tokens to mel, as in CosyVoice 2.

An encoder makes of the tokens a mean at the mel's rate. From noise, an Euler solver follows the
velocity that the estimator sees, with classifier-free guidance, to a mel (arXiv 2412.10117,
section 2.4). The solver goes chunk by chunk: the last tokens of every 15 wait as look-ahead of
those before, so the first chunk is 12 tokens, each later one 15. The noise is the same for every
stream, a table by frame, so that a mel doesn't depend on how it was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.chunking import Beginning, Chunking, Past, Ring, clip_view, place_chunk, ring_view
from minmo.model.flow_encoder import (
    MEL_FRAMES_PER_TOKEN,
    FlowEncoder,
    FlowEncoderSizes,
    FlowEncoderState,
)
from minmo.model.flow_estimator import FlowEstimator, FlowEstimatorSizes, FlowEstimatorState
from minmo.model.streaming import SlotState, is_there

# Five minutes, after which the noise starts again; CosyVoice 2's own noise for 80 mel bins.
_NOISE_FRAMES = 15_000
_NOISE_SEED = 0
# With and without the conditions.
_BRANCHES = 2


@dataclass(frozen=True)
class FlowMatchingConfig:
    """Sizes of flow matching.

    Attributes:
        speech_tokens: codes of the speech tokenizer.
        speaker_width: channels of a speaker's embedding.
        mel_bins: channels of a mel frame.
        chunk_tokens: tokens of a chunk.
        look_ahead_tokens: by how many tokens the first chunk is shorter, which the encoder sees
            beyond a chunk.
        left_chunks: chunks before its own that a frame attends to in each layer.
        encoder_width: channels of the encoder.
        encoder_heads: attention heads of its layers.
        encoder_mlp_width: inner channels of their MLPs.
        encoder_layers: at the tokens' rate.
        upsampled_layers: at the mel's rate.
        estimator_width: channels of the estimator.
        estimator_heads: attention heads of its layers.
        estimator_head_dim: channels of a head.
        estimator_mid_blocks: blocks between its first and its last.
        estimator_layers_per_block: Transformer layers of a block.
        solver_steps: times that the estimator runs for a mel.
        guidance: how much further the solver goes than the conditions say.
        guidance_dropout: part of training's examples that have no conditions.
    """

    speech_tokens: int
    speaker_width: int
    mel_bins: int
    chunk_tokens: int
    look_ahead_tokens: int
    left_chunks: int
    encoder_width: int
    encoder_heads: int
    encoder_mlp_width: int
    encoder_layers: int
    upsampled_layers: int
    estimator_width: int
    estimator_heads: int
    estimator_head_dim: int
    estimator_mid_blocks: int
    estimator_layers_per_block: int
    solver_steps: int
    guidance: float
    guidance_dropout: float

    @property
    def first_chunk_tokens(self) -> int:
        """Tokens of a stream's first chunk."""
        return self.chunk_tokens - self.look_ahead_tokens

    @property
    def chunking(self) -> Chunking:
        """How a stream's tokens are cut."""
        return Chunking(self.chunk_tokens, self.look_ahead_tokens, self.left_chunks)


@dataclass
class FlowMatchingState(SlotState):
    """What flow matching remembers of its streams.

    Attributes:
        tokens: `[slots]`, speech tokens decoded so far.
        encoder: of the encoder.
        estimator: of the estimator.
    """

    tokens: Tensor
    encoder: FlowEncoderState
    estimator: FlowEstimatorState


class FlowMatching(nn.Module):
    """Speech tokens and a speaker to mel frames, two for each token."""

    noise: Tensor

    def __init__(self, config: FlowMatchingConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.speech_tokens, config.encoder_width)
        self.speaker_projection = nn.Linear(config.speaker_width, config.mel_bins)
        self.encoder = FlowEncoder(
            FlowEncoderSizes(
                width=config.encoder_width,
                heads=config.encoder_heads,
                mlp_width=config.encoder_mlp_width,
                layers=config.encoder_layers,
                upsampled_layers=config.upsampled_layers,
                look_ahead=config.look_ahead_tokens,
            )
        )
        self.mean_projection = nn.Linear(config.encoder_width, config.mel_bins)
        self.estimator = FlowEstimator(
            FlowEstimatorSizes(
                mel_bins=config.mel_bins,
                width=config.estimator_width,
                heads=config.estimator_heads,
                head_dim=config.estimator_head_dim,
                mid_blocks=config.estimator_mid_blocks,
                layers_per_block=config.estimator_layers_per_block,
            )
        )
        self.register_buffer("noise", _noise_table(config.mel_bins), persistent=False)

    def forward(
        self,
        tokens: Tensor,
        speaker: Tensor,
        prompt_mel: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        chunking: Chunking | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Makes the mel of whole clips.

        Args:
            tokens: `[batch, tokens]`, speech tokens.
            speaker: `[batch, speaker_width]`.
            prompt_mel: `[batch, frames, mel_bins]`, the known mel of the first tokens, zeros where
                it isn't known.
            lengths: `[batch]`, how many tokens are there; all of them by default.
            chunking: how the tokens are cut; by default as in a stream.
            noise: `[batch, 2 * tokens, mel_bins]`, what the solver starts from; by default the
                table's.

        Returns:
            `[batch, 2 * tokens, mel_bins]`, zeros behind a length. Where the mel was known it is
            made again.
        """
        chunking = chunking or self.config.chunking
        batch, frames = tokens.shape[0], tokens.shape[1] * MEL_FRAMES_PER_TOKEN
        if lengths is None:
            lengths = tokens.new_full((batch,), tokens.shape[1])
        conditions = self.conditions(tokens, speaker, prompt_mel, lengths, chunking)
        if noise is None:
            noise = self._noise_from(tokens.new_zeros(batch), frames)
        lengths = lengths * MEL_FRAMES_PER_TOKEN
        view = clip_view(chunking.times(MEL_FRAMES_PER_TOKEN), lengths, frames, conditions.dtype)
        mel = self._solve(noise, conditions, view.bias, lambda _: Beginning())
        return mel * is_there(lengths, frames)[..., None]

    def conditions(
        self,
        tokens: Tensor,
        speaker: Tensor,
        prompt_mel: Tensor | None,
        lengths: Tensor,
        chunking: Chunking,
    ) -> Tensor:
        """What the estimator is told of whole clips beside the noisy mel.

        Args:
            tokens: `[batch, tokens]`.
            speaker: `[batch, speaker_width]`.
            prompt_mel: `[batch, frames, mel_bins]`, as in `forward`.
            lengths: `[batch]`, how many tokens are there.
            chunking: how the tokens are cut.

        Returns:
            `[batch, 2 * tokens, 3 * mel_bins]`: the mean, the speaker, the known mel.
        """
        encoded = self.encoder(self._embed(tokens, lengths), lengths, chunking)
        return self._join_conditions(encoded, speaker, prompt_mel, lengths)

    def initial_state(
        self,
        slots: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        ring_dtype: torch.dtype | None = None,
    ) -> FlowMatchingState:
        """The state of streams that start.

        Args:
            slots: streams.
            device: of the weights.
            dtype: of the weights.
            ring_dtype: of keys and values, nearly all of it; None for `dtype`.
        """
        chunking = self.config.chunking
        return FlowMatchingState(
            torch.zeros(slots, dtype=torch.long, device=device),
            self.encoder.initial_state(slots, chunking, device, dtype, ring_dtype),
            self.estimator.initial_state(
                slots,
                self.config.solver_steps,
                _BRANCHES,
                chunking.times(MEL_FRAMES_PER_TOKEN),
                device,
                dtype,
                ring_dtype,
            ),
        )

    def step(
        self,
        tokens: Tensor,
        lengths: Tensor,
        ahead: Tensor,
        speaker: Tensor,
        state: FlowMatchingState,
        prompt_mel: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Makes the mel of the next chunk of each stream.

        A stream's first chunk has `first_chunk_tokens`, every other `chunk_tokens`, and only its
        last may have fewer.

        Args:
            tokens: `[slots, chunk_tokens + look_ahead_tokens]`: those of the chunk, and right
                behind them those that are known beyond.
            lengths: `[slots]`, tokens of the chunk, 0 for a slot that waits.
            ahead: `[slots]`, tokens known beyond: `look_ahead_tokens`, fewer only at the end.
            speaker: `[slots, speaker_width]`.
            state: of the streams; changed in place.
            prompt_mel: `[slots, 2 * chunk_tokens, mel_bins]`, the known mel of the chunk, zeros
                where it isn't known.
            slots: `[slots]`, which rows of the state the streams have, none twice; None for all of
                them in order. The others are neither read nor written.

        Returns:
            `[slots, 2 * chunk_tokens, mel_bins]`, of which the first `2 * lengths` are there.
        """
        config, chunking = self.config, self.config.chunking
        if tokens.shape[1] != config.chunk_tokens + config.look_ahead_tokens:
            raise ValueError(
                f"a step has {tokens.shape[1]} tokens a slot: it must have chunk_tokens + "
                f"look_ahead_tokens = {config.chunk_tokens + config.look_ahead_tokens}; put "
                "anything where fewer are there, and say so in lengths and ahead"
            )
        doubled = chunking.times(MEL_FRAMES_PER_TOKEN)
        before = state.tokens if slots is None else state.tokens[slots]
        start = before * MEL_FRAMES_PER_TOKEN
        place = place_chunk(doubled, start, lengths * MEL_FRAMES_PER_TOKEN, slots)
        embeddings = self._embed(tokens, lengths + ahead)
        encoded = self.encoder.step(
            embeddings, lengths, ahead, before, chunking, state.encoder, slots
        )
        conditions = self._join_conditions(encoded, speaker, prompt_mel, lengths)
        view = ring_view(doubled, place, conditions.dtype)
        rings = [
            Ring(place, state.estimator.tails[:, index], state.estimator.memory[:, index])
            for index in range(config.solver_steps)
        ]
        noise = self._noise_from(start, doubled.size)
        mel = self._solve(noise, conditions, view.bias, rings.__getitem__)
        for ring in rings:
            ring.close()
        state.tokens.index_add_(0, place.slots, lengths)
        return mel

    def _embed(self, tokens: Tensor, known: Tensor) -> Tensor:
        there = is_there(known, tokens.shape[1])
        embeddings: Tensor = self.token_embedding(tokens.where(there, 0))
        return embeddings * there[..., None]

    def _join_conditions(
        self, encoded: Tensor, speaker: Tensor, prompt_mel: Tensor | None, lengths: Tensor
    ) -> Tensor:
        mean = self.mean_projection(encoded)
        direction = F.normalize(speaker.to(mean), dim=-1)
        voice = self.speaker_projection(direction)[:, None].expand_as(mean)
        if prompt_mel is None:
            known = torch.zeros_like(mean)
        else:
            frames = mean.shape[1]
            known = F.pad(prompt_mel.to(mean), (0, 0, 0, frames - prompt_mel.shape[1]))
            there = is_there(lengths * MEL_FRAMES_PER_TOKEN, frames)[..., None]
            known = known.where(there, known.new_zeros(()))
        return torch.cat((mean, voice, known), dim=-1)

    def _noise_from(self, start: Tensor, frames: int) -> Tensor:
        rows = start[:, None] + torch.arange(frames, device=start.device)
        return self.noise[rows % _NOISE_FRAMES]

    def _solve(
        self, noisy: Tensor, conditions: Tensor, bias: Tensor, past: Callable[[int], Past]
    ) -> Tensor:
        """Euler's method over the cosine schedule.

        Args:
            noisy: `[batch, frames, mel_bins]`, noise.
            conditions: `[batch, frames, 3 * mel_bins]`.
            bias: of the view of these frames.
            past: what came before them, by step of the solver.
        """
        steps, guidance = self.config.solver_steps, self.config.guidance
        times = cosine_schedule(torch.arange(steps, device=noisy.device) / steps)
        embedded = self.estimator.embed_times(times)
        # One batch for both branches; without the conditions, all of them are zeros.
        both = torch.stack((conditions, torch.zeros_like(conditions)), dim=1)
        noisy = noisy.to(conditions)
        for index in range(steps):
            inputs = torch.cat((noisy[:, None].expand(-1, _BRANCHES, -1, -1), both), dim=-1)
            told = [time[index] for time in embedded]
            velocity = self.estimator(inputs, told, bias, past(index))
            guided = (1 + guidance) * velocity[:, 0] - guidance * velocity[:, 1]
            noisy = noisy + _cosine((index + 1) / steps, index / steps) * guided
        return noisy


def cosine_schedule(progress: Tensor) -> Tensor:
    """Time of the flow, 0 to 1, at a progress from 0 to 1: slow where the mel is mostly noise."""
    return 1 - torch.cos(progress * (0.5 * math.pi))


def _cosine(progress: float, before: float) -> float:
    return math.cos(before * 0.5 * math.pi) - math.cos(progress * 0.5 * math.pi)


def _noise_table(mel_bins: int) -> Tensor:
    # On the CPU whatever the default device: it must have its values where weights come later.
    generator = torch.Generator("cpu").manual_seed(_NOISE_SEED)
    shape = (mel_bins, _NOISE_FRAMES)
    return torch.randn(shape, generator=generator, device="cpu").T.contiguous()
