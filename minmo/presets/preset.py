"""A preset: every size of the network, one table for each of the paper's boxes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from minmo.model.duplex_predictor import DuplexPredictorConfig
from minmo.model.flow_matching import FlowMatchingConfig
from minmo.model.input_projector import InputProjectorConfig
from minmo.model.llm import LlmConfig
from minmo.model.moonshine_encoder import MoonshineEncoderConfig
from minmo.model.moonshine_recognizer import MoonshineRecognizerConfig
from minmo.model.output_projector import OutputProjectorConfig
from minmo.model.recognition_head import RecognitionHeadConfig
from minmo.model.sense_voice_encoder import SenseVoiceEncoderConfig
from minmo.model.speaker_embedding import SpeakerEmbeddingConfig
from minmo.model.speech_tokenizer import SpeechTokenizerConfig
from minmo.model.vocoder import VocoderConfig
from minmo.model.voice_encoder import VoiceEncoderConfig
from minmo.model.voice_token_lm import VoiceTokenLmConfig
from minmo.model.whisper_encoder import WhisperEncoderConfig
from minmo.model.whisper_recognizer import WhisperRecognizerConfig
from minmo.presets.errors import PresetError, Problem
from minmo.presets.fit import misfits
from minmo.presets.table import read_table, similar

RecognizerConfig: TypeAlias = MoonshineRecognizerConfig | WhisperRecognizerConfig


@dataclass(frozen=True)
class Preset:
    """The sizes of every module.

    Attributes:
        name: names the folder of its weights.
        summary: what it is for, in a few words.
        recognizer: None where the voice encoder's family has no decoder that makes text.
        recognition_pieces: how many of the LLM's tokens the recognition head knows; None for all.
            No file says so: it is what a trained head has chosen.
    """

    name: str
    summary: str
    voice_encoder: VoiceEncoderConfig
    recognizer: RecognizerConfig | None
    input_projector: InputProjectorConfig
    llm: LlmConfig
    duplex_predictor: DuplexPredictorConfig
    output_projector: OutputProjectorConfig
    voice_token_lm: VoiceTokenLmConfig
    speech_tokenizer: SpeechTokenizerConfig
    speaker_embedding: SpeakerEmbeddingConfig
    flow_matching: FlowMatchingConfig
    vocoder: VocoderConfig
    recognition_pieces: int | None = None

    @property
    def recognition_head(self) -> RecognitionHeadConfig:
        """Sizes of the recognition head, which has no table: they are the LLM's."""
        vocabulary = self.llm.vocabulary_size
        pieces = vocabulary if self.recognition_pieces is None else self.recognition_pieces
        return RecognitionHeadConfig(vocabulary, self.llm.width, pieces)


_CONFIGS: dict[str, type[Any]] = {
    "input_projector": InputProjectorConfig,
    "duplex_predictor": DuplexPredictorConfig,
    "output_projector": OutputProjectorConfig,
    "voice_token_lm": VoiceTokenLmConfig,
    "speech_tokenizer": SpeechTokenizerConfig,
    "speaker_embedding": SpeakerEmbeddingConfig,
    "flow_matching": FlowMatchingConfig,
    "vocoder": VocoderConfig,
}
# Each family's class, and the fields of it that the family settles.
_FAMILIES: dict[str, dict[str, tuple[type[Any], dict[str, Any]]]] = {
    "voice_encoder": {
        "moonshine": (MoonshineEncoderConfig, {}),
        "whisper": (WhisperEncoderConfig, {}),
        "sense_voice": (SenseVoiceEncoderConfig, {}),
    },
    "recognizer": {
        "moonshine": (MoonshineRecognizerConfig, {}),
        "whisper": (WhisperRecognizerConfig, {}),
    },
    "llm": {
        "llama": (LlmConfig, {"qkv_bias": False}),
        "qwen2": (LlmConfig, {"qkv_bias": True}),
    },
}
_OPTIONAL = frozenset({"recognizer"})
MODULES = (
    "voice_encoder",
    "recognizer",
    "input_projector",
    "recognition_head",
    "llm",
    "duplex_predictor",
    "output_projector",
    "voice_token_lm",
    "speech_tokenizer",
    "speaker_embedding",
    "flow_matching",
    "vocoder",
)
"""Every module that a preset may have, in the order of the data."""
TABLES = tuple(module for module in MODULES if module != "recognition_head")
"""Those that a preset has a table for."""


