"""What listens in the aligned path."""

from __future__ import annotations

from dataclasses import dataclass

from minmo.engine.finding_pieces import MergedPieces, PieceFinder, ReadPieces
from minmo.engine.listening import AlignedEmbedder
from minmo.engine.word_pieces import WordPieces
from minmo.model.block_streaming import SAMPLE_RATE_HZ
from minmo.model.input_projector import InputProjector
from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.model.recognition_head import RecognitionHead
from minmo.model.voice_encoder import VoiceEncoder


@dataclass(frozen=True)
class Reading:
    """The recogniser that reads along.

    Attributes:
        recogniser: the pretrained one, that the voice encoder was adapted for.
        words: make pieces of its tokens.
    """

    recogniser: MoonshineRecognizer
    words: WordPieces


@dataclass(frozen=True)
class Ears:
    """The modules of an aligned set, and what finds pieces in what they make.

    Attributes:
        encoder: the voice encoder, adapted to the mask of its stream.
        projector: behind it.
        head: behind the projector.
        reading: None where the head's pieces are merged.
    """

    encoder: VoiceEncoder
    projector: InputProjector
    head: RecognitionHead
    reading: Reading | None = None

    def finder(self) -> PieceFinder:
        """A new segment's finder of pieces."""
        if self.reading is None:
            return MergedPieces(self.head)
        seconds = self.encoder.samples_per_frame / SAMPLE_RATE_HZ
        recogniser, words = self.reading.recogniser, self.reading.words
        stride = self.projector.config.stride
        return ReadPieces(recogniser, words, self.head, seconds, stride)

    def embedder(self, *, probes: bool = False) -> AlignedEmbedder:
        """A new segment's embedder, and whether it gives probes."""
        return AlignedEmbedder(
            self.encoder, self.projector, self.head, self.finder(), probes=probes
        )
