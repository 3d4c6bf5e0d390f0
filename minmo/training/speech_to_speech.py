"""The stage speech-to-speech: the voice learns to say it as it was asked (paper, section 3.4).

The user's words come first in what the voice reads, so an instruction how to speak reaches it in
them: the same text behind another query has other audio.
"""

from __future__ import annotations

from collections.abc import Sequence

from minmo.training.batches import Source
from minmo.training.config import TrainingConfig
from minmo.training.errors import TrainingError
from minmo.training.speaking import QUERY_FIELDS, SpeakingStage, SpeakingTrainee, asked
from minmo.training.stage import Weights


class SpeechToSpeechStage(SpeakingStage):
    """The stage. Clips without a query may be among its data: they keep plain reading alive."""

    name = "speech-to-speech"

    def build(
        self, config: TrainingConfig, weights: Weights, sources: Sequence[Source]
    ) -> SpeakingTrainee:
        """Builds the modules; see `Stage.build`.

        Raises:
            TrainingError: no clip says what the user has said before it.
        """
        if not any(asked(clip) for source in sources for clip in source.clips):
            raise TrainingError(
                f"no clip has {' or '.join(map(repr, QUERY_FIELDS))} in its custom fields: "
                f"{self.name} learns from answers to what somebody has said; make such clips with "
                "`minmo data instructed`, or train text-to-speech"
            )
        return super().build(config, weights, sources)
