"""The pretrained LLM streams as a random one does, and says the same in whatever company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from minmo.model.llm import Llm
from minmo.triton.host import load_model
from tests.listening import weights_or_skip
from tests.streaming_llm import (
    check_any_chunking,
    check_decoding,
    check_forks_and_cuts,
    check_reuse,
)

TEXTS = (
    "The sun had set behind the hills, and the village was quiet. An old man walked slowly along "
    "the road with a lantern in his hand. He knew every stone and every tree.",
    "What is the capital of France?",
    "A spider has eight legs, an ant has six, and a snake has none at all.",
)
# Hidden states reach 34.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def folder() -> Path:
    return weights_or_skip("llm")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Llm:
    return load_model(folder, "float32")


@pytest.fixture(scope="module")
def streams(folder: Path) -> list[Tensor]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [torch.tensor(tokenizer.encode(text).ids) for text in TEXTS]


def test_any_chunking_gives_what_the_whole_gives(llm: Llm, streams: list[Tensor]) -> None:
    check_any_chunking(llm, streams, TOLERANCE)


def test_decoding_all_at_once_gives_what_the_whole_gives(llm: Llm, streams: list[Tensor]) -> None:
    check_decoding(llm, streams, TOLERANCE)


def test_forks_and_cuts_go_on_as_new_sequences(llm: Llm, streams: list[Tensor]) -> None:
    check_forks_and_cuts(llm, streams[0], streams[1], TOLERANCE)


def test_a_slot_shows_nothing_of_who_had_it_before(llm: Llm, streams: list[Tensor]) -> None:
    check_reuse(llm, streams[0], streams[2], TOLERANCE)
