"""The input projector streams: pieces give what the whole gives, and nothing looks ahead."""

import pytest
import torch

from minmo.model.input_projector import (
    InputProjectorConfig,
    ProjectorState,
    random_input_projector,
)

CONFIG = InputProjectorConfig(
    input_width=16, output_width=24, mlp_width=32, heads=2, left_context=9
)
FRAMES = torch.randn(2, 61, 16, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize("size", [1, 2, 3, 7, 60, 61])
@pytest.mark.parametrize("kernel_size", [2, 3, 4])
def test_a_stream_gives_what_the_whole_clip_gives(size: int, kernel_size: int) -> None:
    config = InputProjectorConfig(
        input_width=16,
        output_width=24,
        mlp_width=32,
        heads=2,
        left_context=9,
        kernel_size=kernel_size,
    )
    projector = random_input_projector(config)
    state = ProjectorState()
    pieces = [projector.stream(piece, state) for piece in FRAMES.split(size, dim=1)]
    whole = projector(FRAMES)
    assert whole.shape == (2, 30, 24)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_an_embedding_depends_on_no_later_frame() -> None:
    projector = random_input_projector(CONFIG)
    changed = FRAMES.clone()
    changed[:, 40:] += 1
    before, after = projector(FRAMES), projector(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20], after[:, 20])


@torch.inference_mode()
def test_the_past_that_counts_is_bounded() -> None:
    projector = random_input_projector(CONFIG)
    changed = FRAMES.clone()
    changed[:, :10] += 1
    reach = 10 + CONFIG.layers * CONFIG.left_context + CONFIG.kernel_size
    first_untouched = -(-reach // CONFIG.stride)
    before, after = projector(FRAMES), projector(changed)
    torch.testing.assert_close(before[:, first_untouched:], after[:, first_untouched:])


@torch.inference_mode()
def test_what_a_stream_remembers_does_not_grow() -> None:
    projector = random_input_projector(CONFIG)
    state = ProjectorState()
    for _ in range(10):
        projector.stream(FRAMES, state)
    assert state.contexts[0].shape[3] == CONFIG.left_context
    assert state.tail is not None
    assert state.tail.shape[1] < CONFIG.kernel_size


def test_a_seed_makes_the_same_weights_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = random_input_projector(CONFIG)
    assert torch.equal(torch.rand(1), expected)
    second = random_input_projector(CONFIG)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    other = random_input_projector(CONFIG, seed=1)
    assert not torch.equal(first.conv.weight, other.conv.weight)


def test_a_convolution_that_would_skip_frames_is_refused() -> None:
    config = InputProjectorConfig(
        input_width=16, output_width=24, mlp_width=32, heads=2, kernel_size=1
    )
    with pytest.raises(ValueError, match="kernel_size is 1: at least the stride, 2"):
        random_input_projector(config)
