"""Which voices there are: chosen by the settings, loaded, and ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minmo.engine.pico import PicoVoice
from minmo.engine.voice import Voice
from minmo.rpc.server import StartError
from minmo.settings import VoiceDecoderSettings
from minmo.weights.errors import WeightsError

if TYPE_CHECKING:
    import torch

    from minmo.engine.voice_decoder.engine import VoiceEngine
    from minmo.engine.voice_decoder.modules import VoiceModules
    from minmo.engine.voice_decoder.speaker import Speaker

_EMBEDDINGS = "model.embed_tokens.weight"


class Voices:
    """The voices of a process, the default first.

    Args:
        by_name: the voices.
        engine: what the neural ones share, if there are any.
    """

    def __init__(self, by_name: dict[str, Voice], engine: VoiceEngine | None = None) -> None:
        self.by_name = by_name
        self.engine = engine

    def warm_up(self) -> None:
        """Lets each say something once."""
        for voice in self.by_name.values():
            voice.warm_up()

    def close(self) -> None:
        """Ends what they run; also a step that is stuck."""
        if self.engine is not None:
            self.engine.stop()
        for voice in self.by_name.values():
            voice.close()


def load_voices(settings: VoiceDecoderSettings) -> Voices:
    """Loads what the settings choose.

    Raises:
        StartError: there is no such preset, its voice is not here, or the speaker's file cannot be
            used; says what to do.
    """
    if settings.voice == "pico":
        pico: Voice = PicoVoice(settings.threads)
        return Voices({pico.name: pico})
    return _neural(settings)


def _neural(settings: VoiceDecoderSettings) -> Voices:
    # PyTorch takes seconds and memory that Pico does without.
    import torch

    from minmo.engine.voice_decoder.engine import EngineOptions, VoiceEngine
    from minmo.engine.voice_decoder.neural_voice import NeuralVoice
    from minmo.presets import PresetError

    torch.set_num_threads(settings.threads)
    options = EngineOptions(
        slots=settings.slots,
        context=settings.context,
        lanes=settings.lanes or None,
        max_waiting=settings.max_waiting,
        max_wait_seconds=settings.slot_deadline_seconds,
    )
    try:
        speaker = _speaker(settings)
        engine = VoiceEngine(_modules(settings), options)
        voice: Voice = NeuralVoice(engine, speaker)
    except (PresetError, WeightsError, ValueError) as error:
        raise StartError(str(error)) from error
    engine.start()
    return Voices({voice.name: voice}, engine)


def _speaker(settings: VoiceDecoderSettings) -> Speaker:
    from minmo.engine.voice_decoder.speaker import SpeakerError, load_speaker, random_speaker
    from minmo.presets import load_preset

    if settings.speaker is not None:
        return load_speaker(settings.speaker)
    if settings.random_weights:
        return random_speaker(load_preset(settings.preset).flow_matching.speaker_width)
    raise SpeakerError("--voice neural needs --speaker, the file of who speaks")


def _modules(settings: VoiceDecoderSettings) -> VoiceModules:
    import torch

    from minmo.engine.voice_decoder.modules import VoiceModules
    from minmo.presets import load_preset
    from minmo.weights.modules import load_module, random_module

    preset = load_preset(settings.preset)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def load(name: str) -> torch.nn.Module:
        # What makes the waveform counts phases: it needs every digit.
        reads = name in ("voice_token_lm", "output_projector")
        dtype = torch.bfloat16 if reads and device.type == "cuda" else torch.float32
        if settings.random_weights:
            # As weights of a file are, so that they are read as fast.
            module = random_module(preset, name, device=device)
            return (module.half() if reads else module).to(dtype)
        return load_module(preset, name, dtype=dtype, device=device)

    def embeddings() -> torch.Tensor:
        if settings.random_weights:
            shape = (preset.llm.vocabulary_size, preset.llm.width)
            return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        return _llm_embeddings(settings.preset).to(device)

    return VoiceModules.load(load, embeddings)


def _llm_embeddings(preset: str) -> torch.Tensor:
    """The LLM's table of input embeddings, without the rest of it.

    Raises:
        WeightsError: the LLM is not here.
    """
    from safetensors import safe_open

    from minmo.weights.load import weights_folder
    from minmo.weights.reading import weights_files

    folder = weights_folder(preset, "llm")
    for path in weights_files(folder):
        with safe_open(path, framework="pt") as file:
            if _EMBEDDINGS in file.keys():  # noqa: SIM118 - no mapping
                table: torch.Tensor = file.get_tensor(_EMBEDDINGS)
                return table
    raise WeightsError(f"{folder} holds no tensor {_EMBEDDINGS!r}, which --voice neural reads")
