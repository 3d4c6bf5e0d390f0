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
from minmo.weights.naming import is_repeated, prefix_of, stored_shapes
from minmo.weights.reading import (
    map_safetensors,
    map_torch,
    read_json,
    read_mean_and_variance,
    weights_files,
)

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
# A published folder has other files of PyTorch too, such as a list of speakers.
_TORCH_FILES = ("llm.pt", "flow.pt", "hift.pt", "model.pt")
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
    named = [folder / name for name in _TORCH_FILES if (folder / name).exists()]
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
        try:
            return self._kind.sizes[module](self._config)
        except KeyError as error:
            path = self.folder / "config.json"
            raise WeightsError(f"{path} has no {error.args[0]!r}; {_ADVICE}") from error
        except (ValueError, TypeError) as error:
            raise WeightsError(f"cannot use {self.folder / 'config.json'}: {error}") from error

    def find(self, preset: Preset, module: str) -> Found:
        """See `Checkpoint`."""
        expected = stored_shapes(preset, module)
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
    # A file that training left, rather than one that was published, has a second network in it.
    plain = {name.removeprefix("generator."): tensor for name, tensor in tensors.items()}
    try:
        converted = convert_published_vocoder(plain, preset.vocoder)
    except ValueError as error:
        raise WeightsError(f"the vocoder's weights cannot be used: {error}") from error
    return Found(converted.weights, list(converted.missing), list(converted.left_over))


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
    expected = stored_shapes(preset, module)
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
        sizes: fields of the module's config that every published file of the kind has.
    """

    kind: str
    module: str
    marks: tuple[str, ...]
    family: type[Any]
    find: _Find
    companions: tuple[str, ...] = ()
    sizes: tuple[tuple[str, Any], ...] = ()


_TORCH = (
    _TorchKind(
        "SenseVoice (FunASR)",
        "voice_encoder",
        ("encoder.encoders0.0.self_attn.fsmn_block.weight", "ctc.ctc_lo.weight"),
        SenseVoiceEncoderConfig,
        _find_sense_voice,
        _SENSE_VOICE_FILES,
    ),
    _TorchKind(
        "CosyVoice 2",
        "voice_token_lm",
        ("llm_embedding.weight", "llm_decoder.weight", "speech_embedding.weight"),
        VoiceTokenLmConfig,
        _find_voice_token_lm,
        sizes=(("rope_theta", 1_000_000.0), ("norm_epsilon", 1e-6)),
    ),
    _TorchKind(
        "CosyVoice 2",
        "flow_matching",
        ("input_embedding.weight", "spk_embed_affine_layer.weight", "encoder_proj.weight"),
        FlowMatchingConfig,
        _find_flow_matching,
    ),
    _TorchKind(
        "CosyVoice 2",
        "vocoder",
        ("conv_pre.bias", "f0_predictor.classifier.weight"),
        VocoderConfig,
        _find_vocoder,
        sizes=(("causal", False),),
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
        return dict(self._files[module].kind.sizes)

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
    known = []
    for path in paths:
        tensors = map_torch(path)
        names = {name.removeprefix("generator.") for name in tensors}
        kind = next((kind for kind in _TORCH if names.issuperset(kind.marks)), None)
        if kind is not None:
            known.append(_TorchFile(path, kind, tensors))
    if not known:
        marks = "; ".join(f"{kind.kind}: {kind.marks[0]}" for kind in _TORCH)
        raise WeightsError(
            f"{', '.join(path.name for path in paths)} in {folder}: no checkpoint that is known "
            f"by its tensors ({marks})"
        )
    return TorchCheckpoint(folder, known)
