"""The voices that are evaluated, with their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from minmo.engine.pico import PicoVoice
from minmo.engine.prompt import ChatFormat
from minmo.engine.token_spellings import token_spellings
from minmo.engine.voice_decoder.engine import EngineOptions, VoiceEngine
from minmo.engine.voice_decoder.modules import VoiceModules
from minmo.engine.voice_decoder.neural_voice import NeuralVoice
from minmo.evaluation.answering import Answerer
from minmo.evaluation.errors import EvaluationError
from minmo.evaluation.modules import Source
from minmo.evaluation.speaking import NeuralSpeaker, PicoSpeaker
from minmo.model.llm import Llm
from minmo.model.speaker import Speaker, SpeakerError, random_speaker
from minmo.presets import load_preset
from minmo.weights.modules import load_module, random_module
from minmo.weights.parts import preset_name
from minmo.weights.speaker_file import load_speaker
from minmo.weights.speakers import speaker_files
from minmo.weights.spoken import SPOKEN_MODULES, check_spoken

_OPTIONS = EngineOptions(slots=1)


@dataclass(frozen=True)
class VoiceSource:
    """Where the voice of a preset comes from.

    Attributes:
        source: of the preset's modules.
        speaker: name of the one who speaks; empty is the default one.
        random_weights: whether the network is untrained, to see what it costs.
    """

    source: Source
    speaker: str = ""
    random_weights: bool = False

    @contextmanager
    def speaking(
        self, llm: Llm, chat: ChatFormat, answerer: Answerer | None = None
    ) -> Iterator[NeuralSpeaker]:
        """Loads the voice; ends its engine afterwards.

        Args:
            llm: whose hidden states it reads.
            chat: its format.
            answerer: the same LLM where it answers.

        Raises:
            EvaluationError: the modules cannot speak as this speaker.
            WeightsError: a module is missing, or was trained against another one.
        """
        try:
            speaker = self._speaker()
            engine = VoiceEngine(self._modules(llm, chat), _OPTIONS)
            voice = NeuralVoice(engine, speaker)
        except SpeakerError as error:
            raise EvaluationError(str(error)) from error
        engine.start()
        try:
            voice.warm_up()
            read = llm if voice.reads_hidden_states else None
            yield NeuralSpeaker(voice, chat, self._made_with(speaker), read, answerer)
        finally:
            engine.stop()

    def _made_with(self, speaker: Speaker) -> dict[str, Any]:
        hashes = {"llm": self.source.sha256("llm")}
        if self.random_weights:
            return hashes | {"weights": "random"}
        hashes |= {module: self.source.sha256(module) for module in SPOKEN_MODULES}
        return hashes | {"speaker": sha256(speaker.embedding.numpy().tobytes()).hexdigest()}

    def _modules(self, llm: Llm, chat: ChatFormat) -> VoiceModules:
        preset = load_preset(self.source.preset)
        if not self.random_weights:
            check_spoken(preset)

        def load(name: str) -> nn.Module:
            if not self.random_weights:
                return load_module(preset, name)
            module = random_module(preset, name)
            # As weights of a file are, so that they are read as fast.
            reads = name in ("voice_token_lm", "output_projector")
            return (module.half() if reads else module).to(torch.float32)

        def embeddings() -> Tensor:
            return llm.embed(torch.arange(llm.config.vocabulary_size)).float()

        def spellings() -> Tensor:
            return token_spellings(chat, llm.config.vocabulary_size)

        with torch.inference_mode():
            return VoiceModules.load(load, embeddings, spellings)

    def _speaker(self) -> Speaker:
        if self.random_weights:
            return random_speaker(load_preset(self.source.preset).flow_matching.speaker_width)
        known = [load_speaker(path) for path in speaker_files(preset_name(self.source.preset))]
        found = [one for one in known if self.speaker in ("", one.name)]
        if not found:
            names = ", ".join(one.name for one in known) or "none"
            raise EvaluationError(
                f"preset {self.source.preset!r} has no speaker {self.speaker or 'at all'}; there "
                f"are: {names}. Train a voice, or measure --random-weights"
            )
        return found[0]


@contextmanager
def pico() -> Iterator[PicoSpeaker]:
    """Starts SVOX Pico; ends it afterwards."""
    voice = PicoVoice()
    try:
        voice.warm_up()
        yield PicoSpeaker(voice)
    finally:
        voice.close()
