"""The estimator of flow matching: CosyVoice 2's, causal but for a frame's own chunk."""

import pytest
import torch

from minmo.model.chunking import Beginning, Chunking, clip_view
from minmo.model.flow_estimator import FlowEstimator
from minmo.model.flow_matching import FlowMatchingConfig
from minmo.model.flow_names import from_cosyvoice
from tests.unit.flow_matching_sizes import PUBLISHED, TINY, random_flow
from tests.unit.published_flow import published_flow


@pytest.mark.parametrize("config", PUBLISHED)
@torch.inference_mode()
def test_one_chunk_over_everything_is_the_published_estimator(config: FlowMatchingConfig) -> None:
    theirs, ours = published_flow(config), random_flow(config)
    ours.load_state_dict(from_cosyvoice(theirs.state_dict()))
    noisy, mean, known = torch.randn(3, 2, 31, config.mel_bins)
    speaker = torch.randn(2, config.mel_bins)
    times = torch.tensor([0.1, 0.73])
    expected = theirs.decoder.estimator(
        noisy.mT,
        mask=torch.ones(2, 1, 31),
        mu=mean.mT,
        t=times,
        spks=speaker,
        cond=known.mT,
    ).mT
    voice = speaker[:, None].expand_as(mean)
    inputs = torch.cat((noisy, mean, voice, known), -1)
    made = _velocity(ours.estimator, inputs, times, Chunking.whole(31))
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_chunk_sees_no_later_chunk_and_only_some_before() -> None:
    estimator, chunking = random_flow().estimator, TINY.chunking.times(2)
    # Each block's layer sees two chunks back and its convolutions, as those at the end, one more.
    reach = (4 * (TINY.left_chunks + 1) + 2) * chunking.size
    inputs = torch.randn(1, 2 * reach, 4 * TINY.mel_bins)
    times = torch.tensor([0.4])
    before = _velocity(estimator, inputs, times, chunking)
    inputs[:, reach] += 1
    after = _velocity(estimator, inputs, times, chunking)
    changed = ((after - before).abs().amax(-1)[0] > 0).nonzero()[:, 0]
    own_chunk = (reach + chunking.offset) // chunking.size * chunking.size - chunking.offset
    assert changed.min() == own_chunk
    inputs[:, 0] += 1
    beyond = _velocity(estimator, inputs, times, chunking)[:, reach:]
    assert torch.equal(beyond, after[:, reach:])


@torch.inference_mode()
def test_the_branches_of_guidance_never_see_each_other() -> None:
    estimator, chunking = random_flow().estimator, TINY.chunking.times(2)
    inputs = torch.randn(2, 2, 23, 4 * TINY.mel_bins)
    bias = clip_view(chunking, torch.tensor([23, 23]), 23, torch.float32).bias
    times = [time[0] for time in estimator.embed_times(torch.tensor([0.3]))]
    both = estimator(inputs, times, bias, Beginning())
    for branch in range(2):
        alone = estimator(inputs[:, branch : branch + 1], times, bias, Beginning())
        torch.testing.assert_close(both[:, branch : branch + 1], alone, atol=1e-5, rtol=0)


def test_the_sizes_count_the_convolutions_inputs() -> None:
    class Counting(Beginning):
        channels = 0

        def before(self, frames: torch.Tensor) -> torch.Tensor:
            self.channels += frames.shape[-1]
            return super().before(frames)

    for config in (TINY, *PUBLISHED):
        estimator, past = random_flow(config).estimator, Counting()
        inputs = torch.randn(1, 1, 4, 4 * config.mel_bins)
        times = estimator.embed_times(torch.zeros(1))
        estimator(inputs, times, torch.zeros(1, 1, 1, 4), past)
        assert past.channels == estimator.sizes.tail_channels


def _velocity(
    estimator: FlowEstimator, inputs: torch.Tensor, times: torch.Tensor, chunking: Chunking
) -> torch.Tensor:
    batch, frames = inputs.shape[:2]
    bias = clip_view(chunking, torch.full((batch,), frames), frames, torch.float32).bias
    embedded = [time[:, None] for time in estimator.embed_times(times)]
    return estimator(inputs[:, None], embedded, bias, Beginning())[:, 0]
