"""Features equal those that the published models were trained on."""

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from minmo.model.features import (
    KaldiFbank,
    VocoderMel,
    WhisperLogMel,
    hamming_window,
    mel_filters,
    povey_window,
    speaker_features,
    stack_frames,
)
from tests.listening import recordings
from tests.published import published

CLIP = torch.from_numpy(recordings()[0].samples)


@pytest.mark.parametrize("mel_bins", [80, 128])
def test_whispers_features_equal_those_of_transformers(mel_bins: int) -> None:
    extract = WhisperFeatureExtractor(feature_size=mel_bins)
    clip = CLIP[:40_123]
    expected = extract(
        clip.numpy(), sampling_rate=16_000, return_tensors="pt", padding="do_not_pad"
    )
    found = WhisperLogMel(mel_bins)(clip[None])
    # Transformers leaves the last frame out, which for other lengths than whole frames is here.
    torch.testing.assert_close(
        found, expected.input_features.transpose(1, 2)[:, : found.shape[1]], atol=1e-4, rtol=0
    )
    assert found.shape[1] == 250


def kaldi(samples: Tensor, window: str) -> Tensor:
    filters = mel_filter_bank(
        257, 80, 20, 8000, 16_000, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    made = spectrogram(
        samples.numpy().astype(np.float64),
        window_function(400, window, periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        mel_floor=1.192092955078125e-07,
        log_mel="log",
        remove_dc_offset=True,
    )
    return torch.from_numpy(made.T).float()


def test_sense_voices_features_equal_kaldis() -> None:
    expected = kaldi(CLIP[:30_001] * 32_768, "hamming")
    found = KaldiFbank(80, hamming_window)(CLIP[None, :30_001])
    torch.testing.assert_close(found[0], expected, atol=1e-2, rtol=0)


def test_the_speakers_features_equal_kaldis_without_their_mean() -> None:
    expected = kaldi(CLIP[:30_001], "povey")
    fbank = KaldiFbank(80, povey_window, scale=1.0)
    found = speaker_features(fbank, CLIP[None, :30_001])
    torch.testing.assert_close(found[0], expected - expected.mean(0), atol=1e-2, rtol=0)
    assert found.mean(1).abs().max() < 1e-4


def test_the_vocoders_features_equal_those_of_cosyvoice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mel = published_mel(monkeypatch)
    found = VocoderMel()(CLIP[None, :45_120])
    torch.testing.assert_close(found, mel(CLIP[None, :45_120]).transpose(1, 2), atol=2e-3, rtol=0)
    assert found.shape == (1, 94, 80)


def published_mel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """CosyVoice 2's own, with the filters that it takes from librosa made by transformers."""

    def filters(sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> np.ndarray:
        made = mel_filter_bank(
            n_fft // 2 + 1, n_mels, fmin, fmax, sr, norm="slaney", mel_scale="slaney"
        )
        return made.T

    librosa = ModuleType("librosa.filters")
    librosa.mel = filters  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "librosa.filters", librosa)
    module = published("chatterbox.models.s3gen.utils.mel")
    mel: Callable[[Tensor], Tensor] = module.mel_spectrogram
    return mel


@pytest.mark.parametrize("frames", [1, 5, 6, 7, 12, 13, 40, 41, 47])
def test_a_low_frame_rate_joins_frames_as_funasr_does(frames: int) -> None:
    rows = torch.arange(frames * 3, dtype=torch.float32).view(frames, 3)
    expected = published("funasr.frontends.wav_frontend").apply_lfr(rows, 7, 6)
    assert torch.equal(stack_frames(rows, 7, 6), expected)


@pytest.mark.parametrize("scale", ["slaney", "kaldi"])
def test_mel_filters_equal_those_of_transformers(scale: str) -> None:
    slaney = scale == "slaney"
    expected = mel_filter_bank(
        201,
        40,
        20,
        8000,
        16_000,
        norm="slaney" if slaney else None,
        mel_scale=scale,
        triangularize_in_mel_space=not slaney,
    )
    found = mel_filters(16_000, 400, 40, 20, 8000, scale)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), atol=1e-6, rtol=1e-5)


def test_tables_stay_in_full_precision_when_the_weights_do_not() -> None:
    half = WhisperLogMel(80).to(torch.bfloat16)
    clip = CLIP[None, :16_000]
    assert torch.equal(half(clip), WhisperLogMel(80)(clip))


def test_a_loss_on_the_vocoders_features_reaches_the_samples() -> None:
    samples = CLIP[None, :4_800].clone().requires_grad_()
    VocoderMel()(samples).square().mean().backward()
    assert samples.grad is not None and torch.isfinite(samples.grad).all()
