"""What the encoder's process holds in memory once, for all of its streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer

from minmo.audio.vad import FRAME_SAMPLES, SileroVad
from minmo.engine.listening import (
    Embedder,
    EmbeddingSchedule,
    Recogniser,
    Schedule,
    StreamingEmbedder,
    StreamingSchedule,
    WindowEmbedder,
)
from minmo.engine.reading import (
    Read,
    read_with_moonshine,
    read_with_sense_voice,
    read_with_whisper,
)
from minmo.model.block_streaming import SAMPLE_RATE_HZ
from minmo.model.input_projector import InputProjector
from minmo.model.moonshine_encoder import MoonshineEncoder
from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.model.sense_voice_encoder import SenseVoiceEncoder
from minmo.model.voice_encoder import VoiceEncoder
from minmo.model.whisper_encoder import WhisperEncoder
from minmo.model.whisper_recognizer import WhisperPrompt, WhisperRecognizer
from minmo.presets import Preset, load_preset
from minmo.weights.errors import WeightsError
from minmo.weights.load import weights_folder
from minmo.weights.modules import load_module, random_module

ToText = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class ListeningModels:
    """The models of a preset.

    Attributes:
        vad: probability of speech.
        recogniser: words.
        encoder: the voice encoder, shared by the recogniser and the embeddings.
        projector: speech embeddings of the encoder's frames.
        schedule: when embeddings are made.
    """

    vad: SileroVad
    recogniser: Recogniser
    encoder: VoiceEncoder
    projector: InputProjector
    schedule: Schedule

    @classmethod
    def load(cls, preset_name: str) -> ListeningModels:
        """Loads a preset's models, onto the GPU if there is one.

        Raises:
            PresetError: there is no such preset.
            WeightsError: weights are missing, or damaged.
        """
        preset = load_preset(preset_name)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = cast("VoiceEncoder", load_module(preset, "voice_encoder", device=device))
        # Nobody has trained one yet: embeddings of a random projector carry speech's shape alone.
        projector = cast("InputProjector", random_module(preset, "input_projector", device=device))
        read, to_text = _reader(preset, encoder)
        schedule: Schedule
        if isinstance(encoder, MoonshineEncoder):
            schedule = EmbeddingSchedule(projector.config.stride * encoder.samples_per_frame)
        else:
            schedule = StreamingSchedule.of(encoder, projector)
        return cls(
            vad=SileroVad(weights_folder(preset, "vad") / "silero_vad.onnx"),
            recogniser=Recogniser(read, to_text, encoder.shortest_clip),
            encoder=encoder,
            projector=projector,
            schedule=schedule,
        )

    def embedder(self) -> Embedder:
        """A new segment's embedder."""
        if isinstance(self.schedule, EmbeddingSchedule):
            assert isinstance(self.encoder, MoonshineEncoder)
            return WindowEmbedder(self.encoder, self.projector, self.schedule)
        return StreamingEmbedder(self.encoder, self.projector)

    def warm_up(self) -> None:
        """Runs everything once, so that no caller pays for first calls."""
        noise = np.random.default_rng(0).normal(scale=0.1, size=3 * SAMPLE_RATE_HZ)
        samples = noise.astype(np.float32)
        self.vad.stream()(samples[:FRAME_SAMPLES])
        self.recogniser.transcribe(samples)
        embedder = self.embedder()
        embedder.process(samples)
        embedder.finish(embedder.samples)


def _reader(preset: Preset, encoder: VoiceEncoder) -> tuple[Read, ToText]:
    """What makes words of speech in a preset: tokens of samples, text of tokens."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(encoder, SenseVoiceEncoder):
        return read_with_sense_voice(encoder), _pieces(weights_folder(preset, "voice_encoder"))
    folder = weights_folder(preset, "recognizer")
    decoder = load_module(preset, "recognizer", device=device)
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
