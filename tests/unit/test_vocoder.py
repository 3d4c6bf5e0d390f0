"""The vocoder: what CosyVoice 2 computes, whole or streamed, and a causal one of the same kind."""

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import minmo.presets
from minmo.model.vocoder import Vocoder, VocoderConfig, VocoderState
from minmo.model.vocoder_published import (
    convert_published_vocoder,
    fold_weights,
    normalise_weights,
)
from tests.published import published
from tests.streaming_table import check_streaming

CENTRED = VocoderConfig(
    causal=False,
    mel_bins=10,
    sample_rate_hz=24_000,
    channels=16,
    harmonics=2,
    upsample_rates=(4, 5, 3),
    upsample_kernel_sizes=(8, 11, 7),
    block_kernel_sizes=(3, 7, 5),
    block_dilations=((1, 3), (1, 3), (1, 5)),
    source_kernel_sizes=(7, 7, 11),
    source_dilations=((1, 3), (1,), (1, 3)),
    stft_size=16,
    stft_hop=4,
    pitch_channels=12,
)
CAUSAL = replace(CENTRED, causal=True)
NARROW = replace(
    CENTRED,
    channels=8,
    harmonics=8,
    upsample_rates=(2, 3),
    upsample_kernel_sizes=(4, 3),
    source_kernel_sizes=(7, 3),
    source_dilations=((1,), (1, 2)),
    stft_size=8,
    stft_hop=2,
)


