"""Names of CosyVoice 2's weights in our flow matching: the tensors themselves are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_TOP = {
    "input_embedding": "token_embedding",
    "spk_embed_affine_layer": "speaker_projection",
    "encoder_proj": "mean_projection",
}

_ENCODER = {
    "embed.out.0": "embedding.linear",
    "embed.out.1": "embedding.norm",
    "up_embed.out.0": "upsampled_embedding.linear",
    "up_embed.out.1": "upsampled_embedding.norm",
    "pre_lookahead_layer": "look_ahead",
    "up_layer.conv": "upsample",
    "encoders": "layers",
    "up_encoders": "upsampled_layers",
    "after_norm": "norm",
    "self_attn.linear_q": "attention.query",
    "self_attn.linear_k": "attention.key",
    "self_attn.linear_v": "attention.value",
    "self_attn.linear_out": "attention.output",
    "self_attn.linear_pos": "attention.position",
    "self_attn.pos_bias_u": "attention.content_bias",
    "self_attn.pos_bias_v": "attention.position_bias",
    "norm_mha": "attention_norm",
    "norm_ff": "mlp_norm",
    "feed_forward.w_1": "mlp_in",
    "feed_forward.w_2": "mlp_out",
}

_ESTIMATOR = {
    "time_mlp.linear_1": "time.linear1",
    "time_mlp.linear_2": "time.linear2",
    "down_blocks.0.0": "first.residual",
    "down_blocks.0.1": "first.layers",
    "down_blocks.0.2": "first_conv",
    r"mid_blocks.(\d+).0": r"middle.\1.residual",
    r"mid_blocks.(\d+).1": r"middle.\1.layers",
    "up_blocks.0.0": "last.residual",
    "up_blocks.0.1": "last.layers",
    "up_blocks.0.2": "last_conv",
    "final_block": "final",
    "final_proj": "output",
    "block.0": "conv",
    "block.2": "norm",
    "mlp.1": "time",
    "res_conv": "shortcut",
    "norm1": "attention_norm",
    "norm3": "mlp_norm",
    "attn1.to_q": "query",
    "attn1.to_k": "key",
    "attn1.to_v": "value",
    "attn1.to_out.0": "attention_output",
    "ff.net.0.proj": "mlp_in",
    "ff.net.2": "mlp_out",
}

_PARTS = (("decoder.estimator.", "estimator.", _ESTIMATOR), ("encoder.", "encoder.", _ENCODER))


def flow_name(published: str) -> str:
    """Our name of a tensor of CosyVoice 2's `flow.pt`."""
    for theirs, ours, table in _PARTS:
        if published.startswith(theirs):
            return ours + _rename(published.removeprefix(theirs), table)
    return _rename(published, _TOP)


def from_cosyvoice(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our module with the tensors of `flow.pt`."""
    return {flow_name(name): tensor for name, tensor in state.items()}


def _rename(name: str, table: Mapping[str, str]) -> str:
    for theirs, ours in table.items():
        name = re.sub(rf"(?<![^.]){theirs}(?=\.|$)", ours, name)
    return name
