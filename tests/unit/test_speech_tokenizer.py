"""The speech tokenizer: frames to tokens, whole or streamed, and what training makes of them."""

import dataclasses
import math

import pytest
import torch

from minmo.model.speech_tokenizer import (
    CodeUsage,
    FiniteScalarQuantizer,
    SpeechTokenDecoder,
    SpeechTokenizer,
    SpeechTokenizerConfig,
    speech_tokenizer_loss,
)
from tests.streaming_table import check_endless, check_streaming

# Five frames of 24 ms for three tokens, and two of 20 ms for one.
_FIVE_TO_THREE = SpeechTokenizerConfig(
    input_width=6,
    width=16,
    mlp_width=24,
    heads=2,
    layers=2,
    levels=3,
    dimensions=8,
    frames_per_group=5,
    tokens_per_group=3,
    left_groups=2,
    decoder_layers=1,
)
_TWO_TO_ONE = dataclasses.replace(_FIVE_TO_THREE, frames_per_group=2, tokens_per_group=1)
_RATES = pytest.mark.parametrize("config", [_FIVE_TO_THREE, _TWO_TO_ONE], ids=["5:3", "2:1"])


def _tokenizer(config: SpeechTokenizerConfig) -> SpeechTokenizer:
    torch.manual_seed(0)
    return SpeechTokenizer(config).eval()


def _quantizer(levels: int = 3, dimensions: int = 8) -> FiniteScalarQuantizer:
    """One that reads its digits from the first channels as they are."""
    quantizer = FiniteScalarQuantizer(dimensions, levels, dimensions)
    with torch.no_grad():
        quantizer.project_down.weight.copy_(torch.eye(dimensions))
        quantizer.project_down.bias.zero_()
    return quantizer


def test_a_token_has_the_rounded_levels_as_its_digits() -> None:
    vectors = torch.tensor([[9.0, -9, 0, 0.5, 0.6, -0.6, 9, 0], [-9.0] * 8, [9.0] * 8])
    _, tokens = _quantizer()(vectors)
    # tanh(0.5) = 0.46 rounds to 0, tanh(0.6) = 0.54 to 1.
    digits = [2, 0, 1, 1, 2, 0, 2, 1]
    expected = sum(digit * 3**place for place, digit in enumerate(digits))
    assert tokens.tolist() == [expected, 0, 3**8 - 1]


