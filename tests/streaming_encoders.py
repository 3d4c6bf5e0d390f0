"""What every voice encoder has to hold when it streams, on any weights."""

from copy import deepcopy

import torch
from torch import Tensor

from minmo.model.block_streaming import BlockStreamingEncoder, EncoderState
from tests.streaming_table import check_streaming

TOLERANCE = 1e-4
"""float32, for frames whose channels are of the order of one."""


@torch.inference_mode()
def check_any_chunking(
    encoder: BlockStreamingEncoder, clip: Tensor, atol: float = TOLERANCE
) -> None:
    """Pieces of any size, garbage behind lengths, slots that wait and slots that are reset.

    Args:
        encoder: with any weights.
        clip: `[batch, samples]`, cut to whole blocks.
        atol: how far a frame may be off.
    """
    block = encoder.block_samples
    blocks = (clip.shape[1] - encoder.look_ahead) // block
    clip = clip[:, : blocks * block + encoder.look_ahead]
    check_streaming(
        encoder,
        clip,
        whole=encoder.forward_causal(clip),
        chunks=(block // 3, block, 2 * block + 77),
        atol=atol,
    )


@torch.inference_mode()
def check_endings(encoder: BlockStreamingEncoder, clip: Tensor, atol: float = TOLERANCE) -> None:
    """A stream may end anywhere: `flush` gives what is left, and the slot is like new.

    Args:
        encoder: with any weights.
        clip: `[2, samples]`, three blocks or more; the second one goes on beside the endings.
        atol: how far a frame may be off.
    """
    block, shortest = encoder.block_samples, encoder.shortest_clip
    ends = [shortest - 1, shortest, block - 1, block, block + encoder.look_ahead - 1]
    ends += [block + encoder.look_ahead, 2 * block + shortest, 3 * block - 1]
    state, fresh = encoder.initial_state(2), encoder.initial_state(2)
    ending = torch.tensor([True, False])
    beside: list[Tensor] = []
    fed = 0
    for end in ends:
        made: list[Tensor] = []
        for start in range(0, end, block):
            lengths = [min(block, end - start), min(block // 2, clip.shape[1] - fed)]
            piece = torch.zeros(2, block)
            piece[0, : lengths[0]] = clip[0, start : start + lengths[0]]
            piece[1, : lengths[1]] = clip[1, fed : fed + lengths[1]]
            frames, counts = encoder.step(piece, torch.tensor(lengths), state)
            made.append(frames[0, : int(counts[0])])
            beside.append(frames[1, : int(counts[1])])
            fed += lengths[1]
        frames, counts = encoder.flush(ending, state)
        found = torch.cat([*made, frames[0, : int(counts[0])]])
        assert (len(found), int(counts[1])) == (encoder.frames_of(end), 0)
        if len(found):
            whole = encoder.forward_causal(clip[:1, :end])[0]
            torch.testing.assert_close(found, whole, atol=atol, rtol=0)
        for now, new in zip(state.tensors(), fresh.tensors(), strict=True):
            assert torch.equal(now[0], new[0]), "the slot is not like new"
    whole = encoder.forward_causal(clip[1:])[0, : sum(map(len, beside))]
    assert len(whole) > encoder.block_frames
    torch.testing.assert_close(torch.cat(beside), whole, atol=atol, rtol=0)


@torch.inference_mode()
def check_an_hour(
    encoder: BlockStreamingEncoder,
    clip: Tensor,
    layers: int | None = None,
    atol: float = TOLERANCE,
) -> None:
    """After an hour the state takes as much memory, and frames are what they should be.

    An hour is not streamed: the number of frames is set to what it would be after one. Keys in the
    state then stand at other distances than they should, until none of them is seen.

    Args:
        encoder: with any weights.
        clip: `[1, samples]`.
        layers: Transformer layers, if frames depend on their positions by distances alone.
        atol: how far a frame may be off.
    """
    state = encoder.initial_state(1)
    size = state.size_bytes()
    half = clip.shape[1] // 2 // encoder.block_samples * encoder.block_samples
    stream(encoder, clip[:, :half], state)
    assert state.size_bytes() == size
    later = state.select(torch.tensor([0]))
    ring = encoder.block_frames * (encoder.left_blocks + 1)
    later.position += 3600 * encoder.sample_rate // encoder.samples_per_frame // ring * ring
    expected = stream(encoder, clip[:, half:], state)
    found = stream(encoder, clip[:, half:], later)
    assert len(found) and torch.isfinite(found).all()
    assert later.size_bytes() == size
    if layers is not None:
        seen = layers * encoder.left_blocks * encoder.block_frames
        assert len(found) > seen + encoder.block_frames
        torch.testing.assert_close(found[seen:], expected[seen:], atol=atol, rtol=0)


def stream(encoder: BlockStreamingEncoder, clip: Tensor, state: EncoderState) -> Tensor:
    """The frames of one stream, `[frames, width]`, in steps of a block."""
    made = []
    for piece in clip.split(encoder.block_samples, dim=1):
        frames, counts = encoder.step(piece, torch.tensor([piece.shape[1]]), state)
        made.append(frames[0, : int(counts)])
    return torch.cat(made)


@torch.inference_mode()
def check_left_context(encoder: BlockStreamingEncoder, clip: Tensor, layers: int) -> None:
    """A frame depends on the blocks before it as far as all layers reach, and no further.

    Args:
        encoder: whose statistics are constant, so that only attention looks back.
        clip: `[1, samples]`, longer than all layers reach.
        layers: Transformer layers.
    """
    changed = clip.clone()
    changed[:, : encoder.block_samples] *= -3
    difference = (encoder.forward_causal(clip) - encoder.forward_causal(changed)).abs()
    # The second block's first frames see samples of the first one themselves.
    reach = (layers * encoder.left_blocks + 2) * encoder.block_frames
    assert difference.shape[1] > reach + encoder.block_frames
    assert difference[:, reach:].max() < 1e-5
    seen = encoder.left_blocks * encoder.block_frames
    assert difference[:, seen : seen + encoder.block_frames].max() > 1e-4


@torch.inference_mode()
def check_bfloat16(encoder: BlockStreamingEncoder, clip: Tensor) -> None:
    """In half the memory a stream gives what the whole clip gives, as exactly as it can.

    Args:
        encoder: with any weights, in float32.
        clip: `[1, samples]`.
    """
    half = deepcopy(encoder).to(torch.bfloat16)
    found = stream(half, clip, half.initial_state(1, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    whole, exact = (
        module.forward_causal(clip)[0, : len(found)].float() for module in (half, encoder)
    )
    # Either may round the other way: both are as far from the exact frames.
    error = (whole - exact).square().mean().sqrt()
    assert (found.float() - whole).square().mean().sqrt() < error
    assert error < 0.05 * exact.square().mean().sqrt()
