"""Merging: one embedding for each piece that is heard, the same however the stream is cut."""

from itertools import groupby
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from minmo.model.merging import Merged, MergingState, initial_state, merge, merge_step
from tests.streaming_table import check_streaming

WIDTH, PIECES = 4, 5
BLANK = PIECES


def heard(classes: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mixtures `[1, frames, width]` and log probabilities in which these classes are the best."""
    generator = torch.Generator().manual_seed(seed)
    mixtures = torch.randn(1, len(classes), WIDTH, generator=generator)
    scores = torch.rand(1, len(classes), PIECES + 1, generator=generator)
    scores[0, range(len(classes)), classes] += 1
    return mixtures, scores.log_softmax(-1)


def random_clip(seed: int, frames: int = 60) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    runs = torch.randint(0, PIECES + 1, (frames,), generator=generator)
    times = torch.randint(1, 5, (frames,), generator=generator)
    return runs.repeat_interleave(times)[:frames].tolist()


def expected(classes: list[int], mixtures: Tensor, scores: Tensor) -> list[tuple[int, int, Tensor]]:
    """What is merged, written as one would say it."""
    found, frame = [], 0
    for best, run in groupby(classes):
        rows = slice(frame, frame + len(list(run)))
        if best != BLANK:
            weights = 1 - scores[0, rows, -1].exp()
            mean = (weights[:, None] * mixtures[0, rows]).sum(0) / weights.sum()
            found.append((best, frame, mean))
        frame = rows.stop
    return found


def given(merged: Merged, slot: int = 0) -> list[tuple[int, int]]:
    count = int(merged.counts[slot])
    classes, frames = merged.classes[slot, :count], merged.frames[slot, :count]
    return list(zip(classes.tolist(), frames.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_each_run_of_a_piece_is_its_weighted_mean(seed: int) -> None:
    classes = random_clip(seed)
    mixtures, scores = heard(classes, seed)
    merged = merge(mixtures, scores, torch.tensor([len(classes)]))
    wanted = expected(classes, mixtures, scores)
    assert given(merged) == [(piece, frame) for piece, frame, _ in wanted]
    made = merged.embeddings[0, : len(wanted)]
    torch.testing.assert_close(made, torch.stack([mean for _, _, mean in wanted]))
    assert not merged.embeddings[0, len(wanted) :].any()


def test_a_blank_parts_a_piece_from_itself() -> None:
    for classes, pieces in [
        ([2, 2, BLANK, 2], [(2, 0), (2, 3)]),
        ([2, 2, 2], [(2, 0)]),
        ([2, 1, 2], [(2, 0), (1, 1), (2, 2)]),
        ([BLANK, BLANK], []),
        ([], []),
    ]:
        merged = merge(*heard(classes), torch.tensor([len(classes)]))
        assert given(merged) == pieces


def test_surer_frames_count_more() -> None:
    mixtures = torch.eye(2, WIDTH)[None]
    chances = torch.tensor([[0.9, 0, 0, 0, 0, 0.1], [0.6, 0, 0, 0, 0, 0.4]]) + 1e-9
    merged = merge(mixtures, chances.log()[None], torch.tensor([2]))
    torch.testing.assert_close(merged.embeddings[0, 0], torch.tensor([0.6, 0.4, 0, 0]))


def test_what_stands_behind_a_length_does_not_matter() -> None:
    classes = [random_clip(seed) for seed in range(3)]
    clips = [heard(clip, seed) for seed, clip in enumerate(classes)]
    mixtures, scores = (torch.cat(part) for part in zip(*clips, strict=True))
    lengths = torch.tensor([60, 23, 0])
    clean = merge(mixtures, scores, lengths)
    mixtures[1, 23:], mixtures[2], scores[1, 23:], scores[2] = (torch.nan,) * 4
    for made, wanted in zip(merge(mixtures, scores, lengths), clean, strict=True):
        assert torch.equal(made, wanted)
    assert clean.counts.tolist()[2] == 0
    alone = merge(clips[1][0][:, :23], clips[1][1][:, :23], torch.tensor([23]))
    assert given(alone) == given(clean, 1)


def test_gradients_reach_mixtures_and_probabilities() -> None:
    mixtures, scores = (part.requires_grad_() for part in heard([0, 0, BLANK, 1, 1]))
    merged = merge(mixtures, scores, torch.tensor([5]))
    merged.embeddings.square().sum().backward()
    assert mixtures.grad is not None
    assert scores.grad is not None
    said = torch.tensor([True, True, False, True, True])
    assert torch.equal(mixtures.grad[0].any(-1), said)
    assert torch.equal(scores.grad[0, :, -1] != 0, said)


def stepping() -> tuple[nn.Module, Any]:
    """A stand-in for a module, and a step over mixtures and probabilities side by side.

    Two frames of silence behind each clip end its last piece, as a stream's end would.
    """

    def step(chunk: Tensor, lengths: Tensor, state: MergingState) -> tuple[Tensor, Tensor]:
        mixtures, scores = chunk[..., :WIDTH], chunk[..., WIDTH:]
        merged = merge_step(mixtures, scores, lengths, state, torch.zeros_like(lengths).bool())
        numbers = torch.stack((merged.classes, merged.frames), dim=-1)
        return torch.cat((merged.embeddings, numbers), dim=-1), merged.counts

    module = SimpleNamespace(initial_state=lambda slots: initial_state(slots, WIDTH))
    return cast("nn.Module", module), step


def test_any_chunks_give_what_the_whole_clip_gives() -> None:
    classes = [[*random_clip(seed), BLANK, BLANK] for seed in range(3)]
    clips, whole = [], []
    for seed, clip in enumerate(classes):
        mixtures, scores = heard(clip, seed)
        clips.append(torch.cat((mixtures, scores), dim=-1))
        merged = merge(mixtures, scores, torch.tensor([len(clip)]))
        rows = [
            torch.cat((merged.embeddings[0, number], torch.tensor(found)))
            for number, found in enumerate(given(merged))
        ]
        whole.append(torch.stack(rows))
    module, step = stepping()
    check_streaming(module, torch.cat(clips), whole=whole, step=step)


@torch.inference_mode()
def test_a_piece_comes_when_it_is_over_or_the_stream_ends() -> None:
    classes = [1, 1, 1, 2, BLANK, BLANK, 2, 2]
    mixtures, scores = heard(classes)
    state, came = initial_state(1, WIDTH), []
    for frame in range(8):
        part = slice(frame, frame + 1)
        ending = torch.tensor([frame == 7])
        merged = merge_step(mixtures[:, part], scores[:, part], torch.tensor([1]), state, ending)
        assert merged.embeddings.shape == (1, 2, WIDTH)
        came.append(given(merged))
    assert came == [[], [], [], [(1, 0)], [(2, 3)], [], [], [(2, 6)]]
    assert not state.piece.any()
    assert not state.total.any()
    assert not state.weight.any()
    assert state.position.tolist() == [8]


@torch.inference_mode()
def test_a_stream_may_end_without_another_frame() -> None:
    mixtures, scores = heard([3, 3])
    state, none = initial_state(2, WIDTH), torch.zeros(2, dtype=torch.int64)
    both, frames = mixtures.expand(2, -1, -1), scores.expand(2, -1, -1)
    going_on = torch.zeros(2, dtype=torch.bool)
    assert not merge_step(both, frames, torch.tensor([2, 1]), state, going_on).counts.any()
    for empty in (both[:, :0], both):
        held = state.select(torch.arange(2))
        merged = merge_step(empty, frames[:, : empty.shape[1]], none, held, ~going_on)
        assert merged.counts.tolist() == [1, 1]
        assert given(merged) == given(merged, 1) == [(3, 0)]
        torch.testing.assert_close(merged.embeddings[1, 0], mixtures[0, 0])
        assert not held.piece.any()


@torch.inference_mode()
def test_no_step_waits_for_a_number() -> None:
    """Shapes do not depend on what is read, so that a GPU can record a step once."""
    with torch.device("meta"):
        state = initial_state(5, WIDTH, torch.device("meta"))
        lengths = torch.zeros(5, dtype=torch.int64)
        shapes = torch.empty(5, 3, WIDTH), torch.empty(5, 3, PIECES + 1)
        merged = merge_step(*shapes, lengths, state, lengths > 0)
    assert merged.embeddings.shape == (5, 4, WIDTH)
    assert merged.counts.shape == (5,)


def test_half_precision_stays_half() -> None:
    mixtures, scores = heard([0, 0, 1])
    merged = merge(mixtures.bfloat16(), scores, torch.tensor([3]))
    assert merged.embeddings.dtype == torch.bfloat16
    torch.testing.assert_close(
        merged.embeddings.float(),
        merge(mixtures, scores, torch.tensor([3])).embeddings,
        atol=0.03,
        rtol=0,
    )
