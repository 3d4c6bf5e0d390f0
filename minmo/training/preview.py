"""A sentence as a voice set says it, to hear how far training has come."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from minmo.audio.pcm import Samples
from minmo.engine.prompt import ChatFormat
from minmo.engine.spoken_text import spoken_text
from minmo.engine.token_spellings import token_spellings
from minmo.model.flow_matching import FlowMatching
from minmo.model.llm import Llm
from minmo.model.output_projector import OutputProjector
from minmo.model.vocoder import Vocoder
from minmo.model.voice_token_lm import VoiceTokenLm
from minmo.presets import load_preset
from minmo.training.errors import TrainingError
from minmo.training.free_speech import speak_freely
from minmo.training.teacher_forcing import TeacherForcing
from minmo.weights import home
from minmo.weights.load import load_state_dict, weights_folder
from minmo.weights.modules import load_module
from minmo.weights.speaker_file import load_speaker
from minmo.weights.speakers import DEFAULT, SUFFIX


@torch.inference_mode()
def say(preset_name: str, root: Path, text: str) -> tuple[Samples, int]:
    """Says a text as if the LLM had answered with it, all of it at once.

    Args:
        preset_name: the preset, by its name or the path of its TOML file.
        root: of a voice set.
        text: to be said.

    Returns:
        `[samples]`, and their rate in Hz. No samples where the voice finds nothing to say, as one
        that has hardly learned may.

    Raises:
        TrainingError: the LLM cannot be asked.
        WeightsError: a module is missing, or the set does not fit together.
        SpeakerError: so is the speaker.
    """
    preset = load_preset(preset_name)
    projector = cast(OutputProjector, _module(preset_name, root, "output_projector"))
    lm = cast(VoiceTokenLm, _module(preset_name, root, "voice_token_lm"))
    flow = cast(FlowMatching, _module(preset_name, root, "flow_matching"))
    vocoder = cast(Vocoder, _module(preset_name, root, "vocoder"))
    speaker = load_speaker(root / home.SPEAKERS / f"{DEFAULT}{SUFFIX}")
    folder = weights_folder(preset_name, "llm")
    try:
        chat = ChatFormat.from_folder(folder)
    except ValueError as error:
        raise TrainingError(f"the LLM of {preset_name} cannot be asked: {error}") from error
    llm = Llm.from_state_dict(preset.llm, load_state_dict(folder), torch.float32)
    laid_out = spoken_text(chat, text)
    read = TeacherForcing(llm, megabytes=0)(text, laid_out)
    spelled = None
    if projector.spelling is not None:
        spellings = token_spellings(chat, preset.llm.vocabulary_size)
        spelled = projector.spell(spellings[list(laid_out.said_tokens)])
    vectors = projector(read.said, read.said_states, spelled)
    tokens = speak_freely(lm, [vectors], [vectors[:0]])[0]
    rate_hz = vocoder.config.sample_rate_hz
    if not tokens:
        return torch.zeros(0).numpy(), rate_hz
    mel = flow(torch.tensor([tokens]), speaker.embedding[None])
    samples: Samples = vocoder(mel)[0].numpy()
    return samples, rate_hz


def _module(preset_name: str, root: Path, name: str) -> torch.nn.Module:
    return load_module(preset_name, name, folder=root / name, dtype=torch.float32).eval()
