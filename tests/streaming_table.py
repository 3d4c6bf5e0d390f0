"""What every module that streams has to hold, whatever it computes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from minmo.model.streaming import SlotState

Outputs: TypeAlias = Tensor | Sequence[Tensor]
Step: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor | tuple[Tensor, Tensor]]


@torch.inference_mode()
def check_streaming(
    module: nn.Module,
    clip: Tensor,
    *,
    whole: Outputs | None = None,
    step: Step | None = None,
    chunks: tuple[int, ...] = (1, 2, 7, 1000),
    atol: float = 1e-5,
    rtol: float = 0.0,
) -> None:
    """Streams a batch of clips in many ways; each way must give what the whole clips give.

    Slots get pieces of different lengths in the same step, also none; numbers that mean nothing
    stand behind each length; slots are reset while others go on.

    Args:
        module: has `initial_state` and, unless `step` is given, `step`.
        clip: `[batch, frames, ...]`, one clip a slot, at least two.
        whole: what must come out of each clip, `[outputs, ...]`; `module(clip)` if None.
        step: instead of `module.step`; gives outputs `[slots, outputs, ...]` and how many of them
            are there, `[slots]`, or one output a frame and no counts.
        chunks: most frames that one step takes.
        atol: how far an output may be off.
        rtol: the same, relative to its size.
    """
    step, whole = step or module.step, module(clip) if whole is None else whole
    slots, frames = clip.shape[:2]
    close = {"atol": atol, "rtol": rtol}
    for chunk in (min(chunk, frames) for chunk in chunks):
        generator = torch.Generator().manual_seed(chunk)
        state = module.initial_state(slots)
        size = state.size_bytes()
        for made, expected in zip(_stream(step, clip, state, chunk, generator), whole, strict=True):
            torch.testing.assert_close(made, expected, **close, msg=_said(f"chunks of {chunk}"))
        assert state.size_bytes() == size, "the state has grown"

        before = state.select(torch.arange(slots))
        step(_garbage(clip[:, :chunk], generator), torch.zeros(slots, dtype=torch.int64), state)
        for kept, now in zip(before.tensors(), state.tensors(), strict=True):
            assert torch.equal(kept, now), "a slot that waits has changed"

        _check_reset(step, module.initial_state(slots), clip, chunk, whole, close)


def _check_reset(
    step: Step, state: SlotState, clip: Tensor, chunk: int, whole: Outputs, close: dict[str, float]
) -> None:
    """The first slot's stream is left halfway, and another starts in its place."""
    generator = torch.Generator().manual_seed(chunk)
    slots, frames = clip.shape[:2]
    first_half = _stream(step, clip[:, : frames // 2], state, chunk, generator)
    leaving = torch.arange(slots) == 0
    state.reset(leaving)
    starts = torch.where(leaving, 0, frames // 2)
    rest = _stream(step, clip, state, chunk, generator, starts)
    torch.testing.assert_close(rest[0], whole[0], **close, msg=_said("a stream after another"))
    for slot in range(1, slots):
        made = torch.cat((first_half[slot], rest[slot]))
        torch.testing.assert_close(made, whole[slot], **close, msg=_said("beside a reset slot"))


@torch.inference_mode()
def check_endless(
    module: nn.Module,
    frame_shape: tuple[int, ...],
    *,
    reach: int,
    frames: int,
    step: Step | None = None,
    chunk: int = 1000,
    atol: float = 1e-5,
) -> None:
    """A long stream takes no more memory than a short one, and its past is forgotten.

    Args:
        module: has `initial_state` and, unless `step` is given, `step`.
        frame_shape: of one frame.
        reach: frames before the last chunk that its outputs may depend on, a multiple of what
            one output stands for.
        frames: length of the stream, a multiple of `chunk`.
        step: as in `check_streaming`.
        chunk: frames of one step, a multiple of what one output stands for.
        atol: how far an output may be off.
    """
    step, generator = step or module.step, torch.Generator().manual_seed(0)
    state, recent = module.initial_state(1), torch.zeros(1, 0, *frame_shape)
    size, lengths = state.size_bytes(), torch.tensor([chunk])
    for _ in range(frames // chunk):
        new = torch.randn(1, chunk, *frame_shape, generator=generator)
        recent = torch.cat((recent, new), dim=1)[:, -(reach + chunk) :]
        made = _parted(step(new, lengths, state), lengths)[0]
    assert state.size_bytes() == size, "the state has grown"
    fresh = module.initial_state(1)
    before = recent[:, :-chunk]
    step(before, torch.tensor([before.shape[1]]), fresh)
    expected = _parted(step(recent[:, -chunk:], lengths, fresh), lengths)[0]
    assert torch.isfinite(made).all()
    torch.testing.assert_close(made, expected, atol=atol, rtol=0, msg=_said("a long stream"))


def _stream(
    step: Step,
    clip: Tensor,
    state: SlotState,
    chunk: int,
    generator: torch.Generator,
    starts: Tensor | None = None,
) -> list[Tensor]:
    """Outputs of each slot, `[outputs, ...]`, from its start to the clip's end."""
    slots, frames = clip.shape[:2]
    position = torch.zeros(slots, dtype=torch.int64) if starts is None else starts.clone()
    made: list[list[Tensor]] = [[] for _ in range(slots)]
    while bool((position < frames).any()):
        drawn = torch.randint(0, chunk + 1, (slots,), generator=generator)
        lengths = torch.minimum(drawn, frames - position)
        piece = _garbage(clip[:, :chunk], generator)
        for slot in range(slots):
            start, length = int(position[slot]), int(lengths[slot])
            piece[slot, :length] = clip[slot, start : start + length]
        for outputs, new in zip(made, _parted(step(piece, lengths, state), lengths), strict=True):
            outputs.append(new)
        position = position + lengths
    return [torch.cat(outputs) for outputs in made]


def _parted(made: Tensor | tuple[Tensor, Tensor], lengths: Tensor) -> list[Tensor]:
    outputs, counts = made if isinstance(made, tuple) else (made, lengths)
    return [rows[: int(count)] for rows, count in zip(outputs, counts, strict=True)]


def _garbage(like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers that mean nothing, for a chunk of floats or of indices that must stay valid."""
    if like.is_floating_point():
        return 100 * torch.randn(like.shape, generator=generator)
    return like[:, torch.randperm(like.shape[1], generator=generator)].clone()


def _said(where: str) -> Callable[[str], str]:
    return lambda message: f"{where}: {message}"
