"""Words cut out of clips: where they are heard, and what is learned of each by itself."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from minmo.model.recognition_head import recognition_loss
from minmo.model.spelling import LETTERS
from minmo.training.listening import PieceTokenizer, cut_loss, letter_cuts, piece_cuts
from minmo.training.words import moved, spoken_words

SPANS = [(0.10, 0.34), (0.40, 0.80)]


def test_words_are_what_sounds() -> None:
    assert spoken_words("Well - it's 9 o'clock, isn't it?") == [
        "Well", "it's", "9", "o'clock,", "isn't", "it?"
    ]  # fmt: skip
    assert spoken_words(" ... ") == []


def test_silence_and_speed_move_words() -> None:
    assert moved(SPANS, 2.0, 1.0) == [(1.05, 1.17), (1.2, 1.4)]


def test_letters_are_cut_where_their_words_are_heard_and_a_little_around() -> None:
    cuts = letter_cuts(["It is", "Oh."], [SPANS, None], 0.02)
    assert cuts.clips.tolist() == [0, 0]
    starts = cuts.starts * 0.02
    ends = (cuts.starts + cuts.lengths) * 0.02
    for (start, end), first, last in zip(SPANS, starts.tolist(), ends.tolist(), strict=True):
        assert start - 0.06 < first < start < end < last < end + 0.25
    assert [
        "".join(LETTERS[number] for number in row[:count])
        for row, count in zip(cuts.targets.tolist(), cuts.target_lengths.tolist(), strict=True)
    ] == ["it", "is"]


def test_pieces_of_words_are_the_pieces_of_their_text() -> None:
    vocabulary = {piece: number for number, piece in enumerate(("It", "Ġis", "Ġit", "?", "is"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = PieceTokenizer(tokenizer, torch.arange(5))
    cuts = piece_cuts(["It is"], [SPANS], 0.048, pieces)
    assert cuts.targets.tolist() == [[0], [1]]
    assert pieces.classes("It is") == [0, 1]


@pytest.mark.parametrize("spans", [[(0.1, 0.2)], [(0.1, 0.2)] * 3])
def test_spans_of_other_words_say_nothing(spans: list[tuple[float, float]]) -> None:
    cuts = letter_cuts(["It is"], [spans], 0.02)
    assert len(cuts.clips) == 0
    scores = torch.randn(1, 9, 4, requires_grad=True).log_softmax(-1)
    assert float(cut_loss(scores, torch.tensor([9]), cuts)) == 0


def test_the_loss_of_a_word_is_that_of_its_frames_alone() -> None:
    seeded = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 60, len(LETTERS) + 1, generator=seeded).log_softmax(-1)
    lengths = torch.tensor([60, 44])
    texts, words = ["It is", "no way"], [SPANS, [(0.2, 0.5), (0.6, 0.9)]]
    cuts = letter_cuts(texts, words, 0.02)
    total, labels = 0.0, 0
    for clip, first, count, row, wanted in zip(
        cuts.clips, cuts.starts, cuts.lengths, cuts.targets, cuts.target_lengths, strict=True
    ):
        end = min(int(first + count), int(lengths[clip]))
        alone = recognition_loss(
            scores[clip : clip + 1, first:end],
            torch.tensor([end - int(first)]),
            row[None, :wanted],
            wanted[None],
        )
        total, labels = total + float(alone) * int(wanted), labels + int(wanted)
    assert float(cut_loss(scores, lengths, cuts)) == pytest.approx(total / labels, rel=1e-5)
    # What lies outside of all words is nobody's.
    scores[:, :2] = -9.0
    assert float(cut_loss(scores, lengths, cuts)) == pytest.approx(total / labels, rel=1e-5)
