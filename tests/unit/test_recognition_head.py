"""The recognition head: words from speech embeddings, the same however the stream is cut."""

from itertools import groupby

import pytest
import torch
from torch import Tensor

from minmo.model.recognition_head import RecognitionHead, RecognitionState, recognition_loss
from minmo.presets import load_preset
from tests.streaming_table import check_streaming

TABLE = 0.02 * torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
PIECES = torch.tensor([3, 5, 8, 13, 21, 2])
BLANK = len(PIECES)


def head(pieces: Tensor | None = PIECES) -> RecognitionHead:
    """Hears a vocabulary's own rows as what they are, and the first row as the blank."""
    made = RecognitionHead(TABLE, pieces)
    made.blank_row.data = TABLE[0] / TABLE[0].norm()
    return made


def saying(classes: list[int]) -> Tensor:
    """Embeddings `[1, frames, 16]` whose best classes are these."""
    embeddings = TABLE[[*PIECES.tolist(), 0]][classes][None]
    assert head()(embeddings).argmax(-1)[0].tolist() == classes
    return embeddings


def random_speech(seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, BLANK + 1, (60,), generator=generator).repeat_interleave(2).tolist()


def test_pieces_that_are_repeated_are_one_unless_a_blank_parts_them() -> None:
    speech = saying([0, 0, BLANK, 0, 1, 1, BLANK, BLANK, 5, 4])
    assert head().decode(speech) == [[3, 3, 5, 2, 21]]
    assert head().decode(speech, torch.tensor([5])) == [[3, 3, 5]]
    assert head().decode(saying([BLANK, BLANK])) == [[]]


@torch.inference_mode()
def test_pieces_say_in_which_frame_they_were_first_heard() -> None:
    recognises, speech = head(), saying([BLANK, 0, 0, BLANK, 0, 1, BLANK, 2])
    state = recognises.initial_state(1)
    heard = []
    for start, length in [(0, 3), (3, 0), (3, 4), (7, 1)]:
        tokens, frames, counts = recognises.step(
            speech[:, start : start + length], torch.tensor([length]), state
        )
        count = int(counts)
        heard += list(zip(tokens[0, :count].tolist(), frames[0, :count].tolist(), strict=True))
    assert heard == [(3, 1), (3, 4), (5, 5), (8, 7)]


def test_any_chunks_give_the_same_words_at_the_same_times() -> None:
    recognises = head()
    clips = [random_speech(seed) for seed in range(3)]
    speech = torch.cat([saying(clip) for clip in clips])
    expected = []
    for clip in clips:
        frame, found = 0, []
        for best, run in groupby(clip):
            if best != BLANK:
                found.append([int(PIECES[best]), frame])
            frame += len(list(run))
        expected.append(torch.tensor(found))

    def step(chunk: Tensor, lengths: Tensor, state: RecognitionState) -> tuple[Tensor, Tensor]:
        tokens, frames, counts = recognises.step(chunk, lengths, state)
        return torch.stack((tokens, frames), dim=-1), counts

    check_streaming(recognises, speech, whole=expected, step=step)


def test_probabilities_are_of_all_pieces_and_the_blank() -> None:
    everything = RecognitionHead(TABLE)
    assert everything.rows.data_ptr() == TABLE.data_ptr()
    scores = everything(torch.randn(2, 5, 16))
    assert scores.shape == (2, 5, 31)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, 5))


def test_the_table_is_neither_trained_nor_saved() -> None:
    made = head()
    made(torch.randn(1, 4, 16)).sum().backward()
    assert {name for name, value in made.named_parameters() if value.requires_grad} == {
        "norm.weight",
        "norm.bias",
        "scale",
        "blank_row",
        "bias",
    }
    assert made.state_dict().keys() - dict(made.named_parameters()).keys() == {"pieces"}
    assert not made.rows.requires_grad


def test_text_becomes_targets_and_what_is_not_known_is_refused() -> None:
    assert head().classes(torch.tensor([[2, 21], [3, 13]])).tolist() == [[5, 4], [0, 3]]
    with pytest.raises(ValueError, match="token 9 is not among the 6 pieces"):
        head().classes(torch.tensor([3, 9]))
    with pytest.raises(ValueError, match="token 29 is not among"):
        head().classes(torch.tensor([29]))