@pytest.mark.parametrize(("levels", "dimensions"), [(3, 8), (5, 3)])
def test_every_token_is_the_token_of_its_own_vector(levels: int, dimensions: int) -> None:
    quantizer = _quantizer(levels, dimensions)
    tokens = torch.arange(levels**dimensions)
    half = levels // 2
    digits = torch.stack([tokens // levels**i % levels - half for i in range(dimensions)], -1)
    vectors, named = quantizer(torch.atanh(digits / (half + 0.01)))
    assert torch.equal(named, tokens)
    torch.testing.assert_close(quantizer.decode(tokens), vectors)


def test_the_gradient_passes_the_rounding() -> None:
    quantizer = _quantizer()
    vectors = torch.randn(4, 8, requires_grad=True)
    quantizer(vectors)[0].sum().backward()
    assert vectors.grad is not None
    expected = 0.999 * (1 - torch.tanh(vectors) ** 2) * quantizer.project_up.weight.sum(0)
    torch.testing.assert_close(vectors.grad, expected)


def test_an_untrained_quantizer_uses_most_of_its_codes() -> None:
    torch.manual_seed(0)
    usage = CodeUsage(3**4)
    tokens = FiniteScalarQuantizer(32, 3, 4)(torch.randn(1, 4000, 32))[1]
    usage.update(tokens, torch.tensor([4000]))
    assert usage.perplexity > 0.7 * 3**4


def test_levels_without_a_middle_are_refused() -> None:
    with pytest.raises(ValueError, match="levels is 4: it must be odd"):
        FiniteScalarQuantizer(8, 4, 8)


@_RATES
def test_a_streams_tokens_are_the_whole_clips(config: SpeechTokenizerConfig) -> None:
    tokenizer = _tokenizer(config)
    clip = torch.randn(3, 63, config.input_width)
    assert len(tokenizer(clip).unique()) > 20
    check_streaming(tokenizer, clip, atol=0)


@_RATES
def test_a_long_stream_takes_no_more_than_a_short_one(config: SpeechTokenizerConfig) -> None:
    reach = config.layers * config.left_groups * config.frames_per_group
    check_endless(_tokenizer(config), (config.input_width,), reach=reach, frames=30_000)


@_RATES
def test_tokens_come_at_25_hz_and_an_unfinished_group_has_none(
    config: SpeechTokenizerConfig,
) -> None:
    frames_per_second = {5: 125 / 3, 2: 50}[config.frames_per_group]
    tokens = _tokenizer(config)(torch.randn(1, round(12 * frames_per_second) + 1, 6))
    assert tokens.shape == (1, 12 * 25)
    assert _tokenizer(config)(torch.randn(1, config.frames_per_group - 1, 6)).shape == (1, 0)


def test_what_stands_behind_a_clips_length_changes_nothing() -> None:
    tokenizer = _tokenizer(_FIVE_TO_THREE)
    clips, lengths = torch.randn(2, 30, 6), torch.tensor([30, 18])
    expected = tokenizer(clips, lengths)
    clips[1, 18:] = 1e6
    again = tokenizer(clips, lengths)
    assert torch.equal(again[0], expected[0])
    assert torch.equal(again[1, :9], expected[1, :9])
    assert torch.equal(tokenizer(clips[1:, :18])[0], expected[1, :9])


def test_a_frame_sees_its_group_and_a_few_before() -> None:
    tokenizer = _tokenizer(dataclasses.replace(_FIVE_TO_THREE, layers=1))
    clip = torch.randn(1, 50, 6, requires_grad=True)
    tokenizer.quantize(clip).vectors[0, 4 * 3].sum().backward()
    assert clip.grad is not None
    seen = clip.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert seen == list(range(2 * 5, 5 * 5))


def test_training_learns_words_and_frames() -> None:
    torch.manual_seed(0)
    config = _FIVE_TO_THREE
    tokenizer, decoder = SpeechTokenizer(config), SpeechTokenDecoder(config, vocabulary_size=7)
    # Clips of sounds that last; each is a unit of the text.
    units = torch.tensor([[1, 4, 2, 6], [5, 0, 3, 0]])
    sounds = torch.randn(7, config.input_width)
    clips = sounds[units].repeat_interleave(15, dim=1) + 0.1 * torch.randn(2, 60, 6)
    lengths, unit_lengths = torch.tensor([60, 48]), torch.tensor([4, 3])
    parameters = [*tokenizer.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    losses = []
    for _ in range(120):
        quantized = tokenizer.quantize(clips, lengths)
        decoded = decoder(quantized.vectors, quantized.lengths)
        losses.append(speech_tokenizer_loss(decoded, quantized, clips, units, unit_lengths))
        optimizer.zero_grad()
        losses[-1].loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in parameters)
    assert losses[0].recognition > 2 and losses[-1].recognition < 1
    assert losses[0].reconstruction > 0.9 and losses[-1].reconstruction < 0.3
    likeliest = decoded.scores[0].argmax(-1).unique_consecutive()
    assert likeliest[likeliest != 7].tolist() == units[0].tolist()
    usage = CodeUsage(config.speech_tokens)
    usage.update(quantized.tokens, quantized.lengths)
    assert usage.used >= 6


def test_the_loss_is_of_what_is_there() -> None:
    config = _FIVE_TO_THREE
    tokenizer, decoder = _tokenizer(config), SpeechTokenDecoder(config, vocabulary_size=7)
    clips, lengths = torch.randn(2, 30, 6), torch.tensor([30, 13])
    units, unit_lengths = torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])

    def loss() -> list[float]:
        quantized = tokenizer.quantize(clips, lengths)
        decoded = decoder(quantized.vectors, quantized.lengths)
        losses = speech_tokenizer_loss(decoded, quantized, clips, units, unit_lengths, 2.0)
        made, wanted = decoded.features, clips
        there = torch.cat((made[0] - wanted[0], made[1, :10] - wanted[1, :10]))
        frames = torch.cat((wanted[0], wanted[1, :10]))
        expected = there.square().mean() / frames.var(0, correction=0).mean()
        torch.testing.assert_close(losses.reconstruction, expected)
        total = losses.recognition + 2 * losses.reconstruction
        torch.testing.assert_close(losses.loss, total)
        return [value.item() for value in losses]

    expected = loss()
    clips[1, 13:] = 1e3
    units[1, 1] = 5
    assert loss() == pytest.approx(expected)


def test_clips_without_a_token_or_with_too_much_text_do_not_break_the_loss() -> None:
    config = _FIVE_TO_THREE
    tokenizer, decoder = _tokenizer(config), SpeechTokenDecoder(config, vocabulary_size=7)
    quantized = tokenizer.quantize(torch.randn(2, 10, 6), torch.tensor([4, 10]))
    decoded = decoder(quantized.vectors, quantized.lengths)
    units = torch.arange(7).repeat(2, 1)
    losses = speech_tokenizer_loss(
        decoded, quantized, torch.randn(2, 10, 6), units, torch.tensor([7, 7])
    )
    assert losses.recognition == 0
    losses.loss.backward()
    gradients = [parameter.grad for parameter in tokenizer.parameters()]
    assert all(grad is None or torch.isfinite(grad).all() for grad in gradients)


def test_perplexity_is_how_many_codes_would_be_used_equally_often() -> None:
    usage = CodeUsage(20)
    assert (usage.used, usage.perplexity) == (0, 1.0)
    usage.update(torch.tensor([[3, 5, 9, 9], [7, 19, 0, 0]]), torch.tensor([2, 2]))
    assert usage.used == 4
    assert usage.perplexity == pytest.approx(4)
    usage.update(torch.tensor([[3] * 4]), torch.tensor([4]))
    shares = [5 / 8, 1 / 8, 1 / 8, 1 / 8]
    assert usage.perplexity == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
