"""Probing: one probe for each step of a stream, the same however the stream is cut."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from minmo.model.probing import (
    STEP_EMBEDDINGS,
    ProbingState,
    initial_state,
    probe_step,
    probes,
)
from tests.streaming_table import check_streaming

WIDTH = 5


def clips(frames: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, frames, WIDTH, generator=torch.Generator().manual_seed(frames))


def expected(clip: Tensor) -> Tensor:
    """Probes `[probes, width]` of a clip, written as one would say it."""
    steps = [
        clip[end - STEP_EMBEDDINGS : end].mean(0)
        for end in range(STEP_EMBEDDINGS, len(clip) + 1, STEP_EMBEDDINGS)
    ]
    return torch.stack(steps) if steps else torch.zeros(0, clip.shape[-1])


@pytest.mark.parametrize("frames", [0, 2, 3, 17, 60])
def test_a_probe_is_the_mean_of_its_step(frames: int) -> None:
    clip = clips(frames)
    found = probes(clip, torch.full((3,), frames))
    wanted = torch.stack([expected(row) for row in clip])
    count = frames // STEP_EMBEDDINGS
    assert found.counts.tolist() == [count] * 3
    torch.testing.assert_close(found.embeddings[:, :count], wanted)
    assert found.steps[0, :count].tolist() == list(range(count))
    assert not found.embeddings[:, count:].any()


def test_what_stands_behind_a_length_does_not_matter() -> None:
    clip, lengths = clips(17), torch.tensor([17, 7, 0])
    clean = probes(clip, lengths)
    clip[1, 7:], clip[2] = torch.nan, torch.nan
    for made, wanted in zip(probes(clip, lengths), clean, strict=True):
        assert torch.equal(made, wanted)
    assert clean.counts.tolist() == [5, 2, 0]


def test_any_chunks_give_what_the_whole_clip_gives() -> None:
    def step(chunk: Tensor, lengths: Tensor, state: ProbingState) -> tuple[Tensor, Tensor]:
        made = probe_step(chunk, lengths, state)
        return torch.cat((made.embeddings, made.steps[..., None].float()), -1), made.counts

    clip = clips(61)
    whole = probes(clip, torch.full((3,), 61))
    numbered = torch.cat((whole.embeddings, whole.steps[..., None].float()), -1)
    module = cast(
        "nn.Module", SimpleNamespace(initial_state=lambda slots: initial_state(slots, WIDTH))
    )
    check_streaming(module, clip, whole=list(numbered[:, :20]), step=step, atol=0)


def test_gradients_reach_the_embeddings_of_complete_steps() -> None:
    clip = clips(8, batch=1).requires_grad_()
    probes(clip, torch.tensor([8])).embeddings.sum().backward()
    assert clip.grad is not None
    wanted = torch.zeros(8).index_fill_(0, torch.arange(6), 1 / STEP_EMBEDDINGS)
    torch.testing.assert_close(clip.grad[0], wanted[:, None].expand(-1, WIDTH))


@torch.inference_mode()
def test_no_step_waits_for_a_number() -> None:
    """Shapes do not depend on what is read, so that a GPU can record a step once."""
    with torch.device("meta"):
        state = initial_state(5, WIDTH, torch.device("meta"))
        made = probe_step(torch.empty(5, 4, WIDTH), torch.zeros(5, dtype=torch.int64), state)
    assert made.embeddings.shape == (5, 2, WIDTH)
    assert made.counts.shape == (5,)
