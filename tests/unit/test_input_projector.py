"""The input projector streams: pieces give what the whole gives, and nothing looks ahead."""

import pytest
import torch
from torch import Tensor

from minmo.model.input_projector import InputProjector, InputProjectorConfig
from minmo.presets import load_preset
from tests.streaming_table import check_endless, check_streaming

FRAMES = torch.randn(3, 61, 16, generator=torch.Generator().manual_seed(0))


def config(
    width: int = 16, kernel_size: int = 4, stride: int = 2, letters: int = 0
) -> InputProjectorConfig:
    return InputProjectorConfig(
        input_width=16,
        width=width,
        mlp_width=32,
        heads=2,
        output_width=24,
        left_context=9,
        kernel_size=kernel_size,
        stride=stride,
        letters=letters,
    )


def letters(projector: InputProjector) -> Tensor:
    scores = projector.listen(FRAMES)[1]
    assert scores is not None
    return scores


def untrained(sizes: InputProjectorConfig) -> InputProjector:
    projector = InputProjector(sizes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in projector.parameters():
            if parameter.dim() > 1:
                deviation = parameter[0].numel() ** -0.5
                parameter.normal_(0, deviation, generator=generator)
    return projector


@pytest.mark.parametrize(
    ("width", "kernel_size", "stride", "letters"),
    [(16, 4, 2, 0), (20, 3, 2, 5), (20, 7, 3, 0), (16, 1, 1, 0), (16, 3, 1, 0), (16, 4, 2, 5)],
)
def test_a_stream_gives_what_the_whole_clip_gives(
    width: int, kernel_size: int, stride: int, letters: int
) -> None:
    projector = untrained(config(width, kernel_size, stride, letters))
    assert projector(FRAMES).shape == (3, 61 // stride, 24)
    check_streaming(projector, FRAMES)


def test_an_hour_takes_no_more_memory_and_no_accuracy() -> None:
    projector = untrained(config())
    reach = 2 * 9 + 4
    check_endless(projector, (16,), reach=reach, frames=150_000, chunk=300)


@torch.inference_mode()
def test_a_call_says_how_many_embeddings_each_slot_completed() -> None:
    projector = untrained(config())
    state = projector.initial_state(3)
    for lengths, expected in [
        ([1, 2, 0], [0, 1, 0]),
        ([1, 5, 1], [1, 2, 0]),
        ([0, 1, 5], [0, 1, 3]),
    ]:
        embeddings, counts = projector.step(FRAMES[:, :5], torch.tensor(lengths), state)
        assert embeddings.shape == (3, 3, 24)
        assert counts.tolist() == expected


@torch.inference_mode()
def test_too_few_frames_make_no_embedding_yet() -> None:
    projector = untrained(config(stride=3))
    assert projector(FRAMES[:, :2]).shape == (3, 0, 24)
    state, made = projector.initial_state(3), []
    for start, length in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)]:
        lengths = torch.full((3,), length)
        embeddings, counts = projector.step(FRAMES[:, start : start + length], lengths, state)
        made.append(embeddings[0, : int(counts[0])])
    assert [len(part) for part in made] == [0, 0, 0, 0, 1]
    torch.testing.assert_close(made[-1], projector(FRAMES[:, :3])[0])


@torch.inference_mode()
def test_no_step_waits_for_a_number() -> None:
    """Shapes do not depend on what is read, so that a GPU can record a step once."""
    with torch.device("meta"):
        projector = InputProjector(config(width=20, letters=5))
        state = projector.initial_state(5)
        lengths = torch.zeros(5, dtype=torch.int64)
        embeddings, counts = projector.step(torch.empty(5, 6, 16), lengths, state)
    assert (embeddings.shape, counts.shape) == ((5, 3, 24), (5,))


@torch.inference_mode()
def test_not_even_nan_behind_a_length_reaches_a_stream() -> None:
    projector = untrained(config(letters=5))
    broken, lengths = FRAMES.clone(), torch.tensor([61, 30, 0])
    broken[1, 30:], broken[2] = torch.nan, torch.nan
    state = projector.initial_state(3)
    projector.step(broken, lengths, state)
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors())
    embeddings = projector(broken, lengths)
    torch.testing.assert_close(embeddings[1, :15], projector(FRAMES)[1, :15])
    assert not embeddings[1, 15:].any()
    assert not embeddings[2].any()


