"""The network of a preset, module by module."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from minmo.model.duplex_predictor import DuplexPredictor
from minmo.model.flow_matching import FlowMatching
from minmo.model.input_projector import InputProjector
from minmo.model.llm import Llm
from minmo.model.moonshine_recognizer import MoonshineRecognizer, MoonshineRecognizerConfig
from minmo.model.output_projector import OutputProjector
from minmo.model.recognition_head import RecognitionHead
from minmo.model.speaker_embedding import SpeakerEmbedding
from minmo.model.speech_tokenizer import SpeechTokenizer
from minmo.model.spelling import LONGEST_SPELLING
from minmo.model.vocoder import Vocoder
from minmo.model.voice_encoder import build_voice_encoder
from minmo.model.voice_token_lm import VoiceTokenLm
from minmo.model.whisper_recognizer import WhisperRecognizer, WhisperRecognizerConfig
from minmo.presets.errors import PresetError, Problem
from minmo.presets.preset import MODULES, Preset
from minmo.presets.table import similar

_TABLE_DEVIATION = 0.02
# Four letters number half a million pieces; as in `spellings_of`, "a" is the 66th character.
_PLACES, _LETTERS, _FIRST_LETTER = 4, 26, 66


def modules_of(preset: Preset) -> tuple[str, ...]:
    """Names of the modules that a preset has, in the order of the data."""
    return tuple(name for name in MODULES if getattr(preset, name) is not None)


def check_module(preset: Preset, name: str) -> None:
    """Refuses the name of a module that a preset has not.

    Raises:
        PresetError: with the names that it has.
    """
    known = modules_of(preset)
    if name not in known:
        hint = similar(name, known)
        raise PresetError(
            f"preset {preset.name!r} has no module {name!r}{hint}; it has: {', '.join(known)}"
        )


def build_module(preset: Preset, name: str) -> nn.Module:
    """Builds a module with random weights, on the default device (`meta` for none at all).

    Args:
        preset: its sizes.
        name: of the module, which is that of its table.

    Raises:
        PresetError: the preset has no such module, or sizes that it cannot be built with.
    """
    check_module(preset, name)
    try:
        return _BUILDERS[name](preset)
    except ValueError as error:
        problem = Problem(name, "sizes that fit one another", f"these: {error}")
        raise PresetError(f"cannot build {name} of preset {preset.name!r}:", [problem]) from error


def _recognizer(preset: Preset) -> nn.Module:
    match preset.recognizer:
        case MoonshineRecognizerConfig() as config:
            return MoonshineRecognizer(config)
        case WhisperRecognizerConfig() as config:
            return WhisperRecognizer(config)
        case _:
            raise AssertionError("checked before")


def _recognition_head(preset: Preset) -> nn.Module:
    config = preset.recognition_head
    # Stand in for rows of the LLM's table, which are no part of the module's weights.
    rows = nn.init.normal_(torch.empty(config.pieces, config.width), std=_TABLE_DEVIATION)
    return RecognitionHead(config, rows, spellings=_numbered(config.pieces))


def _numbered(pieces: int) -> Tensor:
    """Spellings `[pieces, LONGEST_SPELLING]` of pieces that are not known: each has its own."""
    spellings = torch.zeros(pieces, LONGEST_SPELLING, dtype=torch.uint8)
    numbers = torch.arange(pieces)
    for place in range(_PLACES):
        spellings[:, place] = numbers % _LETTERS + _FIRST_LETTER
        numbers = numbers // _LETTERS
    return spellings


_BUILDERS: dict[str, Callable[[Preset], nn.Module]] = {
    "voice_encoder": lambda preset: cast("nn.Module", build_voice_encoder(preset.voice_encoder)),
    "recognizer": _recognizer,
    "input_projector": lambda preset: InputProjector(preset.input_projector),
    "recognition_head": _recognition_head,
    "llm": lambda preset: Llm(preset.llm),
    "duplex_predictor": lambda preset: DuplexPredictor(preset.duplex_predictor),
    "output_projector": lambda preset: OutputProjector(preset.output_projector),
    "voice_token_lm": lambda preset: VoiceTokenLm(preset.voice_token_lm),
    "speech_tokenizer": lambda preset: SpeechTokenizer(preset.speech_tokenizer),
    "speaker_embedding": lambda preset: SpeakerEmbedding(preset.speaker_embedding),
    "flow_matching": lambda preset: FlowMatching(preset.flow_matching),
    "vocoder": lambda preset: Vocoder(preset.vocoder),
}
