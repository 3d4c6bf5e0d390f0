"""Small sizes of flow matching that the tests of its parts share."""

from dataclasses import replace

import torch

from minmo.model.flow_matching import FlowMatching, FlowMatchingConfig

TINY = FlowMatchingConfig(
    speech_tokens=50,
    speaker_width=12,
    mel_bins=16,
    chunk_tokens=5,
    look_ahead_tokens=2,
    left_chunks=2,
    encoder_width=32,
    encoder_heads=4,
    encoder_mlp_width=48,
    encoder_layers=2,
    upsampled_layers=1,
    estimator_width=24,
    estimator_heads=2,
    estimator_head_dim=8,
    estimator_mid_blocks=2,
    estimator_layers_per_block=1,
    solver_steps=3,
    guidance=0.7,
    guidance_dropout=0.2,
)

# Sizes that CosyVoice 2's code can have: it knows 80 mel bins and a look-ahead of 3 tokens only.
PUBLISHED = [
    replace(TINY, mel_bins=80, look_ahead_tokens=3),
    replace(
        TINY,
        mel_bins=80,
        look_ahead_tokens=3,
        encoder_width=48,
        encoder_heads=2,
        encoder_layers=1,
        upsampled_layers=3,
        estimator_width=32,
        estimator_heads=3,
        estimator_mid_blocks=1,
        estimator_layers_per_block=2,
        solver_steps=5,
    ),
]


def random_flow(config: FlowMatchingConfig = TINY, seed: int = 0) -> FlowMatching:
    """An untrained model whose every parameter differs from what it starts with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FlowMatching(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model
