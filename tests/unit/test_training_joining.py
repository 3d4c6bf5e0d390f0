"""Short clips are said one after the other."""

import torch

from minmo.training.batches import Batch
from minmo.training.joining import joined
from minmo.training.shar import Clip

RATE = 100


def batch(lengths: list[int], *, words: bool = True) -> Batch:
    rows = torch.zeros(len(lengths), max(lengths))
    for number, length in enumerate(lengths):
        rows[number, :length] = number + 1
    clips = tuple(Clip(f"c{n}", f"word{n}", "", 1.0, "", 0, 0) for n in range(len(lengths)))
    return Batch(
        rows,
        torch.tensor(lengths),
        rows * 2,
        tuple(clip.text for clip in clips),
        clips,
        tuple([(0.1, 0.2)] for _ in lengths) if words else (None,) * len(lengths),
        None,
        RATE,
    )


def test_nothing_is_lost_and_nothing_is_longer_than_allowed() -> None:
    torch.manual_seed(0)
    lengths = [30, 40, 50, 60, 70, 80, 90, 100]
    sizes = set()
    for _ in range(20):
        made = joined(batch(lengths), 3.0)
        sizes.add(len(made.texts))
        assert " ".join(made.texts) == " ".join(f"word{n}" for n in range(8))
        assert int(made.lengths.sum()) == sum(lengths)
        assert int(made.lengths.max()) <= 300
        assert made.clean is not None
        rows = zip(made.samples, made.clean, made.lengths.tolist(), strict=True)
        heard = torch.cat([row[:length] for row, _, length in rows])
        expected = torch.cat([torch.full((n,), k + 1.0) for k, n in enumerate(lengths)])
        assert torch.equal(heard, expected)
        assert torch.equal(made.clean, made.samples * 2)
        for text, spans, clip in zip(made.texts, made.words, made.clips, strict=True):
            first = int(clip.id[1:])
            assert text.startswith(f"word{first}")
            begins = [sum(lengths[first : first + n]) / RATE for n in range(len(text.split()))]
            assert spans is not None
            assert [round(start - 0.1, 6) for start, _ in spans] == begins
    assert len(sizes) > 2


def test_a_clip_longer_than_allowed_stays_by_itself() -> None:
    made = joined(batch([400, 400]), 3.0)
    assert made.lengths.tolist() == [400, 400]
    assert made.texts == ("word0", "word1")


def test_words_are_known_only_where_all_are() -> None:
    torch.manual_seed(1)
    made = joined(batch([10, 10, 10], words=False), 100.0)
    assert all(spans is None for spans in made.words)
