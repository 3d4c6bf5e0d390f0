"""What flow matching is trained with: conditional flow matching (arXiv 2210.02747)."""

from __future__ import annotations

import torch
from torch import Tensor

from minmo.model.chunking import Beginning, Chunking, clip_view
from minmo.model.flow_encoder import MEL_FRAMES_PER_TOKEN
from minmo.model.flow_matching import FlowMatching, FlowMatchingConfig, cosine_schedule
from minmo.model.streaming import is_there

# What is left of the noise at the flow's end.
_LEAST_NOISE = 1e-6
# Of every second example so much of the mel, at most, is told.
_MAX_PROMPT = 0.3


def flow_matching_loss(
    model: FlowMatching,
    tokens: Tensor,
    mel: Tensor,
    speaker: Tensor,
    lengths: Tensor,
    generator: torch.Generator,
    chunking: Chunking | None = None,
    bins: Tensor | None = None,
) -> Tensor:
    """How far the estimator's velocity is from the straight way between noise and mel.

    At a random time of each example; half of the examples are told a beginning of their mel, as
    a voice's prompt is, and some are told nothing, for guidance.

    Args:
        model: to train.
        tokens: `[batch, tokens]`, speech tokens.
        mel: `[batch, 2 * tokens, mel_bins]`, log mel frames.
        speaker: `[batch, speaker_width]`.
        lengths: `[batch]`, how many tokens are there.
        generator: of everything random.
        chunking: how the tokens are cut, such as `random_chunking` draws it; by default as in a
            stream.
        bins: `[batch, mel_bins]`, true for those that are known: a recording of a narrow band says
            nothing of those above it. None for all.

    Returns:
        The mean square error over the frames that are there, a scalar.
    """
    chunking = chunking or model.config.chunking
    batch, frames = mel.shape[:2]
    frame_lengths = lengths * MEL_FRAMES_PER_TOKEN
    there = is_there(frame_lengths, frames)[..., None]
    mel = mel.where(there, mel.new_zeros(()))

    def uniform(*shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=generator, device=generator.device)
        return drawn.to(mel.device, mel.dtype)

    told = (uniform(batch) < 0.5) * uniform(batch) * _MAX_PROMPT * frame_lengths
    prompt = mel * is_there(told.long(), frames)[..., None]
    conditions = model.conditions(tokens, speaker, prompt, lengths, chunking)
    guided = uniform(batch, 1, 1) >= model.config.guidance_dropout
    conditions = conditions * guided

    times = cosine_schedule(uniform(batch))
    noise = torch.randn(mel.shape, generator=generator, device=generator.device).to(mel)
    left = 1 - (1 - _LEAST_NOISE) * times[:, None, None]
    noisy = left * noise + times[:, None, None] * mel
    way = mel - (1 - _LEAST_NOISE) * noise
    view = clip_view(chunking.times(MEL_FRAMES_PER_TOKEN), frame_lengths, frames, mel.dtype)
    velocity = model.estimator(
        torch.cat((noisy, conditions), dim=-1)[:, None],
        [time[:, None] for time in model.estimator.embed_times(times)],
        view.bias,
        Beginning(),
    )[:, 0]
    counted = there.expand_as(mel) if bins is None else there & bins[:, None]
    error = (velocity - way).square() * counted
    loss: Tensor = error.sum() / counted.sum()
    return loss


def random_chunking(
    config: FlowMatchingConfig, tokens: int, generator: torch.Generator
) -> Chunking:
    """How to cut a batch in training: as in a stream, not at all, or at random.

    A stream's own way comes half of the time; the others keep the model from leaning on it.

    Args:
        config: of the model.
        tokens: of the longest clip.
        generator: of the choice.
    """

    def below(limit: int) -> int:
        drawn = torch.randint(limit, (), generator=generator, device=generator.device)
        return int(drawn.item())

    kind = below(4)
    if kind < 2:
        return config.chunking
    if kind == 2:
        return Chunking.whole(tokens)
    size = config.look_ahead_tokens + 1 + below(2 * config.chunk_tokens)
    left = config.left_chunks * config.chunk_tokens // size + 1
    return Chunking(size, config.look_ahead_tokens, left)
