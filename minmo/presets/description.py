"""What a preset is, in figures: its modules, their parameters, and how often each stream ticks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from torch import nn

from minmo.presets.build import build_module, modules_of
from minmo.presets.building import SizesOnly
from minmo.presets.paper import (
    COMPARED_WITH_PAPER,
    MINI_FILES_MB,
    MINI_PARAMETERS,
    MINI_PIECES,
    PRETRAINED,
    SUM,
    TABLE_1,
)
from minmo.presets.preset import Preset
from minmo.presets.rates import HEARD_SAMPLES_HZ, SPEECH_TOKENS_HZ, frame_rate_hz, mel_rate_hz

# What a number takes in the files that people download: float16, and int32 for token ids.
_FLOAT_BYTES, _WHOLE_BYTES = 2, 4


@dataclass(frozen=True)
class ModuleDescription:
    """One box of the paper's figure.

    Attributes:
        name: of its table in the preset.
        what: it is.
        input: shape, frames before channels.
        output: shape.
        parameters: trained numbers.
        paper: count that the paper gives, as printed; None where it gives none.
        ratio: ours over the paper's.
        passes: within 2 %, or equal once rounded as the paper rounds; None where the preset is
            not meant to have the paper's sizes.
        note: on where the sizes come from.
    """

    name: str
    what: str
    input: str
    output: str
    parameters: int
    paper: str | None = None
    ratio: float | None = None
    passes: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Stream:
    """Something that flows from module to module.

    Attributes:
        name: what it is made of.
        rate_hz: how many a second.
        per: how many of the stream before make one of it, or what sets its pace.
    """

    name: str
    rate_hz: float
    per: str


@dataclass(frozen=True)
class Limit:
    """A figure that must stay below another.

    Attributes:
        name: what is measured.
        found: how much there is.
        limit: how much there may be.
        unit: of both.
    """

    name: str
    found: float
    limit: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.found <= self.limit


@dataclass(frozen=True)
class Description:
    """A preset in figures.

    Attributes:
        preset: its name.
        summary: what it is for.
        modules: in the order of the data.
        total: the sum that the paper gives, of the modules that it counts.
        streams: from the user's samples to the assistant's.
        limits: what is asked of the preset beside the paper's figures.
    """

    preset: str
    summary: str
    modules: tuple[ModuleDescription, ...]
    total: ModuleDescription
    streams: tuple[Stream, ...]
    limits: tuple[Limit, ...]


def describe(preset: Preset) -> Description:
    """Builds every module, without memory for its weights, and counts."""
    mini = preset.name == "mini"
    if mini and preset.recognition_pieces is None:
        preset = replace(preset, recognition_pieces=MINI_PIECES)
    counted, file_bytes = {}, {}
    for name in modules_of(preset):
        with SizesOnly():
            module = build_module(preset, name)
        counted[name] = _parameters(module)
        file_bytes[name] = _file_bytes(module)
    compared = preset.name == COMPARED_WITH_PAPER
    modules = tuple(
        _module(preset, name, parameters, compared) for name, parameters in counted.items()
    )
    return Description(
        preset=preset.name,
        summary=preset.summary,
        modules=modules,
        total=_total(counted, compared),
        streams=_streams(preset),
        limits=_limits(counted, file_bytes) if mini else (),
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _file_bytes(module: nn.Module) -> int:
    """What its tensors take in a file: floating-point numbers in 2 bytes, others in 4 at most."""
    return sum(
        tensor.numel()
        * (_FLOAT_BYTES if tensor.is_floating_point() else min(tensor.element_size(), _WHOLE_BYTES))
        for tensor in module.state_dict().values()
    )


def _module(preset: Preset, name: str, parameters: int, compared: bool) -> ModuleDescription:
    what, takes, gives = _explained(preset, name)
    figure = TABLE_1.get(name)
    if figure is None or not compared:
        return ModuleDescription(name, what, takes, gives, parameters)
    return ModuleDescription(
        name,
        what,
        takes,
        gives,
        parameters,
        paper=figure.text,
        ratio=parameters / figure.parameters,
        passes=figure.is_met_by(parameters),
        note=figure.note,
    )


def _total(counted: dict[str, int], compared: bool) -> ModuleDescription:
    parameters = sum(counted[name] for name in TABLE_1)
    what = "what the paper's Table 1 counts"
    if not compared:
        return ModuleDescription("sum", what, "", "", parameters)
    ratio = parameters / SUM.parameters
    return ModuleDescription(
        "sum", what, "", "", parameters, paper=SUM.text, ratio=ratio, note=SUM.note
    )


def _explained(preset: Preset, name: str) -> tuple[str, str, str]:
    """What a module is, and the shapes of what it takes and gives."""
    llm, voice, vocoder = preset.llm, preset.voice_token_lm, preset.vocoder
    projector, tokenizer = preset.input_projector, preset.speech_tokenizer
    family = type(preset.voice_encoder).__name__.removesuffix("EncoderConfig")
    head = preset.recognition_head
    vocabulary = preset.recognizer.vocabulary_size if preset.recognizer else 0
    frames = f"[batch, frames, {preset.voice_encoder.width}]"
    hidden = f"[positions, {llm.width}]"
    mel = f"[batch, mel frames, {vocoder.mel_bins}]"
    return {
        "voice_encoder": (f"encoder of {family}", "[batch, samples]", frames),
        "recognizer": ("decoder: text of frames", frames, f"[batch, tokens, {vocabulary}]"),
        "input_projector": (
            f"{projector.layers} Transformer layers, 1 convolution, {projector.stride}x",
            frames,
            f"[batch, embeddings, {projector.output_width}]",
        ),
        "recognition_head": (
            "pieces of text heard; rows of the LLM",
            f"[batch, embeddings, {head.width}]",
            f"[batch, embeddings, {head.pieces + 1}]",
        ),
        "llm": (
            f"{'Qwen2.5' if llm.qkv_bias else 'Llama'} decoder, {llm.layers} layers",
            hidden,
            hidden,
        ),
        "duplex_predictor": (
            "1 Transformer layer, 1 linear-softmax layer",
            f"[batch, positions, {llm.width}]",
            "[batch, positions, 2, 2]",
        ),
        "output_projector": (
            "1 linear layer" + ", tokens' letters" * bool(preset.output_projector.spelling_width),
            f"[vectors, 2 x {llm.width}]",
            f"[vectors, {voice.width}]",
        ),
        "voice_token_lm": (
            f"decoder, {voice.layers} layers, {voice.text_group}:{voice.speech_group}",
            f"[positions, {voice.width}]",
            f"[positions, {voice.classes}]",
        ),
        "speech_tokenizer": (
            f"quantiser, {tokenizer.levels}^{tokenizer.dimensions} codes; for training",
            frames,
            "[batch, speech tokens]",
        ),
        "speaker_embedding": (
            "CAM++: a vector of a voice",
            f"[batch, 10 ms, {preset.speaker_embedding.mel_bins}]",
            f"[batch, {preset.speaker_embedding.width}]",
        ),
        "flow_matching": (
            f"token2wav: {preset.flow_matching.solver_steps} solver steps",
            "[batch, speech tokens]",
            mel,
        ),
        "vocoder": (
            "token2wav: causal HiFT" if vocoder.causal else "token2wav: HiFT",
            mel,
            f"[batch, mel frames x {vocoder.hop}]",
        ),
    }[name]


def _streams(preset: Preset) -> tuple[Stream, ...]:
    frames = frame_rate_hz(preset.voice_encoder)
    stride, voice = preset.input_projector.stride, preset.voice_token_lm
    tokenizer, vocoder = preset.speech_tokenizer, preset.vocoder
    text = Fraction(SPEECH_TOKENS_HZ * voice.text_group, voice.speech_group)
    mel = mel_rate_hz(vocoder)
    grouped = f"{tokenizer.frames_per_group} frames make {tokenizer.tokens_per_group}"
    return (
        Stream("user's samples", HEARD_SAMPLES_HZ, ""),
        Stream("frames", float(frames), f"{HEARD_SAMPLES_HZ / frames} samples"),
        Stream("speech embeddings", float(frames / stride), f"{stride} frames"),
        Stream("text tokens, spoken", float(text), f"{voice.text_group}:{voice.speech_group}"),
        Stream("speech tokens", SPEECH_TOKENS_HZ, grouped),
        Stream("mel frames", float(mel), f"{mel / SPEECH_TOKENS_HZ} a speech token"),
        Stream("assistant's samples", vocoder.sample_rate_hz, f"{vocoder.hop} a mel frame"),
    )


def _limits(counted: dict[str, int], file_bytes: dict[str, int]) -> tuple[Limit, ...]:
    own = sum(count for name, count in counted.items() if name not in PRETRAINED)
    limits = [Limit("trained modules", own / 1e6, MINI_PARAMETERS / 1e6, "M parameters")]
    for name, (modules, limit) in MINI_FILES_MB.items():
        size = sum(file_bytes[module] for module in modules)
        limits.append(Limit(f"{name} file", size / 1e6, limit, "MB in float16"))
    return tuple(limits)
