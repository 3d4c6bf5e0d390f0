"""Checkpoints as others publish them: which one a folder or file is, and what it has for us."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from minmo.model import voice_token_lm
from minmo.model.flow_matching import FlowMatchingConfig
from minmo.model.flow_names import flow_name
from minmo.model.llm import LlmConfig
from minmo.model.moonshine_encoder import MoonshineEncoderConfig
from minmo.model.moonshine_recognizer import MoonshineRecognizerConfig
from minmo.model.sense_voice_encoder import SenseVoiceEncoderConfig
from minmo.model.speaker_embedding import SpeakerEmbeddingConfig
from minmo.model.vocoder import VocoderConfig
from minmo.model.vocoder_published import convert_published_vocoder
from minmo.model.voice_token_lm import VoiceTokenLmConfig
from minmo.model.whisper_encoder import WhisperEncoderConfig
from minmo.model.whisper_recognizer import WhisperRecognizerConfig
from minmo.presets import Preset, with_text_table
from minmo.weights.errors import WeightsError
from minmo.weights.naming import is_repeated, prefix_of, stored_tensors
from minmo.weights.reading import (
    map_safetensors,
    map_torch,
    read_json,
    read_mean_and_variance,
    weights_files,
)

_EXAMPLES = 3
_ADVICE = "get it again from where it was published"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "tokenizer.model",
    "generation_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
)
_SENSE_VOICE_FILES = ("chn_jpn_yue_eng_ko_spectok.bpe.model", "tokens.json", "config.yaml")


@dataclass(frozen=True)
class Found:
    """What a checkpoint holds for a module.

    Attributes:
        state: tensors under the names of the module's folder.
        missing: names, as published, that were looked for in vain.
        left_over: names, as published, that the module has no place for.
        unused: names that nothing reads, as is known, each with the reason.
    """

    state: dict[str, Tensor]
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)


class Checkpoint(Protocol):
    """A checkpoint that was recognised.

    Attributes:
        kind: what it is, for messages.
        folder: where it lies.
    """

    kind: str
    folder: Path

    def fitted(self, preset: Preset) -> Preset:
        """The preset, with what its own weights decide."""

    def modules(self, preset: Preset) -> tuple[str, ...]:
        """Modules of the preset for which it holds weights of their family."""

    def weights(self, module: str) -> tuple[Path, ...]:
        """Files that hold the module's weights."""

    def sizes(self, module: str) -> dict[str, Any]:
        """Fields of the module's config that the checkpoint states."""

    def find(self, preset: Preset, module: str) -> Found:
        """The module's tensors."""

    def config(self, preset: Preset, module: str) -> dict[str, Any]:
        """What the module's folder gets as `config.json`."""

    def companions(self, module: str) -> tuple[Path, ...]:
        """Other files that go with the module: its tokenizer, its prompt."""


def recognise(source: Path) -> Checkpoint:
    """Says which checkpoint a folder or file is.

    Raises:
        WeightsError: none that is known; says what would be.
    """
    if not source.exists():
        raise WeightsError(f"there is no {source}; give a folder or file of published weights")
    folder = source if source.is_dir() else source.parent
    if source.is_file() and source.suffix in (".pt", ".pth", ".bin"):
        return _torch_checkpoint(folder, [source])
    names = [kind.file for kind in _TORCH if kind.file]
    named = [folder / name for name in names if (folder / name).exists()]
    if source.is_dir() and named:
        return _torch_checkpoint(folder, named)
    if (folder / "config.json").exists():
        model_type = read_json(folder / "config.json").get("model_type")
        if model_type in _HUB:
            return HubCheckpoint(folder, str(model_type))
        raise WeightsError(
            f"{folder / 'config.json'} says model_type {model_type!r}; what can be imported: "
            f"{', '.join(_HUB)}"
        )
    raise WeightsError(
        f"{source} is no checkpoint that can be imported. What can: a Hugging Face folder with "
        f"config.json and model.safetensors ({', '.join(_HUB)}), FunASR's SenseVoice-Small with "
        "model.pt, CosyVoice 2 with llm.pt, flow.pt and hift.pt, or one of these files"
    )


# ---- Hugging Face -------------------------------------------------------------------------------


_STREAMING = ("block_frames", "left_blocks")
"""How an encoder streams is the preset's choice."""


def _without(sizes: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: size for name, size in sizes.items() if name not in names}


def _whisper_encoder(config: Mapping[str, Any]) -> dict[str, Any]:
    return _without(asdict(WhisperEncoderConfig.from_checkpoint(config)), _STREAMING)


def _whisper_recognizer(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": config["d_model"],
        "mlp_width": config["decoder_ffn_dim"],
        "layers": config["decoder_layers"],
        "heads": config["decoder_attention_heads"],
        "vocabulary_size": config["vocab_size"],
        "max_tokens": config["max_target_positions"],
    }


