"""The LLM: a decoder of the Llama and Qwen2.5 families, for streams that come and go.

It reads embeddings and gives last hidden states; logits are a call of their own, so that only the
positions that need a token pay for the vocabulary. The positions of many sequences travel through
the linear layers as one flat batch; attention runs for each sequence against its slot of a
preallocated cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.packed import pack_linears

_FAMILIES = ("llama", "qwen2")


@dataclass(frozen=True)
class LlmConfig:
    """Sizes of the decoder.

    Attributes:
        vocabulary_size: rows of the embedding table.
        width: of embeddings and hidden states.
        layers: decoder blocks.
        heads: query heads.
        kv_heads: key and value heads; each serves `heads / kv_heads` query heads.
        head_dim: width of a head.
        mlp_width: inner width of the gated MLP.
        norm_epsilon: of every RMS norm.
        rope_theta: base of the rotary frequencies.
        qkv_bias: whether the query, key and value projections have biases (Qwen2.5 does).
        tied_embeddings: whether the logits read the embedding table.
        max_context: positions that the model was trained for.
    """

    vocabulary_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    norm_epsilon: float
    rope_theta: float
    qkv_bias: bool
    tied_embeddings: bool
    max_context: int

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads a Hugging Face `config.json` of Llama or Qwen2.

        Raises:
            ValueError: another family, or a variant that this decoder does not compute.
        """
        family = config.get("model_type")
        if family not in _FAMILIES:
            raise ValueError(f"model_type is {family!r}; this decoder computes {_FAMILIES}")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        refused = {
            "hidden_act": (config.get("hidden_act", "silu"), "silu"),
            "mlp_bias": (config.get("mlp_bias", False), False),
            "attention_bias": (family == "llama" and config.get("attention_bias", False), False),
            "use_sliding_window": (config.get("use_sliding_window", False), False),
            "rope_type": (rope.get("rope_type", "default"), "default"),
        }
        for key, (found, computed) in refused.items():
            if found != computed:
                raise ValueError(f"{key} is {found!r}; this decoder computes {computed!r} only")
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return cls(
            vocabulary_size=int(config["vocab_size"]),
            width=width,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or width // heads),
            mlp_width=int(config["intermediate_size"]),
            norm_epsilon=float(config["rms_norm_eps"]),
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            qkv_bias=family == "qwen2",
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            max_context=int(config["max_position_embeddings"]),
        )


class Segment(NamedTuple):
    """New positions of one sequence: `length` of them from `start` on, in slot `slot`."""

    slot: int
    start: int
    length: int


