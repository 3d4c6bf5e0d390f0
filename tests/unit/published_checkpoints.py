"""Small checkpoints in exactly the formats in which others publish theirs, and presets for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from minmo.model.vocoder import VocoderConfig
from minmo.presets import Preset, parse_preset
from tests.published import published
from tests.unit.published_flow import published_flow
from tests.unit.tiny_presets import Tables, tables, toml

WHISPER: Tables = {
    "voice_encoder": {"family": "whisper", "mel_bins": 16, "width": 16, "mlp_width": 32}
    | {"layers": 2, "heads": 2, "block_frames": 8, "left_blocks": 4},
    "recognizer": {"family": "whisper", "width": 16, "mlp_width": 32, "layers": 1, "heads": 2}
    | {"vocabulary_size": 60, "max_tokens": 20},
    "speech_tokenizer": {"frames_per_group": 2, "tokens_per_group": 1},
}
SENSE_VOICE: Tables = {
    "voice_encoder": {"family": "sense_voice", "mel_bins": 8, "stacked_frames": 7}
    | {"frame_stride": 6, "width": 16, "mlp_width": 32, "layers": 2, "text_layers": 1, "heads": 2}
    | {"kernel_size": 11, "vocabulary_size": 24, "block_frames": 4, "left_blocks": 4},
    "speech_tokenizer": {"frames_per_group": 2, "tokens_per_group": 3},
}
QWEN2: Tables = {
    "llm": {"family": "qwen2", "vocabulary_size": 60, "width": 24, "layers": 2, "heads": 4}
    | {"kv_heads": 2, "head_dim": 6, "mlp_width": 40, "norm_epsilon": 1e-6}
    | {"rope_theta": 1_000_000.0, "tied_embeddings": False, "max_context": 64}
}
COSYVOICE: Tables = {
    "voice_token_lm": {"rope_theta": 1_000_000.0, "tied_embeddings": False},
    "flow_matching": {"solver_steps": 10, "estimator_layers_per_block": 1},
    "vocoder": {"causal": False, "channels": 16, "pitch_channels": 8},
}


def preset(name: str = "tiny", **changes: Tables | None) -> Preset:
    """A tiny preset."""
    return parse_preset(toml(tables(name, **changes)), "this.toml")


def whisper(folder: Path, vocabulary: int = 60) -> WhisperForConditionalGeneration:
    """Whisper, as the hub has it."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=16,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.2,
    )
    return _saved(WhisperForConditionalGeneration(config), folder)


def moonshine(folder: Path) -> MoonshineForConditionalGeneration:
    """Moonshine, as the hub has it."""
    torch.manual_seed(0)
    config = MoonshineConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        encoder_num_key_value_heads=2,
        decoder_num_key_value_heads=2,
        max_position_embeddings=20,
        partial_rotary_factor=0.8,
        initializer_range=0.2,
    )
    return _saved(MoonshineForConditionalGeneration(config), folder)


def llama(folder: Path, **options: Any) -> LlamaForCausalLM:
    """SmolLM2's family, with tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(**_llm_sizes(1e-5, 100_000.0), tie_word_embeddings=True)
    return _saved(LlamaForCausalLM(config), folder, **options)


def qwen2(
    folder: Path, vocabulary: int = 60, positions: int = 64, **options: Any
) -> Qwen2ForCausalLM:
    """Qwen2.5's family, with an output matrix of its own."""
    torch.manual_seed(0)
    sizes = _llm_sizes(1e-6, 1_000_000.0)
    sizes |= {"vocab_size": vocabulary, "max_position_embeddings": positions}
    config = Qwen2Config(**sizes, tie_word_embeddings=False)
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return _saved(model, folder, **options)


def _llm_sizes(epsilon: float, theta: float) -> dict[str, Any]:
    return {
        "vocab_size": 60,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "initializer_range": 0.2,
    }


def _saved(model: Any, folder: Path, **options: Any) -> Any:
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    return model.eval()