@torch.inference_mode()
def test_an_embedding_depends_on_no_later_frame() -> None:
    projector = untrained(config())
    changed = FRAMES.clone()
    changed[:, 40:] += torch.randn(1, 21, 16, generator=torch.Generator().manual_seed(1))
    before, after = projector(FRAMES), projector(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20], after[:, 20])


@torch.inference_mode()
def test_the_past_that_counts_is_bounded() -> None:
    sizes = config()
    projector = untrained(sizes)
    changed = FRAMES.clone()
    changed[:, :10] += torch.randn(1, 10, 16, generator=torch.Generator().manual_seed(1))
    reach = 10 + sizes.layers * sizes.left_context + sizes.kernel_size
    first_untouched = -(-reach // sizes.stride)
    before, after = projector(FRAMES), projector(changed)
    torch.testing.assert_close(before[:, first_untouched:], after[:, first_untouched:])


def test_the_order_of_the_past_counts() -> None:
    """Without positions, attention would take the frames in sight as a heap."""
    projector = untrained(config(kernel_size=2))
    swapped = FRAMES[:, [1, 0, *range(2, 61)]]
    before, after = projector(FRAMES), projector(swapped)
    assert (before[:, 1] - after[:, 1]).abs().max() > 1e-4


def test_a_whole_clip_can_be_trained_on() -> None:
    projector = untrained(config(width=20, letters=5))
    projector(FRAMES, torch.tensor([61, 30, 4])).square().sum().backward()
    gradients = [parameter.grad for parameter in projector.parameters()]
    assert all(isinstance(grad, Tensor) and grad.abs().sum() > 0 for grad in gradients)


@pytest.mark.parametrize("width", [16, 20])
def test_a_frame_says_its_letter_and_the_next_layer_reads_it(width: int) -> None:
    projector = untrained(config(width, letters=5))
    scores = letters(projector)
    assert scores.shape == (3, 61, 6)
    before = projector(FRAMES)
    assert projector.letter_head is not None
    with torch.no_grad():
        # The letter that is heard is another one; nothing else has changed.
        projector.letter_head.bias[2] += 100
    torch.testing.assert_close(letters(projector)[..., :2], scores[..., :2])
    assert (projector(FRAMES) - before).abs().max() > 0.1
    assert torch.equal(letters(projector).argmax(-1), torch.full((3, 61), 2))


def test_what_the_second_layer_reads_of_letters_is_how_likely_each_is() -> None:
    projector = untrained(config(letters=5))
    read: list[Tensor] = []
    first, second = projector.layers
    first.register_forward_hook(lambda _, __, made: read.append(made))
    second.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    chances = letters(projector).softmax(-1)
    made, given = read
    torch.testing.assert_close(given, made + chances @ projector.letter_proj.weight.T)


def test_letters_are_trained_by_what_is_made_of_them_as_well() -> None:
    projector = untrained(config(letters=5))
    projector(FRAMES).square().sum().backward()
    assert projector.letter_head is not None
    assert projector.letter_head.weight.grad is not None
    assert projector.letter_head.weight.grad.any()


def test_a_projector_without_letters_hears_none() -> None:
    projector = untrained(config())
    assert not [name for name in projector.state_dict() if "letter" in name]
    embeddings, heard = projector.listen(FRAMES)
    assert heard is None
    assert torch.equal(embeddings, projector(FRAMES))


def test_a_convolution_that_would_skip_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size is 1: at least the stride, 2"):
        InputProjector(config(kernel_size=1))


def test_heads_must_fit_the_width() -> None:
    with pytest.raises(ValueError, match="width is 18: it must be a multiple of 4"):
        InputProjector(config(width=18))


@pytest.mark.parametrize(("preset", "least", "most"), [("8b", 166.6, 173.4), ("mini", 2, 4)])
def test_a_preset_has_the_papers_size(preset: str, least: float, most: float) -> None:
    with torch.device("meta"):
        projector = InputProjector(load_preset(preset).input_projector)
    millions = sum(parameter.numel() for parameter in projector.parameters()) / 1e6
    assert least <= millions <= most