def test_the_loss_is_the_probability_of_every_way_to_say_it() -> None:
    scores = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    chances = scores[0].exp()
    blank = 2
    ways = [
        (0, 1, 1), (0, 0, 1), (blank, 0, 1), (0, blank, 1), (0, 1, blank)
    ]  # fmt: skip
    chance = sum(chances[range(3), list(way)].prod() for way in ways)
    loss = recognition_loss(scores, torch.tensor([3]), torch.tensor([[0, 1]]), torch.tensor([2]))
    torch.testing.assert_close(loss, -torch.as_tensor(chance).log() / 2)


def test_clips_of_different_lengths_count_alike_and_padding_counts_nothing() -> None:
    scores = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    lengths, targets, counts = (
        torch.tensor([9, 4]),
        torch.tensor([[0, 1, 1], [2, -7, 99]]),
        torch.tensor([3, 1]),
    )
    both = recognition_loss(scores, lengths, targets, counts)
    alone = [
        recognition_loss(
            scores[clip : clip + 1, : lengths[clip]],
            lengths[clip : clip + 1],
            targets[clip : clip + 1, : counts[clip]],
            counts[clip : clip + 1],
        )
        for clip in range(2)
    ]
    torch.testing.assert_close(both, sum(alone) / 2)


def test_a_clip_without_words_should_be_blank() -> None:
    scores = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    loss = recognition_loss(
        scores, torch.tensor([4]), torch.zeros(1, 0, dtype=torch.int64), torch.tensor([0])
    )
    torch.testing.assert_close(loss, -scores[0, :, 2].sum())


@pytest.mark.parametrize("words", [[0, 1, 0, 1], [0, 0, 1], [0]])
def test_a_clip_too_short_for_its_words_counts_nothing(words: list[int]) -> None:
    scores = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    scores.requires_grad_()
    short = 0 if len(words) == 1 else 3
    targets = torch.tensor([[1, 0, 0, 0], words + [0] * (4 - len(words))])
    counts = torch.tensor([1, len(words)])
    loss = recognition_loss(scores, torch.tensor([9, short]), targets, counts)
    alone = recognition_loss(scores[:1], torch.tensor([9]), targets[:1], counts[:1])
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert not scores.grad[1].any()
    none = recognition_loss(scores[1:], torch.tensor([short]), targets[1:], counts[1:])
    assert none.item() == 0


@pytest.mark.parametrize(
    ("lengths", "targets", "counts", "message"),
    [
        ([4], [[3]], [1], "a target is 3: the 3 pieces are 0 to 2, and 3 is the blank"),
        ([5], [[0]], [1], "a length is 5: there are 0 to 4 frames"),
        ([4], [[0]], [2], "a length is 2: there are 0 to 1 labels"),
    ],
)
def test_targets_that_cannot_be_are_refused(
    lengths: list[int], targets: list[list[int]], counts: list[int], message: str
) -> None:
    scores = torch.zeros(1, 4, 4).log_softmax(-1)
    with pytest.raises(ValueError, match=message):
        recognition_loss(scores, torch.tensor(lengths), torch.tensor(targets), torch.tensor(counts))


def test_training_makes_it_recognise() -> None:
    torch.manual_seed(0)
    made, speech = RecognitionHead(TABLE, PIECES), saying([0, 0, BLANK, 1, 1, 1, BLANK, 2])
    mixing = torch.nn.Linear(16, 16)
    optimiser = torch.optim.Adam([*made.parameters(), *mixing.parameters()], lr=0.03)
    targets = made.classes(torch.tensor([[3, 5, 8]]))
    for _ in range(60):
        loss = recognition_loss(made(mixing(speech)), torch.tensor([8]), targets, torch.tensor([3]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert made.decode(mixing(speech)) == [[3, 5, 8]]


@pytest.mark.parametrize(("preset", "most"), [("8b", 0.2), ("mini", 0.06)])
def test_it_adds_little_to_a_preset(preset: str, most: float) -> None:
    llm = load_preset(preset).llm
    with torch.device("meta"):
        made = RecognitionHead(torch.empty(llm.vocabulary_size, llm.width))
    assert sum(parameter.numel() for parameter in made.parameters()) < most * 1e6
