"""The mel that a trained flow makes of clips, which is what the vocoder reads in the product."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from minmo.model.flow_matching import FlowMatching
from minmo.presets import build_module, load_preset
from minmo.training.batches import Batch
from minmo.training.checkpoint import trained_weights
from minmo.training.clip_memory import ClipMemory
from minmo.training.config import TrainingConfig
from minmo.training.errors import TrainingError
from minmo.training.filling import fill
from minmo.training.mel_data import open_tokens, whole_tokens
from minmo.training.shar import Clip
from minmo.training.speaker_table import SpeakerTable
from minmo.training.speech_tokens import SpeechTokens


class FlowMels(nn.Module):
    """A frozen flow that makes the mel of clips from their speech tokens, as in a stream.

    Args:
        flow: flow matching.
        speakers: that it has learned.
        tokens: of the clips.
        megabytes: of mel to keep, 29 for an hour; more is made each time.
    """

    def __init__(
        self, flow: FlowMatching, speakers: SpeakerTable, tokens: SpeechTokens, megabytes: float
    ) -> None:
        super().__init__()
        self.flow, self.speakers = flow, speakers
        self._tokens, self._memory = tokens, ClipMemory(megabytes)

    @classmethod
    def of_run(cls, config: TrainingConfig, run: Path, megabytes: float) -> FlowMels:
        """The flow of a run of token2wav.

        Args:
            config: of the vocoder's run.
            run: folder of the flow's.
            megabytes: of mel to keep.

        Raises:
            TrainingError: the folder holds no such run, or the clips have no speech tokens.
        """
        weights = trained_weights(run)
        if not {"flow_matching", "speakers"} <= weights.keys():
            raise TrainingError(
                f"options.flow={run} is a run of {', '.join(weights)}: it is the --out folder of "
                "a run of token2wav"
            )
        flow = cast(FlowMatching, build_module(load_preset(config.preset), "flow_matching"))
        fill(flow, "flow_matching", weights["flow_matching"])
        speakers = SpeakerTable.from_state(weights["speakers"], flow.config.speaker_width)
        return cls(flow, speakers, open_tokens(config), megabytes)

    @torch.no_grad()
    def forward(self, batch: Batch) -> list[Tensor]:
        """The mel of each clip, `[2 * tokens, mel_bins]`, float32."""
        device = batch.samples.device
        with torch.autocast(device.type, enabled=False):
            rows = zip(batch.clips, whole_tokens(batch, self._tokens), strict=True)
            made = [self._memory(clip.id, partial(self._make, clip, row)) for clip, row in rows]
        return [mel.to(device).float() for mel in made]

    def _make(self, clip: Clip, tokens: Tensor) -> Tensor:
        speaker = self.speakers([clip.speaker])
        mel: Tensor = self.flow(tokens[None].to(speaker.device), speaker)[0]
        return mel.half().cpu()
