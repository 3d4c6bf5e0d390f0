"""The pretrained voice encoder as it was pretrained: frozen, each frame sees its whole clip.

Speech tokens are named from its frames, so that what training makes of the encoder for the stream
never moves them.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minmo.model.block_streaming import BlockStreamingEncoder
from minmo.presets import Preset
from minmo.weights.modules import load_module


class WholeClipEncoder(nn.Module):
    """Frames of whole clips.

    Args:
        encoder: the voice encoder.
    """

    def __init__(self, encoder: BlockStreamingEncoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()

    @classmethod
    def pretrained(cls, preset: str | Preset) -> WholeClipEncoder:
        """The one that a preset begins with.

        Raises:
            WeightsError: its weights are not here.
        """
        return cls(cast(BlockStreamingEncoder, load_module(preset, "voice_encoder")))

    def train(self, mode: bool = True) -> WholeClipEncoder:
        """Sets the mode of what is around it; the encoder never trains."""
        return super().train(False)

    def frames(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames of clips, each as if it were alone: an encoder may normalise over the clip.

        Args:
            samples: `[batch, samples]` at 16 kHz, anything behind each clip.
            lengths: `[batch]`, samples of each clip.

        Returns:
            `[batch, frames, width]`, float32, zeros behind each clip's, and `[batch]`, frames of
            each; none of a clip that is shorter than a frame needs.

        Raises:
            ValueError: a clip is longer than the encoder takes.
        """
        rows = zip(samples, lengths.tolist(), strict=True)
        kept = [self._frames(row[:length]) for row, length in rows]
        counts = torch.tensor([len(rows) for rows in kept], device=samples.device)
        return pad_sequence(kept, batch_first=True), counts

    @torch.no_grad()
    def _frames(self, clip: Tensor) -> Tensor:
        encoder = self.encoder
        if len(clip) < encoder.shortest_clip:
            return clip.new_zeros(0, encoder.width)
        # A token must not depend on the precision that a run computes in.
        with torch.autocast(clip.device.type, enabled=False):
            frames: Tensor = encoder(clip[None])[0]
        # Whisper pads every clip to 30 s.
        return frames[: encoder.frame_counts(len(clip))]
