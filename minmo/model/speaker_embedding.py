"""Speaker embedding: a few seconds of speech to a vector that says whose voice it is.

CAM++ (Wang et al., "CAM++: A Fast and Efficient Network for Speaker Verification Using
Context-Aware Masking", 2023), as CosyVoice 2 uses it: a two-dimensional convolutional front end,
densely connected time-delay layers whose outputs are masked by what their context says, and
statistics over time. With the published sizes, tensors have the published names.

Clips of a batch may differ in length: whatever mixes frames sees zeros, or nothing, behind a
clip's own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.streaming import is_there

_HEAD_CHANNELS = 32
_HEAD_BLOCKS = 2
# The front end halves the mel bins this often.
_HEAD_HALVINGS = 3
_CONTEXT_SEGMENT = 100
# A standard deviation over time takes two frames, after the rate was halved.
_LEAST_FRAMES = 3
# Under the square root of a variance: channels that stand still keep a finite gradient.
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class SpeakerEmbeddingConfig:
    """Sizes of CAM++.

    Attributes:
        mel_bins: of the filter bank, a multiple of 8.
        width: channels of the embedding.
        growth: channels that each dense layer adds.
        initial_channels: channels that the first dense block starts with.
        bottleneck_scale: inner channels of a dense layer, in multiples of `growth`.
        blocks: dense layers of each block.
    """

    mel_bins: int
    width: int
    growth: int
    initial_channels: int
    bottleneck_scale: int
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.mel_bins % 2**_HEAD_HALVINGS:
            raise ValueError(
                f"mel_bins is {self.mel_bins}: it must be a multiple of {2**_HEAD_HALVINGS}, "
                "which the front end halves three times"
            )


class SpeakerEmbedding(nn.Module):
    """CAM++ from filter banks to the embedding."""

    def __init__(self, config: SpeakerEmbeddingConfig) -> None:
        super().__init__()
        self.config = config
        self.head = _FrontEnd()
        channels = _HEAD_CHANNELS * config.mel_bins // 2**_HEAD_HALVINGS
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["tdnn"] = _Unit(nn.Conv1d(channels, config.initial_channels, 5, 2, 2, bias=False))
        channels = config.initial_channels
        inner = config.bottleneck_scale * config.growth
        for number, layers in enumerate(config.blocks, 1):
            dilation = 1 if number == 1 else 2
            parts[f"block{number}"] = _DenseBlock(channels, inner, config.growth, layers, dilation)
            channels += layers * config.growth
            parts[f"transit{number}"] = _Transit(channels, channels // 2)
            channels //= 2
        parts["out_nonlinear"] = _nonlinear(channels)
        parts["dense"] = _Dense(2 * channels, config.width)
        self.xvector = nn.Sequential(parts)

    def forward(self, fbank: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings of whole clips.

        Args:
            fbank: `[batch, frames, mel_bins]`, log mel energies of 16 kHz audio, frames of 25 ms
                every 10 ms (Kaldi's); each bin's mean over the clip is taken off here.
            lengths: `[batch]`, how many frames of each clip are there; all if None. In training
                all clips have the same: batch normalisation would count what is behind them.

        Returns:
            `[batch, width]`, not of unit length.

        Raises:
            ValueError: a clip is too short, or clips differ in length in training.
        """
        batch, frames, _ = fbank.shape
        if lengths is None:
            lengths = torch.full((batch,), frames, device=fbank.device)
        self._check(lengths, frames)
        there = is_there(lengths, frames)
        fbank = fbank.masked_fill(~there[:, :, None], 0)
        means = fbank.sum(1, keepdim=True) / lengths[:, None, None]
        normalised = (fbank - means).masked_fill(~there[:, :, None], 0)
        hidden = self.head(normalised.transpose(1, 2), there[:, None])
        # The first layer takes every second frame.
        lengths = (lengths + 1) // 2
        there = is_there(lengths, (frames + 1) // 2)[:, None]
        *layers, dense = self.xvector
        for layer in layers:
            hidden = layer(hidden, there) if isinstance(layer, _DenseBlock) else layer(hidden)
        embedding: Tensor = dense(_statistics(hidden, there))
        return embedding

    def _check(self, lengths: Tensor, frames: int) -> None:
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < _LEAST_FRAMES:
            raise ValueError(
                f"a clip has {shortest} frames of 10 ms: a voice cannot be told from fewer than "
                f"{_LEAST_FRAMES}, and is told well from some hundreds"
            )
        if longest > frames:
            raise ValueError(f"a length is {longest}: there are {frames} frames")
        if self.training and shortest != frames:
            raise ValueError(
                f"clips have {shortest} to {longest} of {frames} frames: cut all clips of a batch "
                "to one length in training"
            )


class AngularMarginLoss(nn.Module):
    """Additive angular margin softmax (Deng et al., "ArcFace", 2019).

    The angle to the right speaker has to be smaller than that to any other by a margin.

    Args:
        width: channels of an embedding.
        speakers: speakers of the training data.
        margin: of the angle, in radians.
        scale: of the cosines, as logits.
    """

    def __init__(self, width: int, speakers: int, margin: float = 0.2, scale: float = 32.0) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.weight = nn.Parameter(torch.empty(speakers, width))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embeddings: Tensor, speakers: Tensor) -> Tensor:
        """A scalar.

        Args:
            embeddings: `[batch, width]`.
            speakers: `[batch]`, int64, whose voice each is.
        """
        cosines = F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))
        right = cosines.gather(1, speakers[:, None])
        sines = (1 - right**2).clamp(min=1e-7).sqrt()
        with_margin = right * math.cos(self.margin) - sines * math.sin(self.margin)
        # Beyond pi the cosine would rise again; from there on a straight line falls.
        straight = right - math.sin(self.margin) * self.margin
        wanted = torch.where(right > -math.cos(self.margin), with_margin, straight)
        logits = cosines.scatter(1, speakers[:, None], wanted)
        return F.cross_entropy(self.scale * logits, speakers)


