"""Convolutions that see the future: whole clips as PyTorch pads them, streams late but the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.delayed_conv import (
    UNKNOWN_END,
    DelayedConv1d,
    DelayedDownsample,
    DelayedUpsample,
    Span,
)

UP, DOWN = 5, 3


def streamed(layer: Any, clip: Tensor, rate: int, pieces: list[int], more: int) -> Tensor:
    """A stream in the second of two slots, `[channels, outputs]`; rubbish is in the first.

    Args:
        layer: one with `step`.
        clip: `[channels, frames]`.
        rate: outputs of an input, or the inverse below 0.
        pieces: frames of each step; the last is the stream's last.
        more: frames to lead it on past its end.
    """
    state, made, start = layer.initial_state(2), [], 0
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        chunk = 9 * torch.randn(2, len(clip), piece + 3)
        chunk[1, :, :piece] = clip[:, start : start + piece]
        length = piece
        if last:
            chunk = F.pad(chunk, (0, more))
            chunk[1, :, piece:] = 0
            length += more
        end = clip.shape[1] if last else UNKNOWN_END
        numbers = [torch.tensor([0, number]) for number in (start, length, end)]
        frames = chunk.shape[2]
        if rate < 0:
            frames += -frames % -rate
            chunk = F.pad(chunk, (0, frames - chunk.shape[2]))
            span = Span(*(number // -rate for number in numbers), frames // -rate)
            length //= -rate
        else:
            span = Span(*numbers, frames).at_rate(rate)
            length *= rate
        made.append(layer.step(chunk, span, state)[1, :, :length])
        start += piece
    return torch.cat(made, dim=1)


@torch.inference_mode()
@pytest.mark.parametrize("pieces", [[12], [3, 6, 3], [6, 0, 3, 3]])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (lambda causal: DelayedConv1d(2, 3, 5, dilation=2, causal=causal), 1),
        (lambda causal: DelayedUpsample(2, 3, 11, UP, causal=causal), UP),
        (lambda causal: DelayedDownsample(2, 3, DOWN, causal=causal), -DOWN),
        (lambda causal: DelayedDownsample(2, 3, 1, causal=causal), 1),
    ],
)
def test_a_stream_is_the_whole_clip_later(
    make: Callable[[bool], Any], rate: int, causal: bool, pieces: list[int]
) -> None:
    torch.manual_seed(0)
    layer, clip = make(causal), torch.randn(1, 2, 12)
    whole = layer(clip)[0]
    made = streamed(layer, clip[0], rate, pieces, more=6)
    delay = layer.output_delay
    assert causal == (delay == 0) or rate == 1
    assert not made[:, :delay].any()
    torch.testing.assert_close(made[:, delay : delay + whole.shape[1]], whole)


def test_whole_clips_are_padded_as_pytorch_pads_them() -> None:
    clip = torch.randn(2, 2, 15)
    layers: list[tuple[nn.Module, nn.Module]] = [
        (
            DelayedConv1d(2, 3, 5, dilation=2, causal=False),
            nn.Conv1d(2, 3, 5, dilation=2, padding=4),
        ),
        (
            DelayedUpsample(2, 3, 11, UP, causal=False),
            nn.ConvTranspose1d(2, 3, 11, stride=UP, padding=3),
        ),
        (
            DelayedDownsample(2, 3, DOWN, causal=False),
            nn.Conv1d(2, 3, 2 * DOWN, stride=DOWN, padding=DOWN // 2),
        ),
    ]
    for ours, theirs in layers:
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(clip), theirs(clip))


def test_causal_layers_see_nothing_later() -> None:
    clip = torch.randn(1, 2, 12)
    other = clip.clone()
    other[..., 6:] = 7
    for layer, seen in (
        (DelayedConv1d(2, 3, 4, causal=True), 6),
        (DelayedUpsample(2, 3, 9, 2, causal=True), 12),
        (DelayedDownsample(2, 3, 2, causal=True), 3),
    ):
        made, expected = layer(other), layer(clip)
        torch.testing.assert_close(made[..., :seen], expected[..., :seen])
        assert not torch.allclose(made[..., seen], expected[..., seen])
