"""Words that were heard become what the LLM reads: its own pieces, mixed by how likely they are."""

import pytest
import torch
from tokenizers import Tokenizer

from minmo.engine.streaming_recogniser import Token
from minmo.engine.word_pieces import Pieces, WordPieces
from tests.listening import weights_or_skip

TEXTS = [
    "What's the capital of France?",
    "In 1972, the Dolphins won 17 games; didn't they?",
    'Unbelievable - I can\'t say: "Constantinople"!',
    "A B-52 costs $4.50, doesn't it... maybe 3.14",
    "na\u00efve caf\u00e9",
]


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Tokenizer, Tokenizer]:
    recogniser, llm = (weights_or_skip(name) for name in ("recognizer", "llm"))
    return tuple(Tokenizer.from_file(str(each / "tokenizer.json")) for each in (recogniser, llm))


@pytest.fixture(scope="module")
def table(tokenizers: tuple[Tokenizer, Tokenizer]) -> torch.Tensor:
    size = tokenizers[1].get_vocab_size()
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(0)).half()


@pytest.fixture(scope="module")
def words(tokenizers: tuple[Tokenizer, Tokenizer], table: torch.Tensor) -> WordPieces:
    return WordPieces(*tokenizers, table)


def sure(token: int, frame: int, other: int = 5, share: float = 0.0) -> Token:
    return Token(token, frame, torch.tensor([token, other]), torch.tensor([1 - share, share]))


def read(words: WordPieces, ids: list[int], share: float = 0.0) -> list[Pieces]:
    """The pieces of each word of a text, heard a frame a token."""
    groups: list[list[Token]] = []
    for frame, token in enumerate(ids):
        if not groups or words.begins_word[token]:
            groups.append([])
        groups[-1].append(sure(token, frame, share=share))
    return [words.pieces(group, is_first=not number) for number, group in enumerate(groups)]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_those_of_the_text(
    words: WordPieces, tokenizers: tuple[Tokenizer, Tokenizer], table: torch.Tensor, text: str
) -> None:
    made = read(words, tokenizers[0].encode(text, add_special_tokens=False).ids)
    expected = tokenizers[1].encode(text, add_special_tokens=False).ids
    assert [token for each in made for token in each.tokens] == expected
    # Where nothing else was likely the LLM reads what it reads of text.
    torch.testing.assert_close(torch.cat([each.mixtures for each in made]), table[expected].float())
    frames = [frame for each in made for frame in each.frames]
    assert frames == sorted(frames)


def test_what_else_it_may_have_been_is_in_the_mixture(
    words: WordPieces, tokenizers: tuple[Tokenizer, Tokenizer], table: torch.Tensor
) -> None:
    heard_by, read_by = tokenizers
    ship, sheep, end = (
        heard_by.token_to_id(each) for each in ("\u2581ship", "\u2581sheep", "</s>")
    )
    rows = {text: table[read_by.encode(text).ids[0]].float() for text in (" ship", " sheep")}
    made = words.pieces([sure(ship, 4, sheep, 0.25)], is_first=False)
    assert made.frames == [4]
    expected = 0.75 * rows[" ship"] + 0.25 * rows[" sheep"]
    torch.testing.assert_close(made.mixtures[0], expected)
    # The end of the text is no word.
    made = words.pieces([sure(ship, 4, end, 0.25)], is_first=False)
    torch.testing.assert_close(made.mixtures[0], rows[" ship"])
    # In front of all others no space stands, in the alternatives neither.
    first = words.pieces([sure(ship, 4, sheep, 0.25)], is_first=True)
    bare = [table[read_by.encode(text).ids[0]].float() for text in ("ship", "sheep")]
    torch.testing.assert_close(first.mixtures[0], 0.75 * bare[0] + 0.25 * bare[1])


def test_nothing_has_no_pieces(words: WordPieces, tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    made = words.pieces([sure(tokenizers[0].token_to_id("\u2581"), 0)], is_first=True)
    assert made.tokens == []
    assert made.mixtures.shape == (0, 6)
