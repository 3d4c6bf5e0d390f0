"""The encoder of flow matching: CosyVoice 2's, and the same chunk by chunk."""

import pytest
import torch

from minmo.model.chunking import Chunking
from minmo.model.flow_encoder import MEL_FRAMES_PER_TOKEN, relative_table
from minmo.model.flow_matching import FlowMatchingConfig
from minmo.model.flow_names import from_cosyvoice
from tests.unit.flow_matching_sizes import PUBLISHED, TINY, random_flow
from tests.unit.published_flow import published_flow

CHUNKING = TINY.chunking


@pytest.mark.parametrize("config", PUBLISHED)
@torch.inference_mode()
def test_one_chunk_over_everything_is_the_published_encoder(config: FlowMatchingConfig) -> None:
    theirs, ours = published_flow(config), random_flow(config)
    ours.load_state_dict(from_cosyvoice(theirs.state_dict()))
    embeddings = torch.randn(2, 37, config.encoder_width)
    lengths = torch.tensor([37, 37])
    expected, _ = theirs.encoder(embeddings, lengths)
    made = ours.encoder(embeddings, lengths, Chunking.whole(37))
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_chunk_depends_on_its_look_ahead_and_its_context_only() -> None:
    encoder = random_flow().encoder
    tokens = 33
    embeddings = torch.randn(1, tokens, TINY.encoder_width)
    lengths = torch.tensor([tokens])
    before = encoder(embeddings, lengths, CHUNKING)

    # Chunks: 0 to 2, 3 to 7, 8 to 12. The second sees tokens 8 and 9 ahead.
    for changed, first_affected in ((9, 3), (10, 8)):
        embeddings = embeddings.clone()
        embeddings[:, changed:] += 1
        after = encoder(embeddings, lengths, CHUNKING)
        edge = first_affected * MEL_FRAMES_PER_TOKEN
        assert torch.equal(after[:, :edge], before[:, :edge])
        assert not torch.allclose(after[:, edge : edge + 2], before[:, edge : edge + 2])
        before = after

    # Three layers see two chunks back each, the convolutions between and before them one more each.
    reach = (3 * TINY.left_chunks + 3) * TINY.chunk_tokens
    far = torch.randn(1, 2 * reach, TINY.encoder_width)
    lengths = torch.tensor([2 * reach])
    before = encoder(far, lengths, CHUNKING)
    far[:, 0] += 1
    after = encoder(far, lengths, CHUNKING)
    assert torch.equal(
        after[:, reach * MEL_FRAMES_PER_TOKEN :], before[:, reach * MEL_FRAMES_PER_TOKEN :]
    )
    assert not torch.equal(after[:, : 2 * TINY.chunk_tokens], before[:, : 2 * TINY.chunk_tokens])


@torch.inference_mode()
def test_what_stands_behind_a_length_has_no_influence() -> None:
    encoder = random_flow().encoder
    embeddings = torch.randn(2, 20, TINY.encoder_width)
    lengths = torch.tensor([20, 9])
    embeddings[1, 9:] = 0
    made = encoder(embeddings, lengths, CHUNKING)
    alone = encoder(embeddings[1:, :9], lengths[1:], CHUNKING)
    torch.testing.assert_close(made[1:, :18], alone, atol=1e-5, rtol=0)
    assert made.isfinite().all()


@torch.inference_mode()
def test_a_stream_gets_what_a_clip_gets() -> None:
    encoder = random_flow().encoder
    size, look_ahead = TINY.chunk_tokens, TINY.look_ahead_tokens
    embeddings = torch.randn(2, 29, TINY.encoder_width)
    expected = encoder(embeddings, torch.tensor([29, 29]), CHUNKING)
    padded = torch.nn.functional.pad(embeddings, (0, 0, 0, size + look_ahead))
    state = encoder.initial_state(2, CHUNKING)
    start, made = 0, []
    while start < 29:
        length = min(TINY.first_chunk_tokens if start == 0 else size, 29 - start)
        ahead = min(look_ahead, 29 - start - length)
        chunk = padded[:, start : start + size + look_ahead]
        counts = [torch.full((2,), count) for count in (length, ahead, start)]
        made.append(
            encoder.step(chunk, *counts, CHUNKING, state)[:, : length * MEL_FRAMES_PER_TOKEN]
        )
        start += length
    torch.testing.assert_close(torch.cat(made, 1), expected, atol=1e-5, rtol=0)


def test_distances_are_numbered_from_the_last_frame_of_a_chunk_to_the_farthest_seen() -> None:
    table = relative_table(Chunking(size=4, offset=0, left=2), width=6)
    assert table.shape == (4 - 1 + 3 * 4, 6)
    expected = torch.tensor([0.0, 1.0] * 3)
    torch.testing.assert_close(table[3], expected)
    two = torch.tensor(2.0)
    torch.testing.assert_close(table[5, :2], torch.stack((two.sin(), two.cos())))
