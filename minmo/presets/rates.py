"""How often each stream of a preset ticks, in Hz, as exact fractions."""

from __future__ import annotations

from fractions import Fraction

from minmo.model.moonshine_encoder import SAMPLES_PER_FRAME, MoonshineEncoderConfig
from minmo.model.sense_voice_encoder import SenseVoiceEncoderConfig
from minmo.model.vocoder import VocoderConfig
from minmo.model.voice_encoder import VoiceEncoderConfig
from minmo.model.whisper_encoder import WhisperEncoderConfig

HEARD_SAMPLES_HZ = 16_000
SPEECH_TOKENS_HZ = 25
"""CosyVoice 2's; two mel frames stand for one."""
_LOG_MEL_HOP = 160


def samples_per_frame(voice_encoder: VoiceEncoderConfig) -> int:
    """Samples of 16 kHz that one frame of a voice encoder stands for."""
    match voice_encoder:
        case MoonshineEncoderConfig():
            return SAMPLES_PER_FRAME
        case WhisperEncoderConfig():
            # The second convolution halves the rate of the spectrum.
            return 2 * _LOG_MEL_HOP
        case SenseVoiceEncoderConfig():
            return voice_encoder.frame_stride * _LOG_MEL_HOP


def frame_rate_hz(voice_encoder: VoiceEncoderConfig) -> Fraction:
    """Frames a second of a voice encoder."""
    return Fraction(HEARD_SAMPLES_HZ, samples_per_frame(voice_encoder))


def mel_rate_hz(vocoder: VocoderConfig) -> Fraction:
    """Mel frames a second of a vocoder."""
    return Fraction(vocoder.sample_rate_hz, vocoder.hop)