class _FrontEnd(nn.Module):
    """Residual convolutions over mel bins and time; only the bins get fewer."""

    def __init__(self) -> None:
        super().__init__()
        width = _HEAD_CHANNELS
        self.conv1 = _conv2d(1, width, 3, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.ModuleList(_ResidualBlock(2 if i == 0 else 1) for i in range(_HEAD_BLOCKS))
        self.layer2 = nn.ModuleList(_ResidualBlock(2 if i == 0 else 1) for i in range(_HEAD_BLOCKS))
        self.conv2 = _conv2d(width, width, 3, 2)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, fbank: Tensor, there: Tensor) -> Tensor:
        """`[batch, mel_bins, frames]` to `[batch, channels * bins, frames]`, channels outside."""
        there = there[:, None]
        hidden = F.relu(self.bn1(self.conv1(fbank[:, None]))) * there
        for block in (*self.layer1, *self.layer2):
            hidden = block(hidden, there)
        hidden = F.relu(self.bn2(self.conv2(hidden))) * there
        return hidden.flatten(1, 2)


class _ResidualBlock(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        width = _HEAD_CHANNELS
        self.conv1 = _conv2d(width, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv2d(width, width, 3, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.extend((_conv2d(width, width, 1, stride), nn.BatchNorm2d(width)))

    def forward(self, hidden: Tensor, there: Tensor) -> Tensor:
        """`[batch, channels, bins, frames]`, zeros where nothing is `there`, as it came."""
        residual = F.relu(self.bn1(self.conv1(hidden))) * there
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + self.shortcut(hidden)) * there


class _Unit(nn.Module):
    """A convolution, then batch normalisation and what is positive of it."""

    def __init__(self, linear: nn.Conv1d) -> None:
        super().__init__()
        self.linear = linear
        self.nonlinear = _nonlinear(linear.out_channels)

    def forward(self, hidden: Tensor) -> Tensor:
        unit: Tensor = self.nonlinear(self.linear(hidden))
        return unit


class _DenseBlock(nn.Module):
    """Each layer reads what came in and what all layers before it made."""

    def __init__(self, channels: int, inner: int, growth: int, layers: int, dilation: int) -> None:
        super().__init__()
        for number in range(layers):
            layer = _DenseLayer(channels + number * growth, inner, growth, dilation)
            self.add_module(f"tdnnd{number + 1}", layer)

    def forward(self, hidden: Tensor, there: Tensor) -> Tensor:
        """`[batch, channels, frames]` to `[batch, channels + layers * growth, frames]`."""
        for layer in self.children():
            hidden = torch.cat((hidden, layer(hidden, there)), dim=1)
        return hidden


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, inner: int, growth: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = _nonlinear(channels)
        self.linear1 = nn.Conv1d(channels, inner, 1, bias=False)
        self.nonlinear2 = _nonlinear(inner)
        self.cam_layer = _ContextAwareMasking(inner, growth, dilation)

    def forward(self, hidden: Tensor, there: Tensor) -> Tensor:
        bottleneck = self.nonlinear2(self.linear1(self.nonlinear1(hidden)))
        made: Tensor = self.cam_layer(bottleneck, there)
        return made


class _ContextAwareMasking(nn.Module):
    """A convolution over time, times a mask in (0, 1) that the context settles."""

    def __init__(self, inner: int, growth: int, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(
            inner, growth, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.linear1 = nn.Conv1d(inner, inner // 2, 1)
        self.linear2 = nn.Conv1d(inner // 2, growth, 1)

    def forward(self, hidden: Tensor, there: Tensor) -> Tensor:
        """`[batch, inner, frames]` to `[batch, growth, frames]`."""
        hidden = hidden * there
        context = hidden.sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
        context = context + _segment_means(hidden, there)
        mask = self.linear2(F.relu(self.linear1(context))).sigmoid()
        # One value a segment until here.
        mask = mask.repeat_interleave(_CONTEXT_SEGMENT, dim=-1)[..., : hidden.shape[-1]]
        masked: Tensor = self.linear_local(hidden) * mask
        return masked


class _Transit(nn.Module):
    """Joins what a block made in fewer channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.nonlinear = _nonlinear(channels)
        self.linear = nn.Conv1d(channels, out_channels, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        joined: Tensor = self.linear(self.nonlinear(hidden))
        return joined


class _Dense(nn.Module):
    """`[batch, channels]` to the embedding, `[batch, width]`."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, width, 1, bias=False)
        self.nonlinear = nn.Sequential()
        self.nonlinear.add_module("batchnorm", nn.BatchNorm1d(width, affine=False))

    def forward(self, statistics: Tensor) -> Tensor:
        embedding: Tensor = self.nonlinear(self.linear(statistics[:, :, None])[:, :, 0])
        return embedding


def _segment_means(hidden: Tensor, there: Tensor) -> Tensor:
    """Means over each segment's own frames, `[batch, inner, segments]`; zeros where it has none."""
    missing = -hidden.shape[-1] % _CONTEXT_SEGMENT
    sums = F.pad(hidden, (0, missing)).view(*hidden.shape[:2], -1, _CONTEXT_SEGMENT).sum(-1)
    counts = F.pad(there, (0, missing)).view(*there.shape[:2], -1, _CONTEXT_SEGMENT).sum(-1)
    return sums / counts.clamp(min=1)


def _statistics(hidden: Tensor, there: Tensor) -> Tensor:
    """Mean and deviation over time, `[batch, channels, frames]` to `[batch, 2 * channels]`."""
    count = there.sum(-1)
    mean = (hidden * there).sum(-1) / count
    squares = (((hidden - mean[:, :, None]) * there) ** 2).sum(-1)
    deviation = (squares / (count - 1)).clamp(min=_LEAST_VARIANCE).sqrt()
    return torch.cat((mean, deviation), dim=-1)


def _nonlinear(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU()))


def _conv2d(channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Conv2d:
    """A convolution over bins, in steps of `stride`, and over time."""
    return nn.Conv2d(channels, out_channels, kernel_size, (stride, 1), kernel_size // 2, bias=False)
