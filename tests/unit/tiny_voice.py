"""A voice of real modules with random weights, small enough for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from minmo.engine.voice import HiddenStates, TextToken
from minmo.engine.voice_decoder.modules import SemanticVectors, VoiceModules
from minmo.model.flow_matching import FlowMatching, FlowMatchingConfig
from minmo.model.output_projector import OutputProjector, OutputProjectorConfig
from minmo.model.vocoder import Vocoder, VocoderConfig
from minmo.model.voice_token_lm import VoiceTokenLm, VoiceTokenLmConfig

HIDDEN_WIDTH = 12
VOCABULARY = 40
SPEECH_TOKENS = 27
SPEAKER_WIDTH = 6
MEL_BINS = 8
SAMPLES_PER_TOKEN = 960

LM = VoiceTokenLmConfig(
    speech_tokens=SPEECH_TOKENS,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=24,
    norm_epsilon=1e-6,
    rope_theta=10000.0,
    qkv_bias=True,
    tied_embeddings=False,
    max_context=2048,
    text_group=5,
    speech_group=15,
    text_vocabulary=0,
)
FLOW = FlowMatchingConfig(
    speech_tokens=SPEECH_TOKENS,
    speaker_width=SPEAKER_WIDTH,
    mel_bins=MEL_BINS,
    chunk_tokens=15,
    look_ahead_tokens=3,
    left_chunks=2,
    encoder_width=8,
    encoder_heads=2,
    encoder_mlp_width=16,
    encoder_layers=1,
    upsampled_layers=1,
    estimator_width=8,
    estimator_heads=1,
    estimator_head_dim=8,
    estimator_mid_blocks=1,
    estimator_layers_per_block=1,
    solver_steps=2,
    guidance=0.7,
    guidance_dropout=0.2,
)
VOCODER = VocoderConfig(
    causal=True,
    mel_bins=MEL_BINS,
    sample_rate_hz=24000,
    channels=8,
    harmonics=2,
    upsample_rates=(8, 5, 3),
    upsample_kernel_sizes=(16, 11, 7),
    block_kernel_sizes=(3,),
    block_dilations=((1,),),
    source_kernel_sizes=(3, 3, 3),
    source_dilations=((1,), (1,), (1,)),
    stft_size=16,
    stft_hop=4,
    pitch_channels=4,
)


def tiny_voice(
    *, end_bias: float = 0.0, text_table: bool = False, causal: bool = True, seed: int = 0
) -> VoiceModules:
    """Random modules.

    Args:
        end_bias: how much likelier the end is than a speech token.
        text_table: whether the LM reads text tokens by a table of its own.
        causal: whether the vocoder is.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    lm = VoiceTokenLm(replace(LM, text_vocabulary=VOCABULARY if text_table else 0)).eval()
    # Larger than at the start of training: what a token follows must matter to what is drawn.
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(5.0) if parameter.ndim > 1 else parameter
        lm.head_bias[lm.config.end] += end_bias
    flow = FlowMatching(FLOW).eval()
    vocoder = Vocoder(replace(VOCODER, causal=causal)).eval()
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.mul_(3.0)
    semantic = None
    if not text_table:
        projector = OutputProjector(OutputProjectorConfig(HIDDEN_WIDTH, LM.width)).eval()
        semantic = SemanticVectors(projector, torch.randn(VOCABULARY, HIDDEN_WIDTH))
    for module in (lm, flow, vocoder, *([semantic.projector] if semantic else [])):
        module.requires_grad_(False)
    return VoiceModules(lm, flow, vocoder, semantic)


def text(count: int, seed: int = 0) -> list[TextToken]:
    """Tokens of four characters each."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, count)
    return [TextToken(int(id), f" w{id:02}") for id in ids]


def states(count: int, seed: int = 0) -> HiddenStates:
    """Hidden states `[count, HIDDEN_WIDTH]`."""
    drawn = np.random.default_rng(seed + 1).standard_normal((count, HIDDEN_WIDTH))
    return drawn.astype(np.float32)


def prompt_mel(tokens: int, seed: int = 0) -> Tensor:
    """A mel of so many speech tokens."""
    return torch.randn(2 * tokens, MEL_BINS, generator=torch.Generator().manual_seed(seed))
