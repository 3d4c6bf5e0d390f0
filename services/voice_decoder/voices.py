"""Which voices there are: chosen by the settings, loaded, and ended."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog

from minmo.engine.pico import PicoVoice
from minmo.engine.threads import apart
from minmo.engine.voice import Voice
from minmo.rpc.process import StartError
from minmo.settings import VoiceDecoderSettings
from minmo.weights import home
from minmo.weights.errors import WeightsError
from minmo.weights.load import weights_folder
from minmo.weights.needs import missing_for_voice, voice_reads_text
from minmo.weights.parts import preset_name
from minmo.weights.speakers import DEFAULT, speaker_files

if TYPE_CHECKING:
    import torch

    from minmo.engine.prompt import ChatFormat
    from minmo.engine.voice_decoder.engine import VoiceEngine
    from minmo.engine.voice_decoder.modules import VoiceModules
    from minmo.model.speaker import Speaker

log = structlog.get_logger(__name__)

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
        """Lets them say something once; those that share an engine need one of them for it."""
        for voice in self.by_name.values():
            voice.warm_up()
            if self.engine is not None:
                break

    def close(self) -> None:
        """Ends what they run; also a step that is stuck."""
        if self.engine is not None:
            self.engine.stop()
        for voice in self.by_name.values():
            voice.close()


def load_voices(settings: VoiceDecoderSettings) -> Voices:
    """Loads what the settings choose.

    Raises:
        StartError: there is no such preset, or the settings do not fit it.
        WeightsError: the preset's voice is not here, or cannot be used; says what to do.
    """
    if _is_neural(settings):
        return _neural(settings)
    pico: Voice = PicoVoice(settings.threads)
    return Voices({pico.name: pico})


def _is_neural(settings: VoiceDecoderSettings) -> bool:
    if settings.voice != "auto":
        return settings.voice == "neural"
    if settings.speaker is not None or settings.random_weights:
        return True
    missing = missing_for_voice(settings.preset)
    reason = f"the network lacks {', '.join(missing)}" if missing else ""
    if not missing and not settings.hidden_states and not voice_reads_text(settings.preset):
        reason = "the network reads hidden states, which nobody sends"
    if reason:
        log.info("Pico speaks", preset=settings.preset, reason=reason)
    return not reason


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
        speakers = _speakers(settings)
        engine = VoiceEngine(apart(partial(_modules, settings)), options)
        spelling = None if engine.modules.semantic else _spelling(settings.preset)
        voices: dict[str, Voice] = {
            speaker.name: NeuralVoice(engine, speaker, spelling=spelling) for speaker in speakers
        }
    except (PresetError, ValueError) as error:
        raise StartError(str(error)) from error
    engine.start()
    return Voices(voices, engine)


def _speakers(settings: VoiceDecoderSettings) -> list[Speaker]:
    """Who can be spoken as, the default first."""
    from minmo.model.speaker import SpeakerError, random_speaker
    from minmo.presets import load_preset
    from minmo.weights.speaker_file import load_speaker

    if settings.speaker is not None:
        return [load_speaker(settings.speaker)]
    if settings.random_weights:
        return [random_speaker(load_preset(settings.preset).flow_matching.speaker_width)]
    name = preset_name(settings.preset)
    paths = speaker_files(name)
    if not paths:
        raise SpeakerError(
            f"the network needs to know who speaks: there is no file in "
            f"{home.speakers_folder(name)}; run `minmo weights import spk2info.pt --preset "
            f"{settings.preset}`, or give a speaker's file with --speaker"
        )
    found: dict[str, Speaker] = {}
    for path in paths:
        speaker = load_speaker(path)
        if speaker.name in found:
            raise SpeakerError(
                f"{path} is a second speaker called {speaker.name!r}; delete one of them"
            )
        found[speaker.name] = speaker
    # By the names that callers use: a file may have been given another.
    return sorted(found.values(), key=lambda speaker: (speaker.name != DEFAULT, speaker.name))


def _spelling(preset: str) -> ChatFormat | None:
    """The tokenizer that text without token ids is written with, where the LLM's is here."""
    from minmo.engine.prompt import ChatFormat

    try:
        return ChatFormat.from_folder(weights_folder(preset, "llm"))
    except WeightsError:
        return None


def _modules(settings: VoiceDecoderSettings) -> VoiceModules:
    import torch

    from minmo.engine.prompt import ChatFormat
    from minmo.engine.token_spellings import token_spellings
    from minmo.engine.voice_decoder.modules import VoiceModules
    from minmo.model.spelling import LONGEST_SPELLING
    from minmo.presets import load_preset
    from minmo.weights.modules import load_module, random_module
    from minmo.weights.spoken import check_spoken

    preset = load_preset(settings.preset)
    if not settings.random_weights:
        check_spoken(preset)
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

    def spellings() -> torch.Tensor:
        vocabulary = preset.llm.vocabulary_size
        if settings.random_weights:
            return torch.zeros(vocabulary, LONGEST_SPELLING, dtype=torch.uint8)
        chat = ChatFormat.from_folder(weights_folder(settings.preset, "llm"))
        return token_spellings(chat, vocabulary)

    return VoiceModules.load(load, embeddings, spellings)


def _llm_embeddings(preset: str) -> torch.Tensor:
    """The LLM's table of input embeddings, without the rest of it.

    Raises:
        WeightsError: the LLM is not here.
    """
    from safetensors import safe_open

    from minmo.weights.reading import weights_files

    folder = weights_folder(preset, "llm")
    for path in weights_files(folder):
        with safe_open(path, framework="pt") as file:
            if _EMBEDDINGS in file.keys():  # noqa: SIM118 - no mapping
                table: torch.Tensor = file.get_tensor(_EMBEDDINGS)
                return table
    raise WeightsError(f"{folder} holds no tensor {_EMBEDDINGS!r}, which the voice reads")