class LlmCache:
    """What the LLM remembers of its sequences, one slot each.

    Memory is reserved at once but touched only where positions are written.

    Attributes:
        keys_values: `[layers, 2, slots, kv_heads, context, head_dim]`, rotated keys, then values.
        hidden: `[slots, context, width]`, the last hidden states. They let a sequence go on from
            any of its positions: the state at position p - 1 predicts the token at p.
    """

    def __init__(
        self,
        config: LlmConfig,
        slots: int,
        context: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserves `slots` sequences of up to `context` positions.

        Raises:
            ValueError: more context than the model was trained for.
        """
        if not 0 < context <= config.max_context:
            raise ValueError(f"context is {context}; the model allows 1 to {config.max_context}")
        shape = (config.layers, 2, slots, config.kv_heads, context, config.head_dim)
        self.keys_values = torch.empty(shape, dtype=dtype, device=device)
        self.hidden = torch.empty(slots, context, config.width, dtype=dtype, device=device)

    @property
    def slots(self) -> int:
        """Sequences that fit."""
        return self.hidden.shape[0]

    @property
    def context(self) -> int:
        """Positions that a sequence can hold."""
        return self.hidden.shape[1]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one slot over another."""
        pairs = self.keys_values
        pairs[:, :, target, :, :length].copy_(pairs[:, :, source, :, :length])
        self.hidden[target, :length].copy_(self.hidden[source, :length])


class _Plan:
    """What all layers of one forward share."""

    def __init__(self, config: LlmConfig, rows: int, segments: Sequence[Segment], cache: LlmCache):
        device, dtype = cache.hidden.device, cache.hidden.dtype
        self.segments = segments
        self.pairs = cache.keys_values
        self.group = config.heads // config.kv_heads
        positions = [s.start + i for s in segments for i in range(s.length)]
        slots = [s.slot for s in segments for _ in range(s.length)]
        self.rows = len(positions)
        where = torch.tensor(positions + [0] * (rows - self.rows), device=device)
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=device)
        angles = where[:, None].double() * (1.0 / config.rope_theta ** (half / config.head_dim))
        cos, sin = angles.cos(), angles.sin()
        # The sign of the rotated half sits in the sine: rotating is then a plain swap of halves.
        self.cos = torch.cat((cos, cos), -1).to(dtype)[:, None]
        self.sin = torch.cat((-sin, sin), -1).to(dtype)[:, None]
        # Rows of the new keys and values in a layer's [2 * slots * kv_heads * context, head_dim].
        kv, slot_count, context = config.kv_heads, cache.slots, cache.context
        base = torch.tensor(slots, device=device) * (kv * context) + where[: self.rows]
        part = torch.arange(2 * kv, device=device)
        offsets = (part // kv) * (slot_count * kv * context) + (part % kv) * context
        self.targets = (base[:, None] + offsets[None, :]).flatten()
        self.masks = [_causal_mask(s, self.group, device, dtype) for s in segments]


def _causal_mask(
    segment: Segment, group: int, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """Additive mask `[group * length, start + length]`; None where every position may be seen."""
    if segment.length == 1:
        return None
    total = segment.start + segment.length
    mask = torch.full((segment.length, total), float("-inf"), dtype=dtype, device=device)
    return mask.triu_(segment.start + 1).repeat(group, 1)


class _Attention(nn.Module):
    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        queries = self.heads * self.head_dim
        both = queries + 2 * self.kv_heads * self.head_dim
        self.qkv_proj = nn.Linear(config.width, both, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.width, bias=False)

    def forward(self, x: Tensor, layer: int, plan: _Plan) -> Tensor:
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        rotated = qkv[:, : self.heads + self.kv_heads]
        swapped = rotated.roll(self.head_dim // 2, -1)
        rotated.mul_(plan.cos).addcmul_(swapped, plan.sin)
        pairs = plan.pairs[layer]
        new_pairs = qkv[: plan.rows, self.heads :].reshape(-1, self.head_dim)
        pairs.view(-1, self.head_dim).index_copy_(0, plan.targets, new_pairs)
        queries = qkv[:, : self.heads]
        attended = torch.zeros_like(queries, memory_format=torch.contiguous_format)
        row = 0
        for segment, mask in zip(plan.segments, plan.masks, strict=True):
            rows = slice(row, row + segment.length)
            self._attend(queries[rows], pairs[:, segment.slot], segment, mask, attended[rows])
            row += segment.length
        out: Tensor = self.o_proj(attended.flatten(1))
        return out

    def _attend(
        self, queries: Tensor, pairs: Tensor, segment: Segment, mask: Tensor | None, out: Tensor
    ) -> None:
        # Query heads that share a key head become rows of it, so that no key is repeated.
        total = segment.start + segment.length
        grouped = queries.transpose(0, 1).reshape(1, self.kv_heads, -1, self.head_dim)
        keys, values = pairs[0, None, :, :total], pairs[1, None, :, :total]
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        out.copy_(attended.view(self.heads, segment.length, self.head_dim).transpose(0, 1))


class _Mlp(nn.Module):
    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.width, 2 * config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        out: Tensor = self.down_proj(F.silu(gate).mul_(up))
        return out


class _Block(nn.Module):
    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.mlp = _Mlp(config)

    def forward(self, x: Tensor, layer: int, plan: _Plan) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), layer, plan)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llm(nn.Module):
    """The decoder. Weights come with `from_state_dict`."""

    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.config = config
        # Made from an empty table: drawing random numbers for one takes a second of imports.
        table = torch.empty(config.vocabulary_size, config.width)
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.width, _weight=table)
        self._blocks = [_Block(config) for _ in range(config.layers)]
        self.layers = nn.ModuleList(self._blocks)
        self.norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.lm_head = nn.Linear(config.width, config.vocabulary_size, bias=False)

    @classmethod
    def from_state_dict(
        cls,
        config: LlmConfig,
        state: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        packed: bool = False,
    ) -> Self:
        """Builds the decoder from tensors with Hugging Face's names.

        Args:
            config: its sizes.
            state: the tensors, in any float dtype.
            dtype: of computation. The embedding table keeps the file's dtype; what is looked up
                in it is cast.
            device: where to compute.
            packed: whether to read weights from float16 where that changes nothing
                (`minmo.model.packed`).

        Raises:
            ValueError: a tensor is missing, left over, or has another shape.
        """
        with torch.device("meta"):
            model = cls(config)
        try:
            fused = _fuse(config, state)
            if config.tied_embeddings:
                fused["lm_head.weight"] = fused["embed_tokens.weight"]
            model.load_state_dict(fused, assign=True)
        except KeyError as missing:
            raise ValueError(f"the weights lack the tensor {missing.args[0]!r}") from None
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit the configuration: {error}") from error
        model.requires_grad_(False)
        if packed and dtype == torch.float32:
            pack_linears(model)
        table = model.embed_tokens.weight
        model.embed_tokens.weight.data = table.to(device, copy=True)
        for module in (*model.layers, model.norm, model.lm_head):
            module.to(device, dtype)
        model.eval()
        return model

    @property
    def dtype(self) -> torch.dtype:
        """Number type of embeddings and hidden states."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.norm.weight.device

    def linears(self) -> list[tuple[nn.Module, int]]:
        """The linear layers of a block, each with the width that it reads; all blocks are alike."""
        block, config = self._blocks[0], self.config
        return [
            (block.self_attn.qkv_proj, config.width),
            (block.self_attn.o_proj, config.heads * config.head_dim),
            (block.mlp.gate_up_proj, config.width),
            (block.mlp.down_proj, config.mlp_width),
        ]

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings `[positions, width]` of token ids `[positions]`."""
        embeddings: Tensor = self.embed_tokens(tokens)
        return embeddings.to(self.dtype)

    def forward(self, embeddings: Tensor, segments: Sequence[Segment], cache: LlmCache) -> Tensor:
        """Last hidden states of new positions, which join the cache.

        Args:
            embeddings: `[rows, width]`: the new positions of all segments, one after the other.
                Rows beyond them are padding: computed, seen by nothing.
            segments: whose positions the rows are. Segments of one slot must be in order.
            cache: read up to each segment's `start`, written from there on.

        Returns:
            `[rows, width]`, after the final norm: what `logits` reads.
        """
        plan = _Plan(self.config, embeddings.shape[0], segments, cache)
        x = embeddings
        for number, block in enumerate(self._blocks):
            x = block(x, number, plan)
        hidden: Tensor = self.norm(x)
        row = 0
        for slot, start, length in segments:
            cache.hidden[slot, start : start + length].copy_(hidden[row : row + length])
            row += length
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[positions, vocabulary]`, float32, of last hidden states `[positions, width]`."""
        scores: Tensor = self.lm_head(hidden)
        return scores.float()


def _fuse(config: LlmConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames Hugging Face's tensors to ours; one matrix where layers read the same input."""
    left = {name.removeprefix("model."): value for name, value in state.items()}
    left = {name: value for name, value in left.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tied_embeddings:
        left.pop("lm_head.weight", None)
    kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
    for number in range(config.layers):
        attention, mlp = f"layers.{number}.self_attn", f"layers.{number}.mlp"
        for kind in kinds:
            parts = [left.pop(f"{attention}.{name}_proj.{kind}") for name in "qkv"]
            left[f"{attention}.qkv_proj.{kind}"] = torch.cat(parts)
        parts = [left.pop(f"{mlp}.{name}_proj.weight") for name in ("gate", "up")]
        left[f"{mlp}.gate_up_proj.weight"] = torch.cat(parts)
    return left
