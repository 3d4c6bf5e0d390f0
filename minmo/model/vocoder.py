"""The vocoder: mel spectrogram to waveform.

HiFTNet (Li et al. 2023) as CosyVoice 2 has it: a harmonic source follows the pitch, convolutions
at growing rates shape it after the spectrogram, and an inverse short-time Fourier transform makes
the waveform. With centred convolutions (`causal=False`) it computes what CosyVoice 2 computes, and
a stream comes out late by what they look ahead. With causal ones nothing is late.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.delayed_conv import (
    UNKNOWN_END,
    DelayedConv1d,
    DelayedDownsample,
    DelayedUpsample,
    DelayLine,
    Span,
    TailState,
)
from minmo.model.streaming import SlotState
from minmo.model.vocoder_block import BlockState, ResidualBlock
from minmo.model.vocoder_source import HarmonicSource, PitchPredictor, PitchState
from minmo.model.vocoder_stft import OverlapAdd, ShortSpectrum

_SLOPE = 0.1
_LAST_SLOPE = 0.01
_LOUDEST = 0.99
_KERNEL_SIZE = 7
_INITIAL_DEVIATION = 0.01


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the vocoder.

    Attributes:
        causal: whether no sample sees a mel frame after its own.
        mel_bins: channels of the spectrogram.
        sample_rate_hz: of the waveform.
        channels: before the first stage; each stage halves them.
        harmonics: multiples of the pitch in the source, besides the pitch itself.
        upsample_rates: of each stage.
        upsample_kernel_sizes: of each stage's transposed convolution.
        block_kernel_sizes: of the residual blocks that run side by side in every stage.
        block_dilations: of each of those blocks.
        source_kernel_sizes: of each stage's residual block on the source.
        source_dilations: of each of those blocks.
        stft_size: samples of the short spectra's windows.
        stft_hop: samples from one window to the next, a quarter of a window.
        pitch_channels: of the pitch predictor.
    """

    causal: bool
    mel_bins: int
    sample_rate_hz: int
    channels: int
    harmonics: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    block_kernel_sizes: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]
    source_kernel_sizes: tuple[int, ...]
    source_dilations: tuple[tuple[int, ...], ...]
    stft_size: int
    stft_hop: int
    pitch_channels: int

    def __post_init__(self) -> None:
        stages = len(self.upsample_rates)
        for name, wanted in (
            ("upsample_kernel_sizes", stages),
            ("source_kernel_sizes", stages),
            ("source_dilations", stages),
            ("block_dilations", len(self.block_kernel_sizes)),
        ):
            if (found := len(getattr(self, name))) != wanted:
                raise ValueError(f"{name} has {found} entries: it needs {wanted}")
        if self.channels % (1 << stages):
            raise ValueError(
                f"channels is {self.channels}, which {stages} stages cannot halve: take a multiple"
                f" of {1 << stages}"
            )
        if self.stft_size != 4 * self.stft_hop:
            raise ValueError(
                f"stft_size is {self.stft_size}: it has to be four times stft_hop,"
                f" {4 * self.stft_hop}"
            )

    @property
    def hop(self) -> int:
        """Samples of a mel frame."""
        return math.prod(self.upsample_rates) * self.stft_hop


@dataclass
class StageState(SlotState):
    """What a stage remembers.

    Attributes:
        up: of the transposed convolution.
        mirror: the last two frames before the mirrored one goes in; none where none does.
        down: of the convolution on the source.
        source_block: of the block behind it.
        hold: of the two signals that meet, before they do.
        blocks: of the residual blocks.
        block_holds: of what they give, before it is added up.
    """

    up: TailState
    mirror: TailState
    down: TailState
    source_block: BlockState
    hold: list[TailState]
    blocks: list[BlockState]
    block_holds: list[TailState]