def vocoder_of(config: VocoderConfig) -> Vocoder:
    """One with random weights that make sound, with a pitch that comes and goes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vocoder = Vocoder(config).eval().requires_grad_(False)
        _enliven(vocoder)
        vocoder.pitch_predictor.head.weight *= 400
        vocoder.pitch_predictor.head.bias.fill_(50)
    return vocoder


def _enliven(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.normal_(std=0.6 * fan_in**-0.5)


def mel_of(config: VocoderConfig, clips: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(clips, frames, config.mel_bins, generator=generator)


def preset_config(name: str) -> VocoderConfig:
    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    text = (Path(minmo.presets.__file__).parent / f"{name}.toml").read_text()
    return VocoderConfig(**{k: frozen(v) for k, v in tomllib.loads(text)["vocoder"].items()})


def theirs_of(config: VocoderConfig) -> nn.Module:
    torch.manual_seed(2)
    predictor = published("chatterbox.models.s3gen.f0_predictor").ConvRNNF0Predictor(
        1, config.mel_bins, config.pitch_channels
    )
    theirs = published("chatterbox.models.s3gen.hifigan").HiFTGenerator(
        in_channels=config.mel_bins,
        base_channels=config.channels,
        nb_harmonics=config.harmonics,
        sampling_rate=config.sample_rate_hz,
        nsf_voiced_threshold=10,
        upsample_rates=list(config.upsample_rates),
        upsample_kernel_sizes=list(config.upsample_kernel_sizes),
        istft_params={"n_fft": config.stft_size, "hop_len": config.stft_hop},
        resblock_kernel_sizes=list(config.block_kernel_sizes),
        resblock_dilation_sizes=[list(dilations) for dilations in config.block_dilations],
        source_resblock_kernel_sizes=list(config.source_kernel_sizes),
        source_resblock_dilation_sizes=[list(dilations) for dilations in config.source_dilations],
        f0_predictor=predictor,
    )
    _enliven(theirs)
    predictor.classifier.bias.data.fill_(150)
    generator: nn.Module = theirs.eval().requires_grad_(False)
    return generator


def streamed(
    vocoder: Vocoder, mel: Tensor, pieces: list[int], last_alone: bool = False
) -> list[Tensor]:
    """What each step gives of one stream, `[samples]`."""
    state, made = vocoder.initial_state(1), []
    ending = torch.tensor([True])
    for index, piece in enumerate(mel.split(pieces, dim=1)):
        last = ending if index == len(pieces) - 1 and not last_alone else None
        samples, counts = vocoder.step(piece, torch.tensor([piece.shape[1]]), last, state)
        made.append(samples[0, : int(counts)])
    if last_alone:
        samples, counts = vocoder.step(mel[:, :1], torch.tensor([0]), ending, state)
        made.append(samples[0, : int(counts)])
    return made


@pytest.mark.parametrize("config", [CENTRED, NARROW, replace(NARROW, pitch_channels=3)])
@pytest.mark.parametrize("frames", [2, 9])
def test_centred_vocoder_computes_what_cosyvoice_2_computes(
    config: VocoderConfig, frames: int
) -> None:
    theirs = theirs_of(config)
    converted = convert_published_vocoder(theirs.state_dict(), config)
    assert not converted.missing
    assert not converted.left_over
    ours = Vocoder(config).requires_grad_(False)
    ours.load_state_dict(converted.weights)
    mel = mel_of(config, 2, frames)

    pitch = ours.pitch(mel)
    torch.testing.assert_close(pitch, theirs.f0_predictor(mel.mT), atol=1e-4, rtol=1e-6)
    source = ours.source(pitch)
    expected = theirs.decode(mel.mT, source[:, None])
    assert expected.std() > 0.01
    torch.testing.assert_close(ours.filter(mel, source), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(mel), expected, atol=1e-5, rtol=1e-5)


def test_the_large_preset_has_the_published_names_and_shapes() -> None:
    config = preset_config("8b")
    with torch.device("meta"):
        theirs, ours = theirs_of(config), Vocoder(config)
    converted = convert_published_vocoder(theirs.state_dict(), config)
    assert not converted.missing
    assert not converted.left_over
    expected = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.weights.items()} == expected


def test_older_files_and_plain_ones_are_read_too() -> None:
    theirs = theirs_of(CENTRED)
    newer = theirs.state_dict()
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in newer.items()
    }
    expected = convert_published_vocoder(newer, CENTRED).weights
    for name, tensor in convert_published_vocoder(older, CENTRED).weights.items():
        assert torch.equal(tensor, expected[name])
    assert torch.allclose(expected["conv_in.weight"], theirs.conv_pre.weight)


def test_conversion_names_what_has_no_counterpart() -> None:
    weights = theirs_of(CENTRED).state_dict()
    del weights["conv_pre.bias"]
    weights["f0_predictor.condnet.1.weight"] = torch.zeros(1)
    weights["extra.weight"] = torch.zeros(1)
    converted = convert_published_vocoder(weights, CENTRED)
    assert converted.missing == ("conv_in.bias",)
    assert converted.left_over == ("extra.weight", "f0_predictor.condnet.1.weight")


def test_half_a_normalised_weight_is_refused() -> None:
    weights = theirs_of(CENTRED).state_dict()
    del weights["ups.1.parametrizations.weight.original0"]
    with pytest.raises(ValueError, match=r"ups\.1\.weight comes with a direction and no length"):
        convert_published_vocoder(weights, CENTRED)


def test_normalising_weights_for_training_changes_no_output() -> None:
    vocoder, mel = vocoder_of(CENTRED), mel_of(CENTRED, 1, 5)
    names, expected = list(vocoder.state_dict()), vocoder(mel)
    normalise_weights(vocoder)
    torch.testing.assert_close(vocoder(mel), expected)
    assert any("original0" in name for name in vocoder.state_dict())
    fold_weights(vocoder)
    assert sorted(vocoder.state_dict()) == sorted(names)
    torch.testing.assert_close(vocoder(mel), expected)


@pytest.mark.parametrize("config", [CAUSAL, CENTRED, NARROW])
def test_streams_give_what_whole_clips_give(config: VocoderConfig) -> None:
    vocoder, frames = vocoder_of(config).double(), 29
    mel = mel_of(config, 3, frames).double()

    def step(chunk: Tensor, lengths: Tensor, state: VocoderState) -> tuple[Tensor, Tensor]:
        last = state.positions + lengths == frames
        return vocoder.step(chunk.double(), lengths, last if bool(last.any()) else None, state)

    start = vocoder.initial_state
    vocoder.initial_state = lambda slots: start(slots, dtype=torch.float64)  # type: ignore[method-assign]
    with torch.inference_mode():
        whole = vocoder(mel)
    assert whole.std() > 0.01
    assert whole.abs().max() < 0.99
    check_streaming(vocoder, mel, whole=whole, step=step, chunks=(2, 1000), atol=1e-8)


@torch.inference_mode()
@pytest.mark.parametrize("config", [CAUSAL, CENTRED])
def test_float32_streams_stay_within_rounding(config: VocoderConfig) -> None:
    vocoder, mel = vocoder_of(config), mel_of(config, 1, 40)
    made = torch.cat(streamed(vocoder, mel, [24, 1, 15]))
    torch.testing.assert_close(made, vocoder(mel)[0], atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("config", [CAUSAL, CENTRED, NARROW])
@pytest.mark.parametrize("frames", [1, 2, 30])
def test_a_stream_can_end_without_more_frames(config: VocoderConfig, frames: int) -> None:
    vocoder, mel = vocoder_of(config), mel_of(config, 1, frames)
    made = torch.cat(streamed(vocoder, mel, [frames], last_alone=True))
    assert made.shape == (frames * config.hop,)
    if frames > 1:
        torch.testing.assert_close(made, vocoder(mel)[0], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_stream_that_ends_before_it_starts_gives_nothing() -> None:
    vocoder = vocoder_of(CENTRED)
    _, counts = vocoder.step(
        mel_of(CENTRED, 1, 2), torch.tensor([0]), torch.tensor([True]), vocoder.initial_state(1)
    )
    assert counts.tolist() == [0]


@torch.inference_mode()
@pytest.mark.parametrize("config", [CAUSAL, CENTRED, NARROW])
def test_the_first_samples_come_right_after_the_look_ahead(config: VocoderConfig) -> None:
    vocoder = vocoder_of(config)
    frames = vocoder.look_ahead_frames + 1
    made = streamed(vocoder, mel_of(config, 1, frames + 1), [1] * (frames + 1), last_alone=True)
    counts = [len(samples) for samples in made]
    assert counts[: frames - 1] == [0] * (frames - 1)
    assert counts[frames - 1] == frames * config.hop - vocoder.delay_samples
    assert counts[frames] == config.hop
    assert sum(counts) == (frames + 1) * config.hop


@torch.inference_mode()
def test_a_causal_vocoder_sees_no_later_frame() -> None:
    vocoder, mel = vocoder_of(CAUSAL), mel_of(CAUSAL, 1, 12)
    other = mel.clone()
    other[:, 7:] = 5
    expected, made = vocoder(mel), vocoder(other)
    assert vocoder.look_ahead_frames == vocoder.delay_samples == 0
    assert torch.equal(made[:, : 7 * CAUSAL.hop], expected[:, : 7 * CAUSAL.hop])
    assert not torch.equal(made[:, 7 * CAUSAL.hop :][:, :50], expected[:, 7 * CAUSAL.hop :][:, :50])


@torch.inference_mode()
def test_the_delay_of_a_centred_vocoder_is_no_longer_than_it_has_to_be() -> None:
    vocoder, mel = vocoder_of(CENTRED), mel_of(CENTRED, 1, 60)
    changed = mel.clone()
    changed[:, 30] += 20
    difference = (vocoder(changed) - vocoder(mel)).abs()[0]
    earliest = int(difference.nonzero()[0])
    seen = 31 * CENTRED.hop - earliest
    assert seen <= vocoder.delay_samples <= seen + CENTRED.hop


@torch.inference_mode()
@pytest.mark.parametrize("causal", [True, False])
def test_an_hour_leaves_no_trace_but_phase_and_position(causal: bool) -> None:
    config = replace(
        NARROW,
        causal=causal,
        sample_rate_hz=200,
        upsample_rates=(2,),
        upsample_kernel_sizes=(4,),
        source_kernel_sizes=(3,),
        source_dilations=((1, 2),),
        channels=4,
        harmonics=1,
    )
    vocoder, steps, chunk = vocoder_of(config).double(), 45, 4000
    state, fresh = (vocoder.initial_state(1, dtype=torch.float64) for _ in range(2))
    size, lengths = state.size_bytes(), torch.tensor([chunk])
    generator = torch.Generator().manual_seed(3)
    for index in range(steps):
        mel = torch.randn(1, chunk, config.mel_bins, generator=generator).double()
        if index == steps - 2:
            fresh.positions.copy_(state.positions)
            vocoder.step(mel, lengths, None, fresh)
        made, _ = vocoder.step(mel, lengths, None, state)
        if index == steps - 2:
            fresh.turns.copy_(state.turns)
    expected, _ = vocoder.step(mel, lengths, None, fresh)
    assert state.positions.tolist() == [180_000]
    assert 0 <= float(state.turns) < 1
    assert state.size_bytes() == size
    assert torch.isfinite(made).all()
    # What the filter remembers of the other phase before.
    reach = 100 * config.hop
    torch.testing.assert_close(made[:, reach:], expected[:, reach:], atol=1e-9, rtol=0)


def test_the_waveform_teaches_the_filter_and_the_pitch_teaches_its_predictor() -> None:
    vocoder, mel = vocoder_of(CAUSAL).requires_grad_(True), mel_of(CAUSAL, 2, 6)
    vocoder(mel, starts=torch.tensor([5, 70])).square().sum().backward()
    for name, parameter in vocoder.named_parameters():
        taught = parameter.grad is not None and bool(parameter.grad.any())
        assert taught != name.startswith("pitch_predictor."), name
    vocoder.pitch(mel).sum().backward()
    assert all(parameter.grad is not None for parameter in vocoder.pitch_predictor.parameters())


def test_a_given_pitch_takes_the_place_of_the_predicted_one() -> None:
    vocoder, mel = vocoder_of(CENTRED), mel_of(CENTRED, 1, 4)
    assert torch.equal(vocoder(mel, vocoder.pitch(mel)), vocoder(mel))
    assert not torch.equal(vocoder(mel, torch.full((1, 4), 222.0)), vocoder(mel))


def test_presets_keep_their_sizes() -> None:
    with torch.device("meta"):
        mini, large = (Vocoder(preset_config(name)) for name in ("mini", "8b"))
    assert sum(parameter.numel() for parameter in mini.parameters()) <= 2_000_000
    assert sum(parameter.numel() for parameter in large.parameters()) == 20_806_557
    assert mini.config.hop == large.config.hop == 480
    assert (mini.look_ahead_frames, large.look_ahead_frames) == (0, 19)
    assert mini.initial_state(1).size_bytes() < 100_000
    assert large.initial_state(1).size_bytes() < 2_000_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"upsample_kernel_sizes": (8, 11)}, "upsample_kernel_sizes has 2 entries: it needs 3"),
        ({"block_dilations": ((1,),)}, "block_dilations has 1 entries: it needs 3"),
        ({"channels": 20}, "channels is 20, which 3 stages cannot halve: take a multiple of 8"),
        ({"stft_size": 32}, "stft_size is 32: it has to be four times stft_hop, 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(CENTRED, **change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block_kernel_sizes": (3, 4, 5)}, "a centred convolution needs an odd kernel, not 4"),
        ({"upsample_kernel_sizes": (8, 10, 7)}, "a kernel of 10 cannot make 5 frames of one"),
    ],
)
def test_kernels_that_do_not_fit_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said), torch.device("meta"):
        Vocoder(replace(CENTRED, **change))


def test_every_size_is_in_the_presets() -> None:
    keys = {field.name for field in fields(VocoderConfig)}
    for name in ("mini", "8b"):
        text = (Path(minmo.presets.__file__).parent / f"{name}.toml").read_text()
        assert set(tomllib.loads(text)["vocoder"]) == keys