def _moonshine_encoder(config: Mapping[str, Any]) -> dict[str, Any]:
    return _without(asdict(MoonshineEncoderConfig.from_checkpoint(config)), _STREAMING)


def _moonshine_recognizer(config: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(MoonshineRecognizerConfig.from_checkpoint(config))


def _llm(config: Mapping[str, Any]) -> dict[str, Any]:
    # A preset may use less context than the model was trained for.
    return _without(asdict(LlmConfig.from_dict(config)), ("max_context",))


@dataclass(frozen=True)
class _HubKind:
    title: str
    family: dict[str, type[Any]]
    sizes: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]


_LLAMA = {"llm": LlmConfig}
_HUB = {
    "whisper": _HubKind(
        "Whisper (Hugging Face)",
        {"voice_encoder": WhisperEncoderConfig, "recognizer": WhisperRecognizerConfig},
        {"voice_encoder": _whisper_encoder, "recognizer": _whisper_recognizer},
    ),
    "moonshine": _HubKind(
        "Moonshine (Hugging Face)",
        {"voice_encoder": MoonshineEncoderConfig, "recognizer": MoonshineRecognizerConfig},
        {"voice_encoder": _moonshine_encoder, "recognizer": _moonshine_recognizer},
    ),
    "llama": _HubKind("Llama (Hugging Face)", _LLAMA, {"llm": _llm}),
    "qwen2": _HubKind("Qwen2 (Hugging Face)", _LLAMA, {"llm": _llm}),
}


def stated_sizes(folder: Path, module: str) -> dict[str, Any]:
    """What a prepared folder's `config.json` says of a module's sizes, shapes apart.

    Raises:
        WeightsError: it cannot be read, or lacks what every such file has.
    """
    config = read_json(folder / "config.json")
    kind = _HUB.get(str(config.get("model_type")))
    if kind is not None and module in kind.sizes:
        return _hub_sizes(kind, module, config, folder)
    return dict(config.get("sizes", {}))


