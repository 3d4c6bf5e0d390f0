"""The voice encoder and the recogniser's decoder compute what transformers' Moonshine computes."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import MoonshineConfig, MoonshineForConditionalGeneration

from minmo.model.block_streaming import BlockStreamingEncoder
from minmo.model.moonshine_encoder import (
    SAMPLES_PER_FRAME,
    SAMPLES_SEEN_PER_FRAME,
    MoonshineEncoder,
    MoonshineEncoderConfig,
)
from minmo.model.moonshine_recognizer import MoonshineRecognizer, MoonshineRecognizerConfig
from minmo.model.recognition import repetition
from minmo.model.sense_voice_encoder import SenseVoiceEncoderConfig
from minmo.model.voice_encoder import VoiceEncoderConfig, build_voice_encoder
from minmo.model.whisper_encoder import WhisperEncoderConfig
from minmo.weights.load import load_state_dict, read_config
from tests.listening import recordings, weights_or_skip
from tests.streaming_encoders import (
    check_an_hour,
    check_any_chunking,
    check_bfloat16,
    check_endings,
    check_left_context,
    stream,
)

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """The same weights in transformers and here, and a clip `[1, samples]`."""

    reference: MoonshineForConditionalGeneration
    encoder: MoonshineEncoder
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
    encoder = MoonshineEncoder(MoonshineEncoderConfig.from_checkpoint(config)).eval()
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
def test_tokens_read_one_by_one_say_where_the_next_one_is_heard(weights: Pair) -> None:
    tokens = torch.arange(1, 9)
    frames = weights.encoder(weights.clip)
    expected = weights.reference(weights.clip, decoder_input_ids=tokens[None]).logits[0]
    cache = weights.decoder.start(frames)
    readings = [weights.decoder.follow(int(token), cache) for token in tokens]
    found = torch.stack([reading.logits for reading in readings])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    for reading in readings:
        assert reading.attention.shape == frames.shape[1:2]
        assert float(reading.attention.sum()) == pytest.approx(1, abs=1e-4)


def test_a_text_read_as_a_whole_is_read_as_token_by_token(weights: Pair) -> None:
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        frames = weights.encoder(weights.clip)
    count = frames.shape[1]
    everything = torch.ones(1, 1, count, dtype=torch.bool)
    found = weights.decoder.read(tokens, frames, everything)
    expected = weights.reference(weights.clip, decoder_input_ids=tokens).logits
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    # A token that sees the first frames alone does not know of the others.
    seen = everything.expand(1, 8, count).clone()
    seen[:, :, count // 2 :] = False
    half = weights.decoder.read(tokens, frames[:, : count // 2], everything[:, :, : count // 2])
    found = weights.decoder.read(tokens, frames, seen)
    torch.testing.assert_close(found, half, atol=TOLERANCE, rtol=0)


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
    again = MoonshineEncoder(weights.encoder.config).eval()
    again.load_state_dict(weights.encoder.state_dict())
    torch.testing.assert_close(again(weights.clip), weights.encoder(weights.clip))


@pytest.mark.parametrize("samples", [895, 896, 1278, 1279, 16000, 16001])
def test_the_number_of_frames_follows_from_the_number_of_samples(samples: int) -> None:
    config = MoonshineEncoderConfig(
        width=8, mlp_width=8, layers=1, heads=1, rotary_dim=4, rotary_theta=10_000.0
    )
    encoder = MoonshineEncoder(config)
    assert encoder(torch.zeros(1, samples)).shape == (1, encoder.frames_of(samples), 8)


def test_a_frame_sees_the_samples_that_it_is_said_to_see() -> None:
    config = MoonshineEncoderConfig(
        width=8, mlp_width=8, layers=0, heads=1, rotary_dim=4, rotary_theta=10_000.0
    )
    encoder = MoonshineEncoder(config)
    encoder.groupnorm = torch.nn.Identity()  # it looks at the whole clip
    clip = torch.randn(1, 5000, requires_grad=True)
    encoder(clip)[0, 3].square().sum().backward()
    assert clip.grad is not None
    seen = clip.grad[0].nonzero()
    first = 3 * SAMPLES_PER_FRAME
    assert (int(seen.min()), int(seen.max())) == (first, first + SAMPLES_SEEN_PER_FRAME - 1)


def test_a_clip_without_a_frame_is_refused() -> None:
    config = MoonshineEncoderConfig(
        width=8, mlp_width=8, layers=1, heads=1, rotary_dim=4, rotary_theta=10_000.0
    )
    with pytest.raises(ValueError, match="894 samples is too short for one frame: pad it to 895"):
        MoonshineEncoder(config)(torch.zeros(1, 894))


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


def small(**changed: int) -> MoonshineEncoder:
    sizes = {"width": 32, "mlp_width": 64, "layers": 2, "heads": 2, "rotary_dim": 12}
    torch.manual_seed(3)
    config = MoonshineEncoderConfig(
        **sizes | {"block_frames": 3, "left_blocks": 2} | changed, rotary_theta=10_000.0
    )
    encoder = MoonshineEncoder(config)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if "norm" not in name:
                value.mul_(2.0)
        encoder.conv1.weight.mul_(5.0)
    return encoder.eval()


def speech(samples: int, clips: int = 1) -> Tensor:
    return torch.from_numpy(recordings()[0].samples[:samples]).view(clips, -1)


def test_any_chunking_gives_what_the_whole_clip_gives() -> None:
    check_any_chunking(small(), speech(28_000, clips=2))


def test_a_stream_may_end_anywhere() -> None:
    check_endings(small(), speech(32_000, clips=2))


def test_an_hour_takes_no_more_memory_and_frames_are_the_same_as_at_the_start() -> None:
    check_an_hour(small(), speech(24_000), layers=2)


def test_left_context_is_bounded() -> None:
    encoder = small(left_blocks=1)
    # The running normalisation remembers everything: here it is made constant.
    encoder.accumulate = torch.ones_like  # type: ignore[method-assign]
    check_left_context(encoder, speech(20_000), layers=2)


@torch.inference_mode()
def test_one_block_over_all_of_a_clip_is_the_clip() -> None:
    clip = speech(SAMPLES_SEEN_PER_FRAME + 30 * SAMPLES_PER_FRAME)
    found = small(block_frames=40).forward_causal(clip)
    torch.testing.assert_close(found, small()(clip), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_frames_are_normalised_by_all_that_was_heard_up_to_the_end_of_their_block() -> None:
    encoder = small(layers=0)
    clip = speech(16_000)
    found = encoder.forward_causal(clip)
    for block in range(3):
        end = (block + 1) * encoder.block_samples + encoder.look_ahead
        expected = encoder(clip[:, :end])[:, -3:]
        torch.testing.assert_close(found[:, 3 * block :][:, :3], expected, atol=1e-5, rtol=0)


def test_it_trains_under_the_mask_of_the_stream() -> None:
    encoder = small()
    encoder.forward_causal(speech(8_000)).square().mean().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None] == []


def test_a_step_of_no_samples_is_refused() -> None:
    encoder = small()
    with pytest.raises(ValueError, match="a step of no samples: give at least 1"):
        encoder.step(torch.zeros(1, 0), torch.zeros(1, dtype=torch.long), encoder.initial_state(1))


def test_a_step_of_a_block_takes_one_round_whatever_waits_in_its_slots() -> None:
    encoder = small()
    state = encoder.initial_state(2)
    for lengths in ([encoder.block_samples, 5], [encoder.block_samples, 0]):
        frames, _ = encoder.step(
            torch.zeros(2, encoder.block_samples), torch.tensor(lengths), state
        )
        assert frames.shape == (2, encoder.block_frames, 32)


@pytest.mark.parametrize(
    "config",
    [
        MoonshineEncoderConfig(16, 32, 1, 2, 6, 10_000.0),
        WhisperEncoderConfig(8, 16, 32, 1, 2),
        SenseVoiceEncoderConfig(8, width=16, mlp_width=32, layers=1, text_layers=0, heads=2),
    ],
)
def test_every_family_is_built_from_its_config_and_offers_the_same(
    config: VoiceEncoderConfig,
) -> None:
    with torch.device("meta"):
        build_voice_encoder(config)
    encoder = build_voice_encoder(config)
    assert encoder.sample_rate == 16_000
    assert encoder.block_samples == config.block_frames * encoder.samples_per_frame
    assert encoder(torch.zeros(1, 4_000)).shape[2] == encoder.width == 16
    assert encoder.forward_causal(torch.zeros(1, 4_000)).isfinite().all()
    state = encoder.initial_state(3)
    samples = encoder.block_samples + encoder.look_ahead
    frames, counts = encoder.step(torch.zeros(3, samples), torch.tensor([0, samples, 1]), state)
    assert frames.shape[0] == 3
    assert counts.tolist() == [0, config.block_frames, 0]


@pytest.mark.parametrize(
    "config",
    [
        MoonshineEncoderConfig(32, 32, 2, 2, 6, 10_000.0),
        WhisperEncoderConfig(16, 32, 32, 2, 2),
        SenseVoiceEncoderConfig(8, width=32, mlp_width=32, layers=2, text_layers=1, heads=2),
    ],
)
def test_every_family_streams_in_bfloat16(config: VoiceEncoderConfig) -> None:
    torch.manual_seed(0)
    encoder = build_voice_encoder(config)
    assert isinstance(encoder, BlockStreamingEncoder)
    check_bfloat16(encoder, speech(30_000))


@pytest.mark.parametrize(
    "config",
    [
        MoonshineEncoderConfig(32, 32, 2, 2, 6, 10_000.0),
        WhisperEncoderConfig(16, 32, 32, 2, 2),
        SenseVoiceEncoderConfig(8, width=32, mlp_width=32, layers=2, text_layers=1, heads=2),
    ],
)
def test_a_step_reads_no_value_back_from_its_device(config: VoiceEncoderConfig) -> None:
    # A CUDA graph can hold it then. The meta device has no values at all.
    meta = torch.device("meta")
    with meta:
        encoder = build_voice_encoder(config)
    state = encoder.initial_state(2, device=meta)
    samples = torch.zeros(2, encoder.block_samples, device=meta)
    encoder.step(samples, torch.zeros(2, dtype=torch.long, device=meta), state)
    encoder.flush(torch.zeros(2, dtype=torch.bool, device=meta), state)


@torch.inference_mode()
def test_what_stands_behind_a_length_may_be_anything() -> None:
    encoder = small()
    state = encoder.initial_state(1)
    clip = torch.full((1, encoder.block_samples), torch.nan)
    clip[:, :400] = speech(400)
    encoder.step(clip, torch.tensor([400]), state)
    whole = encoder.forward_causal(speech(6_400))[0]
    found = stream(encoder, speech(6_400)[:, 400:], state)
    torch.testing.assert_close(found, whole[: len(found)], atol=TOLERANCE, rtol=0)
