"""CosyVoice 2's flow matching as others published it, at sizes of our choice."""

import torch
from torch import nn

from minmo.model.flow_matching import FlowMatchingConfig
from tests.published import published

_PACKAGE = "chatterbox.models.s3gen"


def published_flow(config: FlowMatchingConfig, seed: int = 1) -> nn.Module:
    upsample = published(f"{_PACKAGE}.transformer.upsample_encoder")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = upsample.UpsampleConformerEncoder(
            input_size=config.encoder_width,
            output_size=config.encoder_width,
            attention_heads=config.encoder_heads,
            linear_units=config.encoder_mlp_width,
            num_blocks=config.encoder_layers,
        )
        # These are as large as in CosyVoice 2 whatever was asked for.
        width = config.encoder_width
        encoder.pre_lookahead_layer = upsample.PreLookaheadLayer(width, config.look_ahead_tokens)
        encoder.up_layer = upsample.Upsample1D(width, width, 2)
        encoder.up_encoders = encoder.up_encoders[: config.upsampled_layers]
        estimator = published(f"{_PACKAGE}.decoder").ConditionalDecoder(
            in_channels=4 * config.mel_bins,
            out_channels=config.mel_bins,
            channels=[config.estimator_width],
            attention_head_dim=config.estimator_head_dim,
            n_blocks=config.estimator_layers_per_block,
            num_mid_blocks=config.estimator_mid_blocks,
            num_heads=config.estimator_heads,
        )
        flow = published(f"{_PACKAGE}.flow").CausalMaskedDiffWithXvec(
            input_size=width,
            output_size=config.mel_bins,
            spk_embed_dim=config.speaker_width,
            vocab_size=config.speech_tokens,
            pre_lookahead_len=config.look_ahead_tokens,
            encoder=encoder,
            decoder=published(f"{_PACKAGE}.flow_matching").CausalConditionalCFM(
                spk_emb_dim=config.mel_bins, estimator=estimator
            ),
        )
        for parameter in flow.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    return flow.eval()
