"""What the encoder's process holds in memory once, for all of its streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
import structlog
import torch
from tokenizers import Tokenizer

from minmo.audio.vad import FRAME_SAMPLES, SileroVad
from minmo.engine.listening import Embedder, Recogniser, Schedule
from minmo.engine.reading import (
    Read,
    read_with_moonshine,
    read_with_sense_voice,
    read_with_whisper,
)
from minmo.loading import load_ears
from minmo.model.block_streaming import SAMPLE_RATE_HZ
from minmo.model.input_projector import InputProjector
from minmo.model.moonshine_encoder import MoonshineEncoder
from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.model.sense_voice_encoder import SenseVoiceEncoder
from minmo.model.voice_encoder import VoiceEncoder
from minmo.model.whisper_encoder import WhisperEncoder
from minmo.model.whisper_recognizer import WhisperPrompt, WhisperRecognizer
from minmo.presets import Preset, SizesOnly, build_module, load_preset
from minmo.weights.aligned import aligned_folder, check_aligned, reads_along
from minmo.weights.errors import AbsentWeightsError, WeightsError
from minmo.weights.load import weights_folder
from minmo.weights.modules import load_module

log = structlog.get_logger()

Preload = Literal["all", "words", "embeddings"]
ToText = Callable[[Sequence[int]], str]


class Aligned:
    """What makes speech embeddings: weights that were trained together for a preset's LLM.

    Raises:
        WeightsError: some are damaged, or do not belong together.
    """

    def __init__(self, preset: Preset) -> None:
        self._ears = load_ears(preset, partial(aligned_folder, preset), _device())
        self.to_text = _tokenizer(weights_folder(preset, "llm"))
        """What pieces of the LLM's vocabulary spell."""

    def embedder(self, *, probes: bool) -> Embedder:
        """A new segment's embedder, and whether it gives probes."""
        return self._ears.embedder(probes=probes)


class ListeningModels:
    """The models of a preset, on the GPU if there is one.

    Words and embeddings have voice encoders of their own, as they were published and as they were
    adapted. A process that is asked for one of the two alone loads no more than that; what was not
    loaded at the start comes with the first job that needs it, on the thread of the jobs.

    Args:
        preset: the preset.

    Raises:
        WeightsError: weights are missing, or damaged.
    """

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self.vad = SileroVad(weights_folder(preset, "vad") / "silero_vad.onnx")
        """Probability of speech."""
        self.schedule: Schedule | None = None
        """When embeddings are made; None where there are no aligned weights for them."""
        self.width = 0
        """Channels of an embedding; 0 where there are none."""
        self.why_none = ""
        """Why there are none."""
        try:
            check_aligned(preset)
        except WeightsError as reason:
            self.why_none = str(reason)
            if not isinstance(reason, AbsentWeightsError):
                log.warning("no speech embeddings", reason=str(reason))
        else:
            self.width = preset.input_projector.output_width
            self.schedule = _schedule(preset)

    @classmethod
    def load(cls, preset_name: str, preload: Preload = "all") -> ListeningModels:
        """Loads a preset's models.

        Args:
            preset_name: a built-in name, or the path of a TOML file.
            preload: what to load now.

        Raises:
            PresetError: there is no such preset.
            WeightsError: weights are missing, or damaged, or embeddings are what is to be loaded
                and the preset has none.
        """
        models = cls(load_preset(preset_name))
        if preload == "embeddings" and models.schedule is None:
            raise WeightsError(models.why_none)
        if preload != "embeddings":
            _ = models.recogniser
        if preload != "words" and models.schedule is not None:
            _ = models.aligned
        return models

    @cached_property
    def recogniser(self) -> Recogniser:
        """Words, with the encoder and the decoder as they were published."""
        device = _device()
        encoder = cast("VoiceEncoder", load_module(self._preset, "voice_encoder", device=device))
        read, to_text = _reader(self._preset, encoder)
        return Recogniser(read, to_text, encoder.shortest_clip)

    @cached_property
    def aligned(self) -> Aligned:
        """Speech embeddings."""
        return Aligned(self._preset)

    def embedder(self, *, probes: bool = False) -> Embedder:
        """A new segment's embedder, and whether it gives probes."""
        return self.aligned.embedder(probes=probes)

    def text_of(self, pieces: Sequence[int]) -> str:
        """What pieces of the LLM's vocabulary spell."""
        return self.aligned.to_text(pieces)

    def warm_up(self) -> None:
        """Runs once what is loaded, so that no caller pays for first calls."""
        noise = np.random.default_rng(0).normal(scale=0.1, size=3 * SAMPLE_RATE_HZ)
        samples = noise.astype(np.float32)
        self.vad.stream()(samples[:FRAME_SAMPLES])
        loaded = vars(self)
        if "recogniser" in loaded:
            self.recogniser.transcribe(samples)
        if "aligned" in loaded:
            embedder = self.embedder(probes=True)
            embedder.process(samples)
            embedder.finish(embedder.samples)


def _schedule(preset: Preset) -> Schedule:
    """The schedule that a preset's sizes and the kind of its set make, without its weights."""
    with SizesOnly():
        encoder = cast("VoiceEncoder", build_module(preset, "voice_encoder"))
        projector = cast("InputProjector", build_module(preset, "input_projector"))
    reading = reads_along(aligned_folder(preset, "voice_encoder"))
    return Schedule.of(encoder, projector, reading=reading)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _reader(preset: Preset, encoder: VoiceEncoder) -> tuple[Read, ToText]:
    """What makes words of speech in a preset: tokens of samples, text of tokens."""
    if isinstance(encoder, SenseVoiceEncoder):
        return read_with_sense_voice(encoder), _pieces(weights_folder(preset, "voice_encoder"))
    folder = weights_folder(preset, "recognizer")
    decoder = load_module(preset, "recognizer", device=_device())
    if isinstance(encoder, WhisperEncoder) and isinstance(decoder, WhisperRecognizer):
        config = _read_json(folder / "generation_config.json")
        prompt = WhisperPrompt.from_generation_config(cast("dict[str, object]", config))
        return read_with_whisper(encoder, decoder, prompt), _tokenizer(folder)
    if isinstance(encoder, MoonshineEncoder) and isinstance(decoder, MoonshineRecognizer):
        decoder.lay_out_for_steps()
        return read_with_moonshine(encoder, decoder), _tokenizer(folder)
    raise WeightsError(
        f"preset {preset.name!r} pairs the voice encoder {type(encoder).__name__} with the "
        f"recognizer {type(decoder).__name__}; give both the same family"
    )


def _tokenizer(folder: Path) -> ToText:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda tokens: str(tokenizer.decode(list(tokens)))


def _pieces(folder: Path) -> ToText:
    """SenseVoice's vocabulary is a list of pieces; a bar begins a word."""
    pieces = cast("list[str]", _read_json(folder / "tokens.json"))
    return lambda tokens: "".join(pieces[token] for token in tokens).replace("\u2581", " ")


def _read_json(path: Path) -> object:
    try:
        found: object = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}; import the checkpoint again") from error
    return found
