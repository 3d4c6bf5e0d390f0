"""The recognition head: pieces from speech embeddings, the same however the stream is cut."""

from dataclasses import replace
from itertools import groupby

import pytest
import torch
from torch import Tensor

from minmo.model.recognition_head import (
    RecognitionHead,
    RecognitionHeadConfig,
    RecognitionState,
    recognition_loss,
)
from minmo.model.spelling import spellings_of
from minmo.presets import load_preset
from tests.streaming_table import check_streaming

WIDTH = 16
ROWS = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
PIECES = torch.tensor([3, 5, 8, 13, 21, 2])
BLANK = len(PIECES)
SPELLED = [" the", " zebra", "s", "ing", " a", "?"]
CONFIG = RecognitionHeadConfig(30, WIDTH, BLANK, spelling_width=8, key_width=12)


def head() -> RecognitionHead:
    """Untrained, and the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RecognitionHead(CONFIG, ROWS, PIECES, spellings_of(SPELLED))


def frozen() -> RecognitionHead:
    return head().requires_grad_(False).eval()


class Hearing(RecognitionHead):
    """Hears in an embedding the class that its largest channel says, which is easy to write."""

    def __init__(self) -> None:
        super().__init__(CONFIG, ROWS, PIECES, spellings_of(SPELLED))

    def _scores(self, embeddings: Tensor, classes: Tensor | None = None) -> Tensor:
        return embeddings[..., : BLANK + 1]


def saying(classes: list[int]) -> Tensor:
    """Embeddings `[1, frames, 16]` in which `Hearing` hears these classes."""
    return torch.eye(WIDTH)[classes][None]


def random_speech(seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, BLANK + 1, (60,), generator=generator).repeat_interleave(2).tolist()


def test_pieces_that_are_repeated_are_one_unless_a_blank_parts_them() -> None:
    speech = saying([0, 0, BLANK, 0, 1, 1, BLANK, BLANK, 5, 4])
    assert Hearing().decode(speech) == [[3, 3, 5, 2, 21]]
    assert Hearing().decode(speech, torch.tensor([5])) == [[3, 3, 5]]
    assert Hearing().decode(saying([BLANK, BLANK])) == [[]]


@torch.inference_mode()
def test_pieces_say_in_which_frame_they_were_first_heard() -> None:
    recognises, speech = Hearing(), saying([BLANK, 0, 0, BLANK, 0, 1, BLANK, 2])
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
    recognises = Hearing()
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
    scores = head()(torch.randn(2, 5, WIDTH))
    assert scores.shape == (2, 5, BLANK + 1)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, 5))


@pytest.mark.parametrize("made", [head(), frozen()])
def test_a_sample_of_the_pieces_is_normalised_over_them(made: RecognitionHead) -> None:
    speech, chosen = torch.randn(2, 5, WIDTH), torch.tensor([4, 0, 3])
    whole = made(speech)
    expected = whole[..., [4, 0, 3, BLANK]].exp()
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(made(speech, chosen).exp(), expected)


def test_a_mixture_is_of_the_rows_of_what_is_heard_and_of_how_it_sounds() -> None:
    made, speech = head(), torch.randn(2, 5, WIDTH)
    heard = made(speech)
    chances = heard[..., :-1].exp()
    words = chances / chances.sum(-1, keepdim=True) @ ROWS
    sound = made.residual_scale * made.norm(speech)
    assert sound.abs().max() > 1e-4
    torch.testing.assert_close(made.mixtures(speech, heard), words + sound)
    chosen = torch.tensor([4, 0, 3])
    heard = made(speech, chosen)
    chances = heard[..., :-1].exp()
    words = chances / chances.sum(-1, keepdim=True) @ ROWS[chosen]
    torch.testing.assert_close(made.mixtures(speech, heard, chosen), words + sound)


def test_only_the_likeliest_pieces_are_mixed() -> None:
    config = replace(CONFIG, pieces=30)
    made = RecognitionHead(config, torch.eye(30, WIDTH).roll(1, 1))
    heard = torch.randn(1, 1, 31).log_softmax(-1)
    made.residual_scale.data.zero_()
    likeliest = heard[0, 0, :-1].topk(8)
    expected = likeliest.values.softmax(0) @ made.rows[likeliest.indices]
    torch.testing.assert_close(made.mixtures(torch.randn(1, 1, WIDTH), heard)[0, 0], expected)


def test_rows_are_neither_trained_nor_saved() -> None:
    made, speech = head(), torch.randn(1, 4, WIDTH, requires_grad=True)
    heard = made(speech)
    (made.mixtures(speech, heard).square().sum() + heard[..., 0].sum()).backward()
    without = [name for name, value in made.named_parameters() if value.grad is None]
    assert not without
    assert all(value.grad.any() for value in made.parameters() if value.grad is not None)
    assert speech.grad is not None
    assert not made.rows.requires_grad
    saved = made.state_dict().keys() - dict(made.named_parameters()).keys()
    assert saved == {"pieces", "spellings"}


def test_rows_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="rows are 6 x 9; the head has 6 pieces of width 16"):
        RecognitionHead(CONFIG, torch.randn(6, 9))


def test_a_head_that_was_told_no_spellings_hears_all_pieces_alike() -> None:
    scores = RecognitionHead(CONFIG, ROWS)(torch.randn(1, 2, WIDTH))
    torch.testing.assert_close(scores[..., 0], scores[..., 1])


# ---- kept keys ----------------------------------------------------------------------------------


@torch.inference_mode()
def test_keys_are_made_once_when_nothing_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made, speech = frozen(), torch.randn(1, 3, WIDTH)
    calls = []
    spelling = made.spelling.forward
    monkeypatch.setattr(made.spelling, "forward", lambda x: calls.append(1) or spelling(x))
    first = made(speech)
    torch.testing.assert_close(made(speech), first)
    torch.testing.assert_close(head()(speech), first)
    assert len(calls) == 1


def test_keys_are_forgotten_when_weights_are_loaded_again() -> None:
    made, speech = frozen(), torch.randn(1, 3, WIDTH)
    before = made(speech)
    other = {
        name: value + (value.is_floating_point()) for name, value in head().state_dict().items()
    }
    whole = torch.nn.ModuleDict({"inside": made})
    for load in (
        made.load_state_dict,
        lambda state: whole.load_state_dict({f"inside.{key}": v for key, v in state.items()}),
    ):
        made.load_state_dict(head().state_dict())
        torch.testing.assert_close(made(speech), before)
        load(other)
        fresh = head()
        fresh.load_state_dict(other)
        torch.testing.assert_close(made(speech), fresh(speech))
        assert not torch.allclose(made(speech), before)


def test_keys_are_forgotten_when_training_goes_on() -> None:
    made, speech = frozen(), torch.randn(1, 3, WIDTH)
    before = made(speech)
    made.requires_grad_(True).train()
    made.spelling.conv1.weight.data += 1
    made.requires_grad_(False).eval()
    assert not torch.allclose(made(speech), before)


def test_keys_are_where_and_of_the_type_that_the_head_is() -> None:
    made, speech = frozen(), torch.randn(1, 3, WIDTH)
    made(speech)
    assert made.double()(speech.double()).dtype == torch.float32


def test_a_frozen_head_that_was_asked_without_gradients_still_passes_them() -> None:
    made, speech = frozen(), torch.randn(1, 3, WIDTH)
    with torch.inference_mode():
        made(speech)
    speech.requires_grad_()
    made(speech)[..., 0].sum().backward()
    assert speech.grad is not None
    assert speech.grad.any()


# ---- targets and loss ---------------------------------------------------------------------------


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


def test_every_piece_counts_alike_however_long_its_clip_and_padding_counts_nothing() -> None:
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
    torch.testing.assert_close(both, (3 * alone[0] + alone[1]) / 4)


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
    made, mixing = head(), torch.nn.Linear(WIDTH, WIDTH)
    orders = [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0], [0, 2, 1], [1, 0, 2], [0, 0, 1]]
    speech = torch.cat([saying([a, a, BLANK, b, b, b, BLANK, c]) for a, b, c in orders])
    optimiser = torch.optim.Adam([*made.parameters(), *mixing.parameters()], lr=0.01)
    targets, lengths = torch.tensor(orders), torch.full((len(orders),), 8)
    for _ in range(300):
        loss = recognition_loss(made(mixing(speech)), lengths, targets, torch.full_like(lengths, 3))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if made.decode(mixing(speech)) == PIECES[targets].tolist():
            return
    raise AssertionError(f"after 300 steps the loss is {loss.item()}")


@pytest.mark.parametrize(("preset", "most"), [("8b", 1.0), ("mini", 0.31)])
def test_it_adds_little_to_a_preset(preset: str, most: float) -> None:
    config = load_preset(preset).recognition_head
    with torch.device("meta"):
        made = RecognitionHead(config, torch.empty(config.pieces, config.width))
        heard = made(torch.empty(2, 3, config.width))
        assert made.mixtures(torch.empty(2, 3, config.width), heard).shape == (2, 3, config.width)
    assert heard.shape == (2, 3, config.pieces + 1)
    assert sum(parameter.numel() for parameter in made.parameters()) < most * 1e6


def test_embeddings_become_as_large_as_rows_of_the_table() -> None:
    made = head()
    torch.manual_seed(1)
    sized = made.as_large_as_text(7 * torch.randn(2, 50, made.width))
    size = made.rows.square().mean().sqrt()
    torch.testing.assert_close(sized.square().mean().sqrt(), size, rtol=0.01, atol=0)
