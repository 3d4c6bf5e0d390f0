"""Loading what listens in the aligned path: the engine with its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer

from minmo.engine.ears import Ears, Reading
from minmo.engine.word_pieces import WordPieces
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
