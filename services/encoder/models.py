"""What the encoder's process holds in memory once, for all of its streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor, nn

from minmo.audio.vad import FRAME_SAMPLES, SileroVad
from minmo.engine.listening import EmbeddingSchedule, Recogniser, SegmentEmbedder
from minmo.model.input_projector import InputProjector, InputProjectorConfig, random_input_projector
from minmo.model.moonshine_recognizer import MoonshineRecognizer, MoonshineRecognizerConfig
from minmo.model.voice_encoder import (
    SAMPLE_RATE_HZ,
    SAMPLES_PER_FRAME,
    VoiceEncoder,
    VoiceEncoderConfig,
)
from minmo.weights.load import load_state_dict, read_config, weights_folder

_Module = TypeVar("_Module", bound=nn.Module)


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
    schedule: EmbeddingSchedule

    @classmethod
    def load(cls, preset: str, embedding_width: int) -> ListeningModels:
        """Loads a preset's models.

        Args:
            preset: whose models.
            embedding_width: width of the LLM's embeddings, which the projector maps to.

        Raises:
            WeightsError: weights are not prepared, or damaged.
        """
        folder = weights_folder(preset, "voice_encoder")
        config, state = read_config(folder), load_state_dict(folder)
        encoder = _filled(
            VoiceEncoder(VoiceEncoderConfig.from_checkpoint(config)), state, "encoder"
        )
        decoder = _filled(
            MoonshineRecognizer(MoonshineRecognizerConfig.from_checkpoint(config)), state, "decoder"
        )
        decoder.lay_out_for_steps()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

        def to_text(tokens: Sequence[int]) -> str:
            return str(tokenizer.decode(list(tokens)))

        projector = random_input_projector(
            InputProjectorConfig(
                input_width=encoder.config.width,
                output_width=embedding_width,
                mlp_width=encoder.config.mlp_width,
                heads=encoder.config.heads,
            )
        )
        return cls(
            vad=SileroVad(weights_folder(preset, "vad") / "silero_vad.onnx"),
            recogniser=Recogniser(encoder, decoder, to_text),
            encoder=encoder,
            projector=projector.eval().requires_grad_(False),
            schedule=EmbeddingSchedule(projector.config.stride * SAMPLES_PER_FRAME),
        )

    def embedder(self) -> SegmentEmbedder:
        """A new segment's embedder."""
        return SegmentEmbedder(self.encoder, self.projector, self.schedule)

    def warm_up(self) -> None:
        """Runs everything once, so that no caller pays for first calls."""
        noise = np.random.default_rng(0).normal(scale=0.1, size=3 * SAMPLE_RATE_HZ)
        samples = noise.astype(np.float32)
        self.vad.stream()(samples[:FRAME_SAMPLES])
        self.recogniser.transcribe(samples)
        embedder = self.embedder()
        embedder.process(samples)
        embedder.finish(embedder.samples)


def _filled(module: _Module, state: dict[str, Tensor], part: str) -> _Module:
    prefix = f"model.{part}."
    named = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    module.load_state_dict(named)
    return module.eval().requires_grad_(False)
