"""Small random modules that listen and answer, and clips for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from minmo.audio.pcm import Samples
from minmo.engine.ears import Ears
from minmo.engine.prompt import TEXT_END, TURN_END, TURN_START, ChatFormat
from minmo.evaluation.answering import Answerer
from minmo.evaluation.modules import Listener, written_by
from minmo.model.input_projector import InputProjector, InputProjectorConfig
from minmo.model.llm import Llm
from minmo.model.moonshine_encoder import MoonshineEncoder, MoonshineEncoderConfig
from minmo.model.recognition_head import RecognitionHead, RecognitionHeadConfig
from tests.unit.tiny_llm import CONFIG, random_state

INSTRUCTIONS = "be kind"


def chat() -> ChatFormat:
    """Bytes and the marks of ChatML: 259 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    marks = (TEXT_END, TURN_START, TURN_END)
    made.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return ChatFormat(made)


def llm() -> Llm:
    config = replace(CONFIG, vocabulary_size=259, max_context=512)
    return Llm.from_state_dict(config, random_state(config))


def answerer(slots: int = 3, max_tokens: int = 6) -> Answerer:
    return Answerer(llm(), chat(), INSTRUCTIONS, slots, max_tokens)


def listener(model: Llm) -> Listener:
    torch.manual_seed(3)
    encoder = MoonshineEncoder(
        MoonshineEncoderConfig(
            width=16, mlp_width=32, layers=2, heads=2, rotary_dim=6, rotary_theta=10_000.0
        )
    ).eval()
    width = model.config.width
    projector = InputProjector(InputProjectorConfig(16, 16, 32, 2, width)).eval()
    pieces = torch.tensor(chat().text(" abcdefgh.?"))
    head = RecognitionHead(
        RecognitionHeadConfig(model.config.vocabulary_size, width, len(pieces)),
        model.embed(pieces),
        pieces,
        torch.randint(1, 90, (len(pieces), 16), dtype=torch.uint8),
    ).eval()
    for module in (encoder, projector, head):
        module.requires_grad_(False)
    # Random modules hear the same in every frame: exaggerated ones hear pieces, and now and then
    # none.
    torch.nn.init.normal_(projector.conv.weight)
    torch.nn.init.normal_(head.query_proj.weight, std=head.config.key_width)
    torch.nn.init.zeros_(head.blank_proj.weight)
    torch.nn.init.constant_(head.blank_proj.bias, 10.0)
    torch.nn.init.constant_(head.residual_scale, 0.3)
    return Listener(Ears(encoder, projector, head), written_by(chat()))


def noise(samples: int, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).normal(scale=0.2, size=samples).astype(np.float32)


def greedy(model: Llm, rows: torch.Tensor, count: int, end: int) -> list[int]:
    """Tokens behind a content `[positions, width]`, each by reading everything again."""
    drawn: list[int] = []
    while len(drawn) < count:
        content = torch.cat((rows, model.embed(torch.tensor(drawn, dtype=torch.long))))
        with torch.inference_mode():
            hidden = model.forward_sequence(content[None])[0, -1:]
            token = int(model.logits(hidden).argmax())
        if token == end:
            break
        drawn.append(token)
    return drawn


def prompt(user: Sequence[int]) -> list[int]:
    """A whole prompt around the tokens of a user's turn."""
    form = chat()
    return [
        *form.role_start("system"),
        *form.text(INSTRUCTIONS),
        *form.turn_end(),
        *form.role_start("user"),
        *user,
        *form.turn_end(),
        *form.role_start("assistant"),
    ]