class Stage(nn.Module):
    """Raises the rate, adds the source at that rate, and shapes both with residual blocks.

    Args:
        config: sizes of the vocoder.
        index: of the stage.
        delay: frames by which its input is late in a stream.
        source_delay: the same of the source's spectra.
    """

    def __init__(self, config: VocoderConfig, index: int, delay: int, source_delay: int) -> None:
        super().__init__()
        causal = config.causal
        rate, left = config.upsample_rates[index], config.upsample_rates[index + 1 :]
        width = config.channels >> (index + 1)
        self.up = DelayedUpsample(
            2 * width, width, config.upsample_kernel_sizes[index], rate, causal=causal, delay=delay
        )
        # A centred inverse transform needs one frame more than there are hops.
        self.mirrors = not causal and not left
        delay = self.up.output_delay + self.mirrors
        self.source_down = DelayedDownsample(
            config.stft_size + 2, width, math.prod(left), causal=causal, delay=source_delay
        )
        self.source_block = ResidualBlock(
            width,
            config.source_kernel_sizes[index],
            config.source_dilations[index],
            causal=causal,
            delay=self.source_down.output_delay,
        )
        source_delay = self.source_block.output_delay
        met = max(delay, source_delay)
        self._hold = [DelayLine(width, met - late) for late in (delay, source_delay)]
        blocks = [
            ResidualBlock(width, kernel_size, dilations, causal=causal, delay=met)
            for kernel_size, dilations in zip(
                config.block_kernel_sizes, config.block_dilations, strict=True
            )
        ]
        self.blocks = nn.ModuleList(blocks)
        self.output_delay = max(block.output_delay for block in blocks)
        self._block_holds = [
            DelayLine(width, self.output_delay - block.output_delay) for block in blocks
        ]
        self._width = width
        for module in (self.up, *self.blocks.modules(), *self.source_block.modules()):
            if isinstance(module, DelayedUpsample | DelayedConv1d):
                nn.init.normal_(module.weight, std=_INITIAL_DEVIATION)

    def forward(self, signal: Tensor, spectra: Tensor) -> Tensor:
        """Raises the rate of whole clips.

        Args:
            signal: `[batch, 2 * width, frames]`.
            spectra: `[batch, stft_size + 2, frames of the source]`.

        Returns:
            `[batch, width, frames * rate]`, in the last stage one more unless causal.
        """
        signal = self.up(F.leaky_relu(signal, _SLOPE))
        if self.mirrors:
            signal = F.pad(signal, (1, 0), mode="reflect")
        signal = signal + self.source_block(self.source_down(spectra))
        shaped = [block(signal) for block in self.blocks]
        return torch.stack(shaped).mean(0)

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> StageState:
        """The state of streams that start."""
        place = (device, dtype)
        return StageState(
            up=self.up.initial_state(slots, *place),
            mirror=TailState.zeros(slots, self._width, 2 * self.mirrors, *place),
            down=self.source_down.initial_state(slots, *place),
            source_block=self.source_block.initial_state(slots, *place),
            hold=[line.initial_state(slots, *place) for line in self._hold],
            blocks=[block.initial_state(slots, *place) for block in self._blocks()],
            block_holds=[line.initial_state(slots, *place) for line in self._block_holds],
        )

    def step(self, signal: Tensor, spectra: Tensor, span: Span, state: StageState) -> Tensor:
        """Raises the rate of the next frames; what comes out is late by `output_delay`.

        Args:
            signal: `[slots, 2 * width, frames]`; used up.
            spectra: `[slots, stft_size + 2, frames of the source]`.
            span: at this stage's rate.
            state: changed in place.

        Returns:
            `[slots, width, frames * rate]`.
        """
        signal = self.up.step(F.leaky_relu_(signal, _SLOPE), span, state.up)
        if self.mirrors:
            signal = self._mirror(signal, span, state.mirror)
        source = self.source_down.step(spectra, span, state.down)
        source = self.source_block.step(source, span, state.source_block)
        signal = self._hold[0].step(signal, span, state.hold[0])
        signal = self._hold[1].step(source, span, state.hold[1]) + signal
        total: Tensor | None = None
        for index, block in enumerate(self._blocks()):
            made = block.step(signal, span, state.blocks[index])
            made = self._block_holds[index].step(made, span, state.block_holds[index])
            total = made if total is None else total + made
        assert total is not None
        return total / len(self.blocks)

    def _mirror(self, signal: Tensor, span: Span, state: TailState) -> Tensor:
        """Puts a copy of frame 1 before frame 0: frame i is the one that was i - 1."""
        before = state.join(signal, span.lengths)[..., :-2]
        delay = self.up.output_delay + 1
        first = span.positions(delay) == 0
        return span.hide(torch.where(first[:, None], signal, before), delay)

    def _blocks(self) -> list[ResidualBlock]:
        return list(self.blocks)  # type: ignore[arg-type]


