"""What must hold between the sizes of a preset: within a module, and from module to module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from minmo.model.features import KaldiFbank
from minmo.model.sense_voice_encoder import SenseVoiceEncoderConfig
from minmo.model.spelling import LETTERS
from minmo.model.vocoder import VocoderConfig
from minmo.model.whisper_encoder import WhisperEncoderConfig
from minmo.presets.errors import Problem
from minmo.presets.rates import SPEECH_TOKENS_HZ, frame_rate_hz, mel_rate_hz

# Each of the first is as large as the second, because one module reads what the other makes.
_EQUAL = (
    ("recognizer.width", "voice_encoder.width"),
    ("input_projector.input_width", "voice_encoder.width"),
    ("input_projector.output_width", "llm.width"),
    ("duplex_predictor.input_width", "llm.width"),
    ("output_projector.input_width", "llm.width"),
    ("output_projector.output_width", "voice_token_lm.width"),
    ("speech_tokenizer.input_width", "voice_encoder.width"),
    ("flow_matching.speech_tokens", "voice_token_lm.speech_tokens"),
    ("flow_matching.speaker_width", "speaker_embedding.width"),
    ("flow_matching.chunk_tokens", "voice_token_lm.speech_group"),
    ("vocoder.mel_bins", "flow_matching.mel_bins"),
)
# Each width is cut into so many heads.
_DIVIDED = (
    ("width", "heads"),
    ("encoder_width", "encoder_heads"),
    ("heads", "kv_heads"),
)
# Their attention rotates all channels of a head, two at a time.
_ROTATING = ("input_projector", "duplex_predictor", "speech_tokenizer")


def misfits(configs: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields what does not fit.

    Args:
        configs: every module's config by its name; None for one that the preset has not.
    """
    for module, config in configs.items():
        if config is not None:
            yield from _inside(module, config)
    for key, other in _EQUAL:
        found, expected = _value(configs, key), _value(configs, other)
        if found is not None and expected is not None and found != expected:
            yield Problem(key, f"{expected}, as {other} is", str(found))
    yield from _across(configs)


def _inside(module: str, config: Any) -> Iterator[Problem]:
    for name, divisor in _DIVIDED:
        whole, part = getattr(config, name, None), getattr(config, divisor, None)
        # A module with a head_dim of its own need not cut its width evenly.
        free = name == "width" and hasattr(config, "head_dim")
        if whole and part and not free and whole % part:
            yield Problem(
                f"{module}.{name}", f"a multiple of {module}.{divisor}, {part}", str(whole)
            )
    if getattr(config, "head_dim", 2) % 2:
        yield Problem(f"{module}.head_dim", "an even number, which rotates", str(config.head_dim))
    if (
        module in _ROTATING
        and config.width % config.heads == 0
        and config.width % (2 * config.heads)
    ):
        expected = f"a multiple of {2 * config.heads}, an even number for each of {module}.heads"
        yield Problem(f"{module}.width", expected, str(config.width))
    if hasattr(config, "rotary_dim"):
        head_dim = config.width // config.heads
        if config.rotary_dim % 2 or config.rotary_dim > head_dim:
            expected = f"an even number, at most the {head_dim} channels of a head"
            yield Problem(f"{module}.rotary_dim", expected, str(config.rotary_dim))
    match config:
        case WhisperEncoderConfig() if config.width % 2 or config.width < 4:
            yield Problem(f"{module}.width", "an even number of 4 at least", str(config.width))
        case SenseVoiceEncoderConfig():
            yield from _sense_voice(module, config)
        case VocoderConfig():
            yield from _vocoder(module, config)


def _sense_voice(module: str, config: SenseVoiceEncoderConfig) -> Iterator[Problem]:
    if config.kernel_size % 2 == 0:
        yield Problem(f"{module}.kernel_size", "an odd number", str(config.kernel_size))
    room = config.frame_stride * KaldiFbank.hop - KaldiFbank.length
    if config.stacked_frames // 2 * KaldiFbank.hop > room:
        expected = f"so few that they end within {module}.frame_stride, {config.frame_stride}"
        yield Problem(f"{module}.stacked_frames", expected, str(config.stacked_frames))


def _vocoder(module: str, config: VocoderConfig) -> Iterator[Problem]:
    for size, rate in zip(config.upsample_kernel_sizes, config.upsample_rates, strict=True):
        if size < rate or (not config.causal and (size - rate) % 2):
            even = "" if config.causal else ", or by an even number more"
            expected = f"each at least its rate of {module}.upsample_rates{even}"
            found = f"{size} for a rate of {rate}"
            yield Problem(f"{module}.upsample_kernel_sizes", expected, found)
    for name in ("block_kernel_sizes", "source_kernel_sizes"):
        even_sizes = [size for size in getattr(config, name) if size % 2 == 0]
        if even_sizes and not config.causal:
            expected = f"odd numbers, as {module}.causal is false"
            yield Problem(f"{module}.{name}", expected, ", ".join(map(str, even_sizes)))


def _across(configs: Mapping[str, Any]) -> Iterator[Problem]:
    projector, flow = configs["input_projector"], configs["flow_matching"]
    tokenizer, token_lm = configs["speech_tokenizer"], configs["voice_token_lm"]
    if projector.kernel_size < projector.stride:
        expected = f"at least input_projector.stride, {projector.stride}, or frames are lost"
        yield Problem("input_projector.kernel_size", expected, str(projector.kernel_size))
    if projector.letters not in (0, len(LETTERS)):
        expected = f"{len(LETTERS)}, the letters that speech is spelled with, or 0 for none"
        yield Problem("input_projector.letters", expected, str(projector.letters))
    if flow.encoder_width % 2:
        expected = "an even number, for sines and cosines"
        yield Problem("flow_matching.encoder_width", expected, str(flow.encoder_width))
    if flow.look_ahead_tokens >= flow.chunk_tokens:
        expected = f"less than flow_matching.chunk_tokens, {flow.chunk_tokens}"
        yield Problem("flow_matching.look_ahead_tokens", expected, str(flow.look_ahead_tokens))
    if tokenizer.levels < 3 or tokenizer.levels % 2 == 0:
        expected = "an odd number of 3 at least"
        yield Problem("speech_tokenizer.levels", expected, str(tokenizer.levels))
    codes = tokenizer.levels**tokenizer.dimensions
    if codes != token_lm.speech_tokens:
        expected = f"{codes}, speech_tokenizer.levels to the power of its dimensions"
        yield Problem("voice_token_lm.speech_tokens", expected, str(token_lm.speech_tokens))
    group = Fraction(tokenizer.tokens_per_group, tokenizer.frames_per_group)
    rate = frame_rate_hz(configs["voice_encoder"]) * group
    if rate != SPEECH_TOKENS_HZ:
        yield Problem(
            "speech_tokenizer.tokens_per_group",
            f"{SPEECH_TOKENS_HZ} speech tokens a second of frames",
            f"{float(rate):g} a second",
        )
    vocoder = configs["vocoder"]
    if mel_rate_hz(vocoder) != 2 * SPEECH_TOKENS_HZ:
        yield Problem(
            "vocoder.upsample_rates",
            f"{2 * SPEECH_TOKENS_HZ} mel frames a second, two for each speech token: "
            f"{Fraction(vocoder.sample_rate_hz, 2 * SPEECH_TOKENS_HZ)} samples a frame",
            f"{vocoder.hop} samples a frame",
        )


def _value(configs: Mapping[str, Any], key: str) -> Any:
    module, _, name = key.partition(".")
    return getattr(configs[module], name, None)
