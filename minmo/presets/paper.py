"""What is asked of the built-in presets: the paper's Table 1, and what a laptop has room for."""

from __future__ import annotations

from dataclasses import dataclass

_TOLERANCE = 0.02


@dataclass(frozen=True)
class PaperFigure:
    """A parameter count as the paper prints it.

    Attributes:
        text: as printed.
        unit: what its last digit counts: 1e6 for `636 M`, 1e8 for `7.6 B`.
        units: how many of them.
        note: where our sizes come from, if not from what the paper names.
    """

    text: str
    unit: float
    units: int
    note: str = ""

    @property
    def parameters(self) -> float:
        """The count."""
        return self.units * self.unit

    def is_met_by(self, parameters: int) -> bool:
        """Whether a count is within 2 %, or equal once rounded as the paper rounds."""
        near = abs(parameters / self.parameters - 1) <= _TOLERANCE
        return near or round(parameters / self.unit) == self.units


_CHOSEN = "the paper publishes no widths: ours are chosen to fit its count"
TABLE_1 = {
    "voice_encoder": PaperFigure(
        "636 M", 1e6, 636, "Whisper-large-v3's shape, which SenseVoice-Large's encoder has"
    ),
    "input_projector": PaperFigure("170 M", 1e6, 170, _CHOSEN),
    "llm": PaperFigure("7.6 B", 1e8, 76, "the paper calls it ~7 B, after its name"),
    "duplex_predictor": PaperFigure("18 M", 1e6, 18, _CHOSEN),
    "output_projector": PaperFigure("6 M", 1e6, 6),
    "voice_token_lm": PaperFigure("370 M", 1e6, 370),
}
"""MinMo (arXiv 2501.06282), Table 1. Token2wav is not counted there."""
SUM = PaperFigure("~8 B", 1e9, 8, "the paper's sum takes the LLM for 7 B")
COMPARED_WITH_PAPER = "8b"

MINI_PARAMETERS = 30_000_000
"""All that `mini` trains itself: every module but the pretrained ones."""
PRETRAINED = ("voice_encoder", "recognizer", "llm")
MINI_PIECES = 16_000
"""Pieces that `mini`'s recognition head is counted with: about as many as training chooses."""
MINI_FILES_MB = {
    "listening": (("voice_encoder", "input_projector", "recognition_head"), 22),
    "speaking": (("output_projector", "voice_token_lm", "flow_matching", "vocoder"), 24),
    "duplex": (("duplex_predictor",), 2),
}
"""Files that people download, in float16: the modules in each, and the limit in megabytes."""