def _hub_sizes(
    kind: _HubKind, module: str, config: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    try:
        return kind.sizes[module](config)
    except KeyError as error:
        path = folder / "config.json"
        raise WeightsError(f"{path} has no {error.args[0]!r}; {_ADVICE}") from error
    except (ValueError, TypeError) as error:
        raise WeightsError(f"cannot use {folder / 'config.json'}: {error}") from error


class HubCheckpoint:
    """A folder with `config.json` and safetensors, as `save_pretrained` writes it."""

    def __init__(self, folder: Path, model_type: str) -> None:
        self.folder = folder
        self._kind = _HUB[model_type]
        self.kind = self._kind.title
        self._config = read_json(folder / "config.json")
        self._files = weights_files(folder)
        self._tensors: dict[str, Tensor] | None = None

    def fitted(self, preset: Preset) -> Preset:
        """See `Checkpoint`."""
        return preset

    def modules(self, preset: Preset) -> tuple[str, ...]:
        """See `Checkpoint`."""
        return tuple(
            module
            for module, family in self._kind.family.items()
            if isinstance(getattr(preset, module), family)
        )

    def weights(self, module: str) -> tuple[Path, ...]:
        """See `Checkpoint`."""
        return self._files

    def sizes(self, module: str) -> dict[str, Any]:
        """See `Checkpoint`."""
        return _hub_sizes(self._kind, module, self._config, self.folder)

    def find(self, preset: Preset, module: str) -> Found:
        """See `Checkpoint`."""
        expected = stored_tensors(preset, module)
        prefix = prefix_of(preset, module)
        found = Found({})
        for name, tensor in self._map().items():
            if name in expected:
                found.state[name] = tensor
            elif is_repeated(preset, name):
                found.unused[name] = "repeats what other tensors hold"
            elif name.startswith(prefix):
                found.left_over.append(name)
            else:
                other = "encoder" if name.startswith("model.encoder.") else "decoder"
                found.unused[name] = f"of the {other}, which {module} is not"
        found.missing.extend(name for name in expected if name not in found.state)
        return found

    def config(self, preset: Preset, module: str) -> dict[str, Any]:
        """See `Checkpoint`."""
        return dict(self._config)

    def companions(self, module: str) -> tuple[Path, ...]:
        """See `Checkpoint`."""
        paths = (self.folder / name for name in _TOKENIZER_FILES)
        return tuple(path for path in paths if path.exists())

    def _map(self) -> dict[str, Tensor]:
        if self._tensors is None:
            self._tensors = {}
            for path in self._files:
                self._tensors |= map_safetensors(path, _ADVICE)
        return self._tensors


# ---- Files of PyTorch ---------------------------------------------------------------------------


# CosyVoice 2's own table of text, which a voice reads that is trained on no hidden states.
_TEXT_TABLE = "llm.model.model.embed_tokens.weight"

_Find: TypeAlias = Callable[[Preset, Mapping[str, Tensor], Path], Found]


def _find_voice_token_lm(preset: Preset, tensors: Mapping[str, Tensor], _: Path) -> Found:
    renamed = voice_token_lm.from_cosyvoice(preset.voice_token_lm, tensors)
    found = Found(renamed.state, renamed.missing)
    for name in renamed.left_over:
        if name.startswith("llm.model.lm_head."):
            found.unused[name] = "the trunk's own text head"
        else:
            found.left_over.append(name)
    return found


def _find_flow_matching(preset: Preset, tensors: Mapping[str, Tensor], _: Path) -> Found:
    return _place(preset, "flow_matching", tensors, flow_name)


def _find_vocoder(preset: Preset, tensors: Mapping[str, Tensor], _: Path) -> Found:
    try:
        converted = convert_published_vocoder(_plain(tensors), preset.vocoder)
    except ValueError as error:
        raise WeightsError(f"the vocoder's weights cannot be used: {error}") from error
    return Found(converted.weights, list(converted.missing), list(converted.left_over))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # A file that training left, rather than one that was published, has a second network in it.
    return {name.removeprefix("generator."): tensor for name, tensor in tensors.items()}


def _find_speaker_embedding(preset: Preset, tensors: Mapping[str, Tensor], _: Path) -> Found:
    return _place(preset, "speaker_embedding", tensors, str)


def _find_sense_voice(preset: Preset, tensors: Mapping[str, Tensor], folder: Path) -> Found:
    shift, scale = read_mean_and_variance(folder / "am.mvn")
    statistics = {"feature_shift": shift, "feature_scale": scale}
    return _place(preset, "voice_encoder", {**tensors, **statistics}, str)


def _place(
    preset: Preset, module: str, tensors: Mapping[str, Tensor], rename: Callable[[str], str]
) -> Found:
    """What a module has a place for after each tensor was renamed."""
    expected = stored_tensors(preset, module)
    found = Found({})
    for published, tensor in tensors.items():
        name = rename(published)
        if name in expected:
            found.state[name] = tensor
        else:
            found.left_over.append(published)
    found.missing.extend(name for name in expected if name not in found.state)
    return found


@dataclass(frozen=True)
class _TorchKind:
    """A file of PyTorch.

    Attributes:
        kind: of the checkpoint that it belongs to.
        module: that it holds.
        marks: tensors by which it is known, whatever the file is called.
        family: class of the module's config.
        find: the module's tensors.
        companions: names of files beside it that go with it.
        file: what it is called in a published folder, which may have other files of PyTorch too,
            such as a list of speakers; None where only its own path leads to it.
        sizes: fields of the module's config that every published file of the kind has.
        published: the shape of a tensor by which the published file is known to be the one.
        published_sizes: fields that this one has and that its shapes don't show.
    """

    kind: str
    module: str
    marks: tuple[str, ...]
    family: type[Any]
    find: _Find
    file: str | None = None
    companions: tuple[str, ...] = ()
    sizes: tuple[tuple[str, Any], ...] = ()
    published: tuple[str, tuple[int, ...]] | None = None
    published_sizes: tuple[tuple[str, Any], ...] = ()

    def lacking(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """The marks that are not there."""
        return [mark for mark in self.marks if mark not in tensors]

    def stated(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fields of the module's config that are known of a file with these tensors."""
        sizes = dict(self.sizes)
        if self.published is not None:
            name, shape = self.published
            if name in tensors and tuple(tensors[name].shape) == shape:
                sizes |= self.published_sizes
        return sizes


_TORCH = (
    _TorchKind(
        "SenseVoice (FunASR)",
        "voice_encoder",
        ("encoder.encoders0.0.self_attn.fsmn_block.weight", "ctc.ctc_lo.weight"),
        SenseVoiceEncoderConfig,
        _find_sense_voice,
        "model.pt",
        _SENSE_VOICE_FILES,
        published=("ctc.ctc_lo.weight", (25_055, 512)),
        published_sizes=(
            ("mel_bins", 80),
            ("stacked_frames", 7),
            ("frame_stride", 6),
            ("heads", 4),
        ),
    ),
    _TorchKind(
        "CosyVoice 2",
        "voice_token_lm",
        ("llm_embedding.weight", "llm_decoder.weight", "speech_embedding.weight"),
        VoiceTokenLmConfig,
        _find_voice_token_lm,
        "llm.pt",
        sizes=(("rope_theta", 1_000_000.0), ("norm_epsilon", 1e-6)),
        published=("llm_embedding.weight", (2, 896)),
        published_sizes=(
            ("heads", 14),
            ("kv_heads", 2),
            ("head_dim", 64),
            ("text_group", 5),
            ("speech_group", 15),
        ),
    ),
    _TorchKind(
        "CosyVoice 2",
        "flow_matching",
        ("input_embedding.weight", "spk_embed_affine_layer.weight", "encoder_proj.weight"),
        FlowMatchingConfig,
        _find_flow_matching,
        "flow.pt",
        published=("input_embedding.weight", (6_561, 512)),
        published_sizes=(("estimator_heads", 8), ("estimator_head_dim", 64)),
    ),
    _TorchKind(
        "CosyVoice 2",
        "vocoder",
        ("conv_pre.bias", "f0_predictor.classifier.weight"),
        VocoderConfig,
        _find_vocoder,
        "hift.pt",
        sizes=(("causal", False),),
        published=("conv_pre.bias", (512,)),
        published_sizes=(
            ("sample_rate_hz", 24_000),
            ("upsample_rates", (8, 5, 3)),
            ("block_dilations", ((1, 3, 5),) * 3),
            ("source_dilations", ((1, 3, 5),) * 3),
            ("stft_hop", 4),
        ),
    ),
    _TorchKind(
        "CAM++ (3D-Speaker)",
        "speaker_embedding",
        ("head.conv1.weight", "xvector.tdnn.linear.weight"),
        SpeakerEmbeddingConfig,
        _find_speaker_embedding,
    ),
)


@dataclass(frozen=True)
class _TorchFile:
    path: Path
    kind: _TorchKind
    tensors: dict[str, Tensor]


class TorchCheckpoint:
    """Files that `torch.save` wrote, each of them a module."""

    def __init__(self, folder: Path, files: list[_TorchFile]) -> None:
        self.folder = folder
        self.kind = files[0].kind.kind
        self._files = {file.kind.module: file for file in files}

    def fitted(self, preset: Preset) -> Preset:
        """Whether the voice token LM reads text by a table of its own; see `Checkpoint`."""
        file = self._files.get("voice_token_lm")
        table = None if file is None else file.tensors.get(_TEXT_TABLE)
        if table is None or preset.voice_token_lm.text_vocabulary:
            return preset
        return with_text_table(preset, len(table))

    def modules(self, preset: Preset) -> tuple[str, ...]:
        """See `Checkpoint`."""
        return tuple(
            module
            for module, file in self._files.items()
            if isinstance(getattr(preset, module), file.kind.family)
        )

    def weights(self, module: str) -> tuple[Path, ...]:
        """See `Checkpoint`."""
        return (self._files[module].path,)

    def sizes(self, module: str) -> dict[str, Any]:
        """See `Checkpoint`."""
        file = self._files[module]
        return file.kind.stated(_plain(file.tensors))

    def find(self, preset: Preset, module: str) -> Found:
        """See `Checkpoint`."""
        file = self._files[module]
        return file.kind.find(preset, file.tensors, self.folder)

    def config(self, preset: Preset, module: str) -> dict[str, Any]:
        """See `Checkpoint`."""
        return {"module": module, "sizes": asdict(getattr(preset, module))}

    def companions(self, module: str) -> tuple[Path, ...]:
        """See `Checkpoint`."""
        paths = (self.folder / name for name in self._files[module].kind.companions)
        return tuple(path for path in paths if path.exists())


def _torch_checkpoint(folder: Path, paths: list[Path]) -> TorchCheckpoint:
    known: dict[str, _TorchFile] = {}
    for path in paths:
        tensors = map_torch(path)
        kind = next((kind for kind in _TORCH if not kind.lacking(_plain(tensors))), None)
        if kind is None:
            raise WeightsError(_unknown(path, tensors, others=len(paths) > 1))
        if kind.module in known:
            raise WeightsError(
                f"{known[kind.module].path} and {path} both hold a {kind.module} of {kind.kind}; "
                "give the path of the one that is meant"
            )
        known[kind.module] = _TorchFile(path, kind, tensors)
    return TorchCheckpoint(folder, list(known.values()))


def _unknown(path: Path, tensors: Mapping[str, Tensor], others: bool) -> str:
    """Why a file is none that is known: what was looked for, and what it has."""
    usual = [kind for kind in _TORCH if kind.file == path.name] or list(_TORCH)
    looked_for = "; ".join(
        f"{kind.kind} has {', '.join(kind.marks)}, here without "
        f"{', '.join(kind.lacking(_plain(tensors)))}"
        for kind in usual
    )
    found = ", ".join(list(tensors)[:_EXAMPLES])
    alone = "; to import another file of the folder, give its path" if others else ""
    return (
        f"{path} is no checkpoint that is known by its tensors: {looked_for}. It has "
        f"{len(tensors)} tensors, such as {found}{alone}"
    )
