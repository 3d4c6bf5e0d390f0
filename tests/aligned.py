"""A MINMO_HOME in which `mini` has aligned weights: random ones, so what it hears is nonsense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer

from minmo.model.input_projector import InputProjector
from minmo.model.moonshine_encoder import MoonshineEncoder
from minmo.model.recognition_head import RecognitionHead
from minmo.model.spelling import spellings_of
from minmo.presets import load_preset
from minmo.weights import home
from minmo.weights.aligned import write_aligned
from minmo.weights.load import weights_folder
from minmo.weights.modules import load_module, random_module
from tests.listening import recordings, weights_or_skip

_PIECES = 500


def tokenizer() -> Tokenizer:
    """That of `mini`'s LLM."""
    return Tokenizer.from_file(str(weights_folder("mini", "llm") / "tokenizer.json"))


def aligned_home(folder: Path) -> Path:
    """Fills `folder` with links to the weights that are here, and with aligned ones; returns it."""
    weights_or_skip("voice_encoder")
    weights_or_skip("llm")
    weights = folder / "weights" / "mini"
    weights.mkdir(parents=True)
    for path in home.module_folder("mini", "").iterdir():
        if path.name != home.ALIGNED:
            (weights / path.name).symlink_to(path)
    for name in ("triton", "tools"):
        if (home.home() / name).exists():
            (folder / name).symlink_to(home.home() / name)
    encoder = cast("MoonshineEncoder", load_module("mini", "voice_encoder"))
    projector, head = _projector(), _head()
    _hear_nothing_in_silence(encoder, projector, head)
    modules: dict[str, torch.nn.Module] = {
        "voice_encoder": encoder,
        "input_projector": projector,
        "recognition_head": head,
    }
    write_aligned("mini", modules, folder=weights / home.ALIGNED, dtype=torch.float32)
    return folder


def _projector() -> InputProjector:
    projector = cast("InputProjector", random_module("mini", "input_projector"))
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(projector.conv.weight, generator=generator)
    return projector


def _head() -> RecognitionHead:
    """A head that hears different pieces in different sounds."""
    words = tokenizer()
    spelled = {
        number: text
        for number in range(1000, 4000)
        if (text := words.decode([number])) and text.isascii() and text.isprintable()
    }
    tokens = list(spelled)[:_PIECES]
    preset = replace(load_preset("mini"), recognition_pieces=len(tokens))
    head = cast("RecognitionHead", random_module(preset, "recognition_head"))
    head.pieces.copy_(torch.tensor(tokens))
    head.spellings.copy_(spellings_of([spelled[token] for token in tokens]))
    generator = torch.Generator().manual_seed(0)
    deviation = 0.3 * head.config.key_width
    torch.nn.init.normal_(head.query_proj.weight, std=deviation, generator=generator)
    return head


@torch.inference_mode()
def _hear_nothing_in_silence(
    encoder: MoonshineEncoder, projector: InputProjector, head: RecognitionHead
) -> None:
    """Makes the blank what silence behind speech sounds like."""
    speech = torch.from_numpy(recordings()[0].samples)
    clip = torch.cat((speech, torch.zeros(16_000)))
    heard = projector(encoder.forward_causal(clip[None]))[0]
    scores = head._scores(heard[None])[0, :, :-1].max(-1).values
    embeddings = head.norm(heard)
    silence, spoken = embeddings[-10:].mean(0), embeddings[: len(speech) // 768]
    # Halfway between how much silence and speech are like silence.
    like = embeddings @ silence
    low, high = like[: len(spoken)].median(), like[-10:].median()
    scale = 2 * scores.abs().max() / (high - low)
    head.blank_proj.weight.copy_((scale * silence)[None])
    head.blank_proj.bias.copy_((scores.mean() - scale * (low + high) / 2)[None])
