"""The voice encoder and the recogniser's decoder compute what transformers' Moonshine computes."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import MoonshineConfig, MoonshineForConditionalGeneration

from minmo.model.moonshine_recognizer import MoonshineRecognizer, MoonshineRecognizerConfig
from minmo.model.repetition import repetition
from minmo.model.voice_encoder import (
    SAMPLES_PER_FRAME,
    SAMPLES_SEEN_PER_FRAME,
    VoiceEncoder,
    VoiceEncoderConfig,
    frames_of,
)
from minmo.weights.load import load_state_dict, read_config
from tests.listening import recordings, weights_or_skip

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """The same weights in transformers and here, and a clip `[1, samples]`."""

    reference: MoonshineForConditionalGeneration
    encoder: VoiceEncoder
    decoder: MoonshineRecognizer
    clip: Tensor


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"model.{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if prefix in key}


def small_random() -> Pair:
    config = MoonshineConfig(
        vocab_size=60,
        hidden_size=40,
        intermediate_size=64,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=32,
        partial_rotary_factor=0.8,
        initializer_range=0.2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    reference = MoonshineForConditionalGeneration(config).eval()
    clip = 0.3 * torch.randn(1, 9000)
    return pair(reference, config.to_dict(), reference.state_dict(), clip)


def real() -> Pair:
    folder = weights_or_skip("voice_encoder")
    reference = MoonshineForConditionalGeneration.from_pretrained(folder).eval()
    clip = torch.from_numpy(recordings()[0].samples)[None]
    return pair(reference, read_config(folder), load_state_dict(folder), clip)


def pair(
    reference: MoonshineForConditionalGeneration,
    config: dict[str, object],
    state: dict[str, Tensor],
    clip: Tensor,
) -> Pair:
    encoder = VoiceEncoder(VoiceEncoderConfig.from_checkpoint(config)).eval()
    encoder.load_state_dict(part(state, "encoder"))
    decoder = MoonshineRecognizer(MoonshineRecognizerConfig.from_checkpoint(config)).eval()
    decoder.load_state_dict(part(state, "decoder"))
    decoder.lay_out_for_steps()
    return Pair(reference, encoder, decoder, clip)


@pytest.fixture(scope="module", params=[small_random, real], ids=["random", "real"])
def weights(request: pytest.FixtureRequest) -> Pair:
    made: Pair = request.param()
    return made


@torch.inference_mode()
def test_frames_equal_those_of_transformers(weights: Pair) -> None:
    expected = weights.reference.model.encoder(weights.clip).last_hidden_state
    torch.testing.assert_close(weights.encoder(weights.clip), expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("step", [1, 3, 12])
def test_logits_equal_those_of_transformers_however_the_tokens_come(
    weights: Pair, step: int
) -> None:
    tokens = torch.arange(1, 13)[None]
    expected = weights.reference(weights.clip, decoder_input_ids=tokens).logits
    cache = weights.decoder.start(weights.encoder(weights.clip))
    found = [weights.decoder(piece, cache) for piece in tokens.split(step, dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_greedy_tokens_equal_those_of_transformers(weights: Pair) -> None:
    expected = weights.reference.generate(weights.clip, max_new_tokens=20, do_sample=False)
    found = weights.decoder.greedy(weights.encoder(weights.clip), 20)
    said = [
        token for token in expected[0, 1:].tolist() if token != weights.decoder.config.end_token
    ]
    # A random decoder repeats itself, which ours does not let pass.
    assert found == said[: len(found)]
    assert len(found) == len(said) or repetition(said[: len(found) + 36])


def test_state_dicts_carry_the_names_of_transformers(weights: Pair) -> None:
    state = {name: tuple(value.shape) for name, value in weights.reference.state_dict().items()}
    state.pop("proj_out.weight", None)
    ours = {f"model.encoder.{name}": value for name, value in weights.encoder.state_dict().items()}
    ours |= {f"model.decoder.{name}": value for name, value in weights.decoder.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in ours.items()} == state


def test_a_state_dict_can_be_loaded_again(weights: Pair) -> None:
    again = VoiceEncoder(weights.encoder.config).eval()
    again.load_state_dict(weights.encoder.state_dict())
    torch.testing.assert_close(again(weights.clip), weights.encoder(weights.clip))


@pytest.mark.parametrize("samples", [895, 896, 1278, 1279, 16000, 16001])
def test_the_number_of_frames_follows_from_the_number_of_samples(samples: int) -> None:
    config = VoiceEncoderConfig(
        width=8, mlp_width=8, layers=1, heads=1, rotary_dim=4, rotary_theta=10_000.0
    )
    assert VoiceEncoder(config)(torch.zeros(1, samples)).shape == (1, frames_of(samples), 8)


def test_a_frame_sees_the_samples_that_it_is_said_to_see() -> None:
    config = VoiceEncoderConfig(
        width=8, mlp_width=8, layers=0, heads=1, rotary_dim=4, rotary_theta=10_000.0
    )
    encoder = VoiceEncoder(config)
    encoder.groupnorm = torch.nn.Identity()  # it looks at the whole clip
    clip = torch.randn(1, 5000, requires_grad=True)
    encoder(clip)[0, 3].square().sum().backward()
    assert clip.grad is not None
    seen = clip.grad[0].nonzero()
    first = 3 * SAMPLES_PER_FRAME
    assert (int(seen.min()), int(seen.max())) == (first, first + SAMPLES_SEEN_PER_FRAME - 1)


def test_a_clip_without_a_frame_is_refused() -> None:
    config = VoiceEncoderConfig(
        width=8, mlp_width=8, layers=1, heads=1, rotary_dim=4, rotary_theta=10_000.0
    )
    with pytest.raises(ValueError, match="894 samples is too short for one frame: pad it to 895"):
        VoiceEncoder(config)(torch.zeros(1, 894))


@torch.inference_mode()
def test_more_tokens_than_positions_are_refused() -> None:
    made = small_random()
    cache = made.decoder.start(made.encoder(made.clip))
    made.decoder(torch.zeros(1, 32, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="33 tokens do not fit: an utterance has at most 32"):
        made.decoder(torch.zeros(1, 1, dtype=torch.long), cache)


def test_a_decoder_that_has_lost_the_audio_says_its_phrase_once() -> None:
    decoder = small_random().decoder
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            value.fill_(1.0 if "norm" in name else 0.0)
        direction = torch.linspace(-1, 1, decoder.config.width)
        decoder.embed_tokens.weight[:] = 0.1 * direction
        decoder.embed_tokens.weight[5] = direction
    assert decoder.greedy(torch.zeros(1, 20, decoder.config.width), 30) == [5]


@pytest.mark.parametrize(
    ("tokens", "cut"),
    [
        ([1, 2, 3], 0),
        ([7] * 7, 0),  # somebody may say a word seven times
        ([7] * 8, 7),
        ([1, 2] * 3, 0),
        ([5, 1, 2, 1, 2, 1, 2, 1, 2], 6),
        ([9, 9, *([1, 2, 3, 4, 5] * 4)], 15),
        ([1, 2] * 4 + [3], 0),  # it has gone on
    ],
)
def test_a_phrase_said_over_and_over_is_cut_to_one(tokens: list[int], cut: int) -> None:
    assert repetition(tokens) == cut