@dataclass
class VocoderState(SlotState):
    """What the vocoder remembers of the streams in its slots; it does not grow.

    Attributes:
        positions: `[slots]`, mel frames so far.
        turns: `[slots]`, the phase of the pitch in whole turns, float64, below 1.
        pitch: of the pitch predictor.
        spectrum: the source's last samples.
        conv_in: of the first convolution.
        stages: of each stage.
        conv_out: of the last convolution.
        overlap: spectra whose frames go on.
    """

    positions: Tensor
    turns: Tensor
    pitch: PitchState
    spectrum: TailState
    conv_in: TailState
    stages: list[StageState]
    conv_out: TailState
    overlap: TailState


class Vocoder(nn.Module):
    """Mel spectrogram to waveform, for whole clips and for streams."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        causal, rates = config.causal, config.upsample_rates
        self.pitch_predictor = PitchPredictor(config.mel_bins, config.pitch_channels, causal=causal)
        self.source = HarmonicSource(config.harmonics, config.sample_rate_hz, config.hop)
        self._spectrum = ShortSpectrum(
            config.stft_size,
            config.stft_hop,
            causal=causal,
            delay=self.pitch_predictor.delay * config.hop,
        )
        self.conv_in = DelayedConv1d(config.mel_bins, config.channels, _KERNEL_SIZE, causal=causal)
        delay = self.conv_in.output_delay
        self.stages = nn.ModuleList()
        for index in range(len(rates)):
            stage = Stage(config, index, delay, self._spectrum.output_delay)
            self.stages.append(stage)
            delay = stage.output_delay
        self.conv_out = DelayedConv1d(
            config.channels >> len(rates),
            config.stft_size + 2,
            _KERNEL_SIZE,
            causal=causal,
            delay=delay,
        )
        nn.init.normal_(self.conv_out.weight, std=_INITIAL_DEVIATION)
        self._overlap = OverlapAdd(
            config.stft_size, config.stft_hop, causal=causal, delay=self.conv_out.output_delay
        )

    @property
    def delay_samples(self) -> int:
        """Samples by which a stream's waveform is late: 0 if causal."""
        return self._overlap.output_delay

    @property
    def look_ahead_frames(self) -> int:
        """Mel frames behind the first that the first samples wait for: 0 if causal."""
        return self.delay_samples // self.config.hop

    def forward(
        self, mel: Tensor, pitch: Tensor | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """Waveforms of whole clips.

        Args:
            mel: `[batch, frames, mel_bins]`.
            pitch: `[batch, frames]`, Hz; predicted if None.
            starts: `[batch]`, samples of noise to pass over; training draws them.

        Returns:
            `[batch, frames * hop]`, -0.99 to 0.99.
        """
        return self.filter(mel, self.source(self.pitch(mel) if pitch is None else pitch, starts))

    def pitch(self, mel: Tensor) -> Tensor:
        """`[batch, frames, mel_bins]` to the pitch, `[batch, frames]`, in Hz."""
        hertz: Tensor = self.pitch_predictor(mel.transpose(1, 2))
        return hertz

    def filter(self, mel: Tensor, source: Tensor) -> Tensor:
        """Shapes a source after the spectrogram.

        Args:
            mel: `[batch, frames, mel_bins]`.
            source: `[batch, frames * hop]`, of `HarmonicSource`.

        Returns:
            `[batch, frames * hop]`, -0.99 to 0.99.
        """
        spectra = self._spectrum(source)
        signal = self.conv_in(mel.transpose(1, 2))
        for stage in self.stages:
            signal = stage(signal, spectra)
        signal = self.conv_out(F.leaky_relu(signal, _LAST_SLOPE))
        return self._overlap(signal).clamp(-_LOUDEST, _LOUDEST)

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> VocoderState:
        """The state of streams that start."""
        place = (device, dtype)
        return VocoderState(
            positions=torch.zeros(slots, device=device, dtype=torch.int64),
            turns=torch.zeros(slots, device=device, dtype=torch.float64),
            pitch=self.pitch_predictor.initial_state(slots, *place),
            spectrum=self._spectrum.initial_state(slots, *place),
            conv_in=self.conv_in.initial_state(slots, *place),
            stages=[stage.initial_state(slots, *place) for stage in self._stages()],
            conv_out=self.conv_out.initial_state(slots, *place),
            overlap=self._overlap.initial_state(slots, *place),
        )

    def step(
        self, mel: Tensor, lengths: Tensor, last: Tensor | None, state: VocoderState
    ) -> tuple[Tensor, Tensor]:
        """The next samples.

        Args:
            mel: `[slots, frames, mel_bins]`.
            lengths: `[slots]`, how many of the frames are there.
            last: `[slots]`, true where a stream ends with these frames: all that is late comes
                out too. None spares the work for it where no stream ends. A slot whose stream has
                ended is to be reset.
            state: changed in place.

        Returns:
            `[slots, samples]` and how many of them are there, `[slots]`.
        """
        hop, started = self.config.hop, state.positions.clone()
        ends = torch.full_like(started, UNKNOWN_END)
        if last is not None:
            ends = torch.where(last, started + lengths, ends)
            more = -(-self.delay_samples // hop)
            mel, lengths = F.pad(mel, (0, 0, 0, more)), lengths + more * last
        state.positions += lengths
        samples = self._samples(mel, Span(started, lengths, ends, mel.shape[1]), state)
        if self.delay_samples == 0:
            return samples, lengths * hop
        before, after = (
            (frames * hop - self.delay_samples).clamp(min=0).minimum(ends * hop)
            for frames in (started, state.positions)
        )
        # At a stream's start the first samples are not there yet.
        first = before - (started * hop - self.delay_samples)
        places = torch.arange(samples.shape[1], device=samples.device) + first[:, None]
        return samples.gather(1, places.clamp(max=samples.shape[1] - 1)), after - before

    def _samples(self, mel: Tensor, span: Span, state: VocoderState) -> Tensor:
        signal = mel.transpose(1, 2)
        if self.delay_samples:
            signal = signal.masked_fill((span.positions(0) >= span.ends[:, None])[:, None], 0)
        pitch = self.pitch_predictor.step(signal, span, state.pitch)
        spectra = self._spectra(pitch, span, state)
        signal = self.conv_in.step(signal, span, state.conv_in)
        rates = accumulate(self.config.upsample_rates, int.__mul__)
        for stage, rate, part in zip(self._stages(), rates, state.stages, strict=True):
            at_rate = span.at_rate(rate, int(stage.mirrors))
            signal = stage.step(signal, spectra, at_rate, part)
        at_rate = self._source_span(span)
        signal = self.conv_out.step(F.leaky_relu_(signal, _LAST_SLOPE), at_rate, state.conv_out)
        samples = self._overlap.step(signal, at_rate, state.overlap)
        return samples.clamp_(-_LOUDEST, _LOUDEST)

    def _spectra(self, pitch: Tensor, span: Span, state: VocoderState) -> Tensor:
        starts = (span.starts - self.pitch_predictor.delay) * self.config.hop
        source, turns = self.source.generate(pitch, starts, state.turns)
        turns = torch.cat((state.turns[:, None], turns), dim=1)
        state.turns.copy_(turns.gather(1, span.lengths[:, None])[:, 0] % 1)
        return self._spectrum.step(source, self._source_span(span), state.spectrum)

    def _source_span(self, span: Span) -> Span:
        return span.at_rate(self.config.hop // self.config.stft_hop, int(not self.config.causal))

    def _stages(self) -> list[Stage]:
        return list(self.stages)  # type: ignore[arg-type]
