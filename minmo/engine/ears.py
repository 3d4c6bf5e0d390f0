"""What listens in the aligned path, loaded with its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer

from minmo.engine.finding_pieces import MergedPieces, PieceFinder, ReadPieces
from minmo.engine.listening import AlignedEmbedder
from minmo.engine.word_pieces import WordPieces
from minmo.model.block_streaming import SAMPLE_RATE_HZ
from minmo.model.input_projector import InputProjector
from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.model.recognition_head import RecognitionHead
from minmo.model.voice_encoder import VoiceEncoder
from minmo.presets import Preset
from minmo.weights.aligned import ALIGNED_MODULES, READER, reads_along
from minmo.weights.errors import WeightsError
from minmo.weights.load import load_state_dict, weights_folder
from minmo.weights.modules import load_module
from minmo.weights.naming import select

_TABLE = "model.embed_tokens.weight"


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


def load_ears(
    preset: Preset, folder_of: Callable[[str], Path], device: str | torch.device = "cpu"
) -> Ears:
    """Loads an aligned set, and the recogniser if the set was trained with it.

    Args:
        preset: the preset.
        folder_of: gives the folder of each of `ALIGNED_MODULES`.
        device: to load to.

    Raises:
        WeightsError: some are missing or damaged, or do not belong together.
    """
    folders = {name: folder_of(name) for name in ALIGNED_MODULES}
    encoder, projector, head = (
        load_module(preset, name, folder=folder, device=device) for name, folder in folders.items()
    )
    reading = None
    if reads_along(folders["voice_encoder"]):
        reading = load_reading(preset, device)
    return Ears(
        cast("VoiceEncoder", encoder),
        cast("InputProjector", projector),
        cast("RecognitionHead", head),
        reading,
    )


def load_reading(preset: Preset, device: str | torch.device = "cpu") -> Reading:
    """Loads the recogniser that reads along, and what makes pieces of its words.

    Raises:
        WeightsError: some are missing or damaged, or the recogniser is not Moonshine's.
    """
    recogniser = load_module(preset, READER, device=device)
    if not isinstance(recogniser, MoonshineRecognizer):
        raise WeightsError(
            f"preset {preset.name!r} has {type(recogniser).__name__} as its recognizer: only "
            "Moonshine's reads along"
        )
    recogniser.lay_out_for_steps()
    folders = [weights_folder(preset, name) for name in (READER, "llm")]
    heard_by, read_by = (Tokenizer.from_file(str(each / "tokenizer.json")) for each in folders)
    if heard_by.get_vocab_size() != recogniser.config.vocabulary_size:
        raise WeightsError(
            f"{folders[0] / 'tokenizer.json'} has {heard_by.get_vocab_size()} tokens, the "
            f"recognizer {recogniser.config.vocabulary_size}; import the checkpoint again"
        )
    # Mapped from the file: processes share it, and only rows that are heard are ever read.
    table = select(preset, "llm", load_state_dict(folders[1]))[_TABLE]
    return Reading(recogniser, WordPieces(heard_by, read_by, table))