class SenseVoice(nn.Module):
    """The parts of FunASR's SenseVoice-Small that its `model.pt` has."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = published("funasr.models.sense_voice.model").SenseVoiceEncoderSmall(
            input_size=56,
            output_size=16,
            attention_heads=2,
            linear_units=32,
            num_blocks=2,
            tp_blocks=1,
            kernel_size=11,
            sanm_shfit=0,
        )
        self.ctc = nn.Module()
        self.ctc.ctc_lo = nn.Linear(16, 24)
        self.embed = nn.Embedding(16, 56)


def sense_voice(folder: Path) -> SenseVoice:
    """SenseVoice-Small, as FunASR publishes it: `model.pt` and `am.mvn`."""
    torch.manual_seed(0)
    model = SenseVoice().eval()
    folder.mkdir()
    torch.save(model.state_dict(), folder / "model.pt")
    shift = " ".join(f"{-12 - number / 10:.4f}" for number in range(56))
    scale = " ".join(f"{0.2 + number / 100:.4f}" for number in range(56))
    (folder / "am.mvn").write_text(
        "<Nnet> \n<Splice> 56 56\n[ 0 ]\n"
        f"<AddShift> 56 56\n<LearnRateCoef> 0 [ {shift} ]\n"
        f"<Rescale> 56 56\n<LearnRateCoef> 0 [ {scale} ]\n</Nnet> \n"
    )
    return model


class CosyVoiceLm:
    """CosyVoice 2's LM, of Transformers' Qwen2 and plain tables."""

    def __init__(self, vocabulary: int = 37) -> None:
        torch.manual_seed(0)
        self.trunk = Qwen2Model(
            Qwen2Config(
                vocab_size=vocabulary,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
                initializer_range=0.3,
            )
        ).eval()
        self.head = nn.Linear(16, 12)
        self.speech_embedding = torch.randn(12, 16)

    def state(self) -> dict[str, Tensor]:
        """What `llm.pt` has."""
        trunk = self.trunk.state_dict().items()
        return {
            **{f"llm.model.model.{name}": value for name, value in trunk},
            "llm.model.lm_head.weight": torch.randn(self.trunk.config.vocab_size, 16),
            "llm_embedding.weight": torch.randn(2, 16),
            "speech_embedding.weight": self.speech_embedding,
            **{f"llm_decoder.{name}": value for name, value in self.head.state_dict().items()},
        }


def published_vocoder(config: VocoderConfig) -> nn.Module:
    """CosyVoice 2's vocoder."""
    torch.manual_seed(0)
    predictor = published("chatterbox.models.s3gen.f0_predictor").ConvRNNF0Predictor(
        in_channels=config.mel_bins, cond_channels=config.pitch_channels
    )
    vocoder: nn.Module = published("chatterbox.models.s3gen.hifigan").HiFTGenerator(
        in_channels=config.mel_bins,
        base_channels=config.channels,
        nb_harmonics=config.harmonics,
        sampling_rate=config.sample_rate_hz,
        upsample_rates=list(config.upsample_rates),
        upsample_kernel_sizes=list(config.upsample_kernel_sizes),
        resblock_kernel_sizes=list(config.block_kernel_sizes),
        resblock_dilation_sizes=[list(dilations) for dilations in config.block_dilations],
        source_resblock_kernel_sizes=list(config.source_kernel_sizes),
        source_resblock_dilation_sizes=[list(dilations) for dilations in config.source_dilations],
        f0_predictor=predictor,
    )
    return vocoder.eval()


def cosyvoice(
    folder: Path, preset: Preset, vocabulary: int = 37
) -> tuple[CosyVoiceLm, nn.Module, nn.Module]:
    """CosyVoice 2: `llm.pt`, `flow.pt` and `hift.pt`."""
    lm, flow = CosyVoiceLm(vocabulary), published_flow(preset.flow_matching)
    vocoder = published_vocoder(preset.vocoder)
    folder.mkdir()
    torch.save(lm.state(), folder / "llm.pt")
    torch.save(flow.state_dict(), folder / "flow.pt")
    torch.save(vocoder.state_dict(), folder / "hift.pt")
    return lm, flow, vocoder


def spk2info(path: Path, preset: Preset, tokens: dict[str, int]) -> dict[str, dict[str, Tensor]]:
    """CosyVoice's list of speakers, as its `add_zero_shot_spk` and `save_spkinfo` write it.

    Args:
        path: of the file.
        preset: whose sizes it has.
        tokens: speech tokens of each speaker's recording.
    """
    torch.manual_seed(0)
    flow = preset.flow_matching
    speakers: dict[str, dict[str, Tensor]] = {}
    for name, count in tokens.items():
        speech = torch.randint(flow.speech_tokens, (1, count), dtype=torch.int32)
        embedding = torch.randn(1, flow.speaker_width)
        speakers[name] = {
            "prompt_text": torch.randint(30, (1, 7), dtype=torch.int32),
            "prompt_text_len": torch.tensor([7], dtype=torch.int32),
            "llm_prompt_speech_token": speech,
            "llm_prompt_speech_token_len": torch.tensor([count], dtype=torch.int32),
            "flow_prompt_speech_token": speech,
            "flow_prompt_speech_token_len": torch.tensor([count], dtype=torch.int32),
            "prompt_speech_feat": torch.randn(1, 2 * count, flow.mel_bins),
            "prompt_speech_feat_len": torch.tensor([2 * count], dtype=torch.int32),
            "llm_embedding": embedding,
            "flow_embedding": embedding,
        }
    torch.save(speakers, path)
    return speakers
