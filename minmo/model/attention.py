"""Self-attention with one matrix for query, key and value, stored as three."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_PARTS = ("q_proj", "k_proj", "v_proj")


class FusedProjections(nn.Module):
    """Query, key and value of a frame by one matrix product.

    One product instead of three is what counts when a step holds a single frame. Checkpoints keep
    the three matrices under their usual names (`q_proj`, `k_proj`, `v_proj`): they are joined when
    a state dict is loaded and parted again when one is made.

    Args:
        width: channels of a frame.
        heads: attention heads; `width` is a multiple of it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}: it must be a multiple of {heads} heads")
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.register_load_state_dict_pre_hook(_join)  # type: ignore[no-untyped-call]
        self.register_state_dict_post_hook(_part)  # type: ignore[no-untyped-call]

    def split_heads(self, frames: Tensor) -> Tensor:
        """Query, key and value of each head.

        Args:
            frames: `[batch, frames, width]`.

        Returns:
            `[3, batch, heads, frames, head_dim]`.
        """
        batch, length, width = frames.shape
        joined: Tensor = self.qkv_proj(frames).view(
            batch, length, 3, self.heads, width // self.heads
        )
        return joined.permute(2, 0, 3, 1, 4)

    def merge_heads(self, attended: Tensor) -> Tensor:
        """`[batch, heads, frames, head_dim]` to `[batch, frames, width]`, through `o_proj`."""
        merged: Tensor = self.o_proj(attended.transpose(1, 2).flatten(-2))
        return merged


def _join(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    names = [f"{prefix}{part}.weight" for part in _PARTS]
    if all(name in state for name in names):
        state[f"{prefix}qkv_proj.weight"] = torch.cat([state.pop(name) for name in names])


def _part(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    parts = state.pop(f"{prefix}qkv_proj.weight").chunk(3)
    state.update({f"{prefix}{name}.weight": part for name, part in zip(_PARTS, parts, strict=True)})