def with_text_table(preset: Preset, vocabulary: int) -> Preset:
    """The preset, with a voice token LM that reads text tokens by a table of its own.

    CosyVoice 2's does, and so speaks in the cascade, without the LLM's hidden states.
    """
    lm = replace(preset.voice_token_lm, text_vocabulary=vocabulary)
    return replace(preset, voice_token_lm=lm)


def built_in_presets() -> tuple[str, ...]:
    """Names of the presets that come with MinMo."""
    found = (entry.name for entry in files("minmo.presets").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def load_preset(name_or_path: str | Path) -> Preset:
    """Reads a preset and checks it: keys, types, ranges, and that the modules fit one another.

    Args:
        name_or_path: a built-in name such as `mini`, or the path of a TOML file.

    Raises:
        PresetError: names each key that is wrong, what was expected and what was found.
    """
    if str(name_or_path) in built_in_presets():
        text = files("minmo.presets").joinpath(f"{name_or_path}.toml").read_text()
        return parse_preset(text, f"preset {name_or_path}")
    path = Path(name_or_path)
    if path.suffix != ".toml":
        names = built_in_presets()
        raise PresetError(
            f"there is no preset {str(name_or_path)!r}{similar(str(name_or_path), names)}; there "
            f"are {', '.join(names)}, or give the path of a TOML file"
        )
    try:
        preset = parse_preset(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise PresetError(f"cannot read the preset {path}: {reason}") from error
    # Weights are kept by the preset's name: another preset's must not be taken for a built-in's.
    if preset.name in built_in_presets() and preset != load_preset(preset.name):
        found = f"{preset.name!r}, the name of a built-in preset that is different"
        raise PresetError(f"cannot use {path}:", [Problem("name", "a name of its own", found)])
    return preset


def parse_preset(text: str, source: str) -> Preset:
    """Reads a preset from text.

    Args:
        text: TOML.
        source: where it comes from, for messages.

    Raises:
        PresetError: as `load_preset`.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PresetError(f"cannot use {source}: it is not TOML: {error}") from error
    problems: list[Problem] = []
    known = ("name", "summary", *TABLES)
    for key in tables:
        if key not in known:
            found = f"an unknown key{similar(key, known)}"
            problems.append(Problem(key, f"one of {', '.join(known)}", found))
    values: dict[str, Any] = {key: _text(tables, key, problems) for key in ("name", "summary")}
    if not problems and not _is_folder_name(values["name"]):
        allowed = "letters, digits, '-', '_' and '.', not first"
        problems.append(Problem("name", allowed, repr(values["name"])))
    configs = {module: _config(tables, module, problems) for module in TABLES}
    if not problems:
        problems.extend(misfits(configs))
    if problems:
        raise PresetError(f"cannot use {source}:", problems)
    return Preset(**values, **configs)


def _text(tables: Mapping[str, Any], key: str, problems: list[Problem]) -> str:
    value = tables.get(key)
    if not isinstance(value, str) or not value:
        problems.append(Problem(key, "a text", "no such key" if value is None else repr(value)))
    return str(value)


def _is_folder_name(name: str) -> bool:
    rest = name.replace("-", "").replace("_", "").replace(".", "")
    return rest.isascii() and rest.isalnum() and name[0] != "."


def _config(tables: Mapping[str, Any], module: str, problems: list[Problem]) -> Any:
    if module not in tables:
        if module not in _OPTIONAL:
            problems.append(Problem(module, "a table of this name", "none"))
        return None
    table = tables[module]
    if not isinstance(table, dict):
        problems.append(Problem(module, "a table", repr(table)))
        return None
    if module not in _FAMILIES:
        return read_table(_CONFIGS[module], table, module, problems, {})
    families = _FAMILIES[module]
    family = table.get("family")
    if family not in families:
        found = (
            "no such key" if family is None else repr(family) + similar(str(family), [*families])
        )
        problems.append(Problem(f"{module}.family", f"one of {', '.join(families)}", found))
        return None
    cls, implied = families[family]
    sizes = {key: value for key, value in table.items() if key != "family"}
    return read_table(cls, sizes, module, problems, implied)
