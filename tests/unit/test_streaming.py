"""The slot protocol: what a stream remembers, and what it does not."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minmo.model.streaming import (
    SlotState,
    advance,
    attend,
    band_mask,
    block_mask,
    context_positions,
    is_there,
)


@dataclass
class Inner(SlotState):
    tail: torch.Tensor


@dataclass
class Outer(SlotState):
    position: torch.Tensor
    layers: list[Inner]


def filled() -> Outer:
    return Outer(torch.tensor([3, 5, 7]), [Inner(torch.ones(3, 2)), Inner(torch.ones(3, 4, 2))])


def test_a_reset_clears_the_slots_of_those_who_left_alone() -> None:
    state = filled()
    state.reset(torch.tensor([False, True, False]))
    assert state.position.tolist() == [3, 0, 7]
    assert [inner.tail.flatten(1).sum(1).tolist() for inner in state.layers] == [
        [2, 0, 2],
        [8, 0, 8],
    ]


def test_slots_can_be_taken_out_and_put_back() -> None:
    state = filled()
    slots = torch.tensor([2, 0])
    part = state.select(slots)
    assert part.position.tolist() == [7, 3]
    part.position += 10
    part.layers[1].tail.zero_()
    assert state.position.tolist() == [3, 5, 7], "a selection is a copy"
    state.put(slots, part)
    assert state.position.tolist() == [13, 5, 17]
    assert state.layers[1].tail.flatten(1).sum(1).tolist() == [0, 8, 0]
    assert state.size_bytes() == 3 * 8 + 3 * 2 * 4 + 3 * 8 * 4


def test_a_waiting_slot_keeps_its_tail_and_others_move_on_by_what_is_there() -> None:
    tail = torch.tensor([[1, 2], [1, 2], [1, 2]])[..., None]
    chunk = torch.tensor([[3, 4, 5], [3, 4, 5], [3, 4, 5]])[..., None]
    joined, after = advance(tail, chunk, torch.tensor([0, 1, 3]))
    assert joined[0, :, 0].tolist() == [1, 2, 3, 4, 5]
    assert after[..., 0].tolist() == [[1, 2], [2, 3], [4, 5]]


def test_frames_that_nobody_has_are_negative() -> None:
    found = context_positions(torch.tensor([0, 5]), torch.tensor([1, 2]), kept=2, frames=2)
    assert found.tolist() == [[-2, -1, 0, -1], [3, 4, 5, 6]]
    assert is_there(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]


def test_a_band_sees_its_past_and_a_block_sees_itself_whole() -> None:
    frames = torch.arange(6)[None]
    band = band_mask(frames, frames, left_context=2)[0, 0]
    assert band[4].tolist() == [False, False, True, True, True, False]
    block = block_mask(frames, frames, block=3, left_blocks=1, offset=1)[0, 0]
    # With an offset of 1 the blocks are [0, 1], [2, 3, 4], [5].
    assert block[0].tolist() == [True, True, False, False, False, False]
    assert block[3].tolist() == [True, True, True, True, True, False]
    assert block[5].tolist() == [False, False, True, True, True, True]


def test_who_sees_nothing_gets_zeros() -> None:
    value = torch.randn(1, 1, 2, 4)
    mask = torch.tensor([[False, False], [True, True]])[None, None]
    attended = attend(value, value, value, mask)
    assert attended[0, 0, 0].tolist() == [0] * 4
    assert bool(torch.isfinite(attended).all())


def test_a_slot_that_starts_anew_costs_no_work_on_the_others() -> None:
    state, written = filled(), []

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.overloadpacket.__name__.endswith("_"):
                written.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    with Listener():
        state.restart(1)
    assert state.position.tolist() == [3, 0, 7]
    assert [inner.tail.flatten(1).sum(1).tolist() for inner in state.layers] == [
        [2, 0, 2],
        [8, 0, 8],
    ]
    assert written == [1, 2, 8]
