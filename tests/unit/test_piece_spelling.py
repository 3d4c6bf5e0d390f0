"""Spelling: letters of what is said, and keys that pieces have of their letters alone."""

import pytest
import torch

from minmo.model.spelling import (
    LETTERS,
    LONGEST_SPELLING,
    SpellingEncoder,
    letters_of,
    spellings_of,
)

PIECES = [" the", "the", "The", "eht", "s", " a", " 1984", "?", " incomprehensibilities"]


def untrained(width: int = 8) -> SpellingEncoder:
    torch.manual_seed(0)
    return SpellingEncoder(width, 6)


def spoken(text: str) -> str:
    return "".join(LETTERS[letter] for letter in letters_of(text))


def test_text_is_spelled_as_it_is_spoken() -> None:
    assert spoken("  Who wrote “Moby-Dick”?\n") == "who wrote moby dick"
    assert spoken("It's 5 o'clock: AT&T, 10%.") == "it's 5 o'clock at&t 10%"
    assert letters_of("...") == []
    assert len(set(LETTERS)) == len(LETTERS) == 42


def test_a_spelling_has_a_number_for_each_character() -> None:
    rows = spellings_of([" a", "~!"])
    assert rows.dtype == torch.uint8
    assert rows.shape == (2, LONGEST_SPELLING)
    assert rows[:, :3].tolist() == [[1, 66, 0], [95, 2, 0]]
    assert not rows[:, 2:].any()


def test_of_a_long_piece_both_ends_count() -> None:
    long = " incomprehensibilities"
    both_ends = spellings_of([long[:8] + long[-8:]])
    assert torch.equal(spellings_of([long]), both_ends)
    assert not torch.equal(spellings_of([long + "s"]), both_ends)


@pytest.mark.parametrize("piece", ["", "é", "a\n", "\x00", " 漢"])
def test_what_has_no_letters_of_ours_is_refused(piece: str) -> None:
    with pytest.raises(ValueError, match="is not printable ASCII: leave it out"):
        spellings_of([" a", piece])


def test_a_key_depends_on_its_own_spelling_only() -> None:
    encoder = untrained()
    # Whatever an encoder may learn for what is behind the end must not show.
    for parameter in encoder.parameters():
        parameter.data += 0.1
    together = encoder(spellings_of(PIECES))
    alone = torch.cat([encoder(spellings_of([piece])) for piece in PIECES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_every_letter_and_its_place_count() -> None:
    keys = untrained()(spellings_of(PIECES))
    distances = torch.cdist(keys, keys) + torch.eye(len(PIECES))
    assert distances.min() > 1e-3


def test_all_of_it_is_trained() -> None:
    encoder = untrained()
    encoder(spellings_of(PIECES)).square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in encoder.parameters())


def test_no_pieces_and_pieces_without_letters_are_possible() -> None:
    encoder = untrained()
    assert encoder(spellings_of([])).shape == (0, 6)
    nothing = encoder(torch.zeros(2, LONGEST_SPELLING, dtype=torch.uint8))
    assert torch.equal(nothing, encoder.out_proj.bias.expand(2, 6))
