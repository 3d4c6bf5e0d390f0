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
_INITIAL_DEVIATION = 0.02


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

    Memory is reserved at once but touched only where positions are written. Each slot has one
    position more than a sequence may hold, `scratch`, for rows that are nobody's.

    Attributes:
        keys_values: `[layers, 2, slots, kv_heads, context + 1, head_dim]`, rotated keys, then
            values.
        hidden: `[slots, context + 1, width]`, the last hidden states. They let a sequence go on
            from any of its positions: the state at position p - 1 predicts the token at p.
        cos: `[context + 1, 1, head_dim]`, cosines that rotate a head at each position.
        sin: the same shape, sines, negative in the first half of a head.
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
        shape = (config.layers, 2, slots, config.kv_heads, context + 1, config.head_dim)
        self.keys_values = torch.empty(shape, dtype=dtype, device=device)
        self.hidden = torch.empty(slots, context + 1, config.width, dtype=dtype, device=device)
        positions = torch.arange(context + 1, device=device)
        self.cos, self.sin = _rotary(config, positions, dtype)

    @property
    def slots(self) -> int:
        """Sequences that fit."""
        return self.hidden.shape[0]

    @property
    def context(self) -> int:
        """Positions that a sequence can hold."""
        return self.hidden.shape[1] - 1

    @property
    def scratch(self) -> int:
        """Position, in any slot, where rows that are nobody's may write."""
        return self.context

    def places(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Where the keys and values of positions are kept in a layer.

        Args:
            slots: `[rows]`.
            positions: `[rows]`.

        Returns:
            `[rows * 2 * kv_heads]`: rows of a layer's `keys_values`, seen as
            `[2 * slots * kv_heads * (context + 1), head_dim]`.
        """
        _, _, slot_count, kv_heads, length, _ = self.keys_values.shape
        part = torch.arange(2 * kv_heads, device=slots.device)
        offsets = (part // kv_heads) * (slot_count * kv_heads) + part % kv_heads
        first = slots[:, None] * kv_heads + offsets
        return (first * length + positions[:, None]).flatten()

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
        positions = [s.start + i for s in segments for i in range(s.length)]
        slots = [s.slot for s in segments for _ in range(s.length)]
        self.rows = len(positions)
        padding = [0] * (rows - self.rows)
        numbers = torch.tensor((slots + padding, positions + padding)).to(device)
        self.cos, self.sin = cache.cos[numbers[1]], cache.sin[numbers[1]]
        self.targets = cache.places(*numbers[:, : self.rows])
        group = config.heads // config.kv_heads
        self.masks = [_causal_mask(s, group, device, dtype) for s in segments]


class _Step:
    """What all layers of one batched decoding step share."""

    def __init__(self, slots: Tensor, positions: Tensor, cache: LlmCache, span: int):
        self.slots, self.span = slots, span
        self.pairs = cache.keys_values
        self.cos, self.sin = cache.cos[positions], cache.sin[positions]
        self.targets = cache.places(slots, positions)
        # [rows, 1, 1, span], true where a position is seen; [rows, 1, span, 1], where it is not.
        self.seen = (torch.arange(span, device=slots.device) <= positions[:, None])[:, None, None]
        self.unseen = ~self.seen.transpose(2, 3)


def _rotary(config: LlmConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines `[positions, 1, head_dim]` that rotate a head at `[positions]`."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=positions.device)
    angles = positions[:, None].double() * (1.0 / config.rope_theta ** (half / config.head_dim))
    cos, sin = angles.cos(), angles.sin()
    # The sign of the rotated half sits in the sine: rotating is then a plain swap of halves.
    cosines, sines = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return cosines.to(dtype)[:, None], sines.to(dtype)[:, None]


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
        queries, new_pairs = self._project(x, plan.cos, plan.sin)
        pairs = plan.pairs[layer]
        new_pairs = new_pairs[: plan.rows].reshape(-1, self.head_dim)
        pairs.view(-1, self.head_dim).index_copy_(0, plan.targets, new_pairs)
        attended, row = [], 0
        for segment, mask in zip(plan.segments, plan.masks, strict=True):
            rows = queries[row : row + segment.length]
            attended.append(self._attend(rows, pairs[:, segment.slot], segment, mask))
            row += segment.length
        if row < len(x):
            attended.append(x.new_zeros(len(x) - row, self.heads * self.head_dim))
        out: Tensor = self.o_proj(torch.cat(attended))
        return out

    def decode(self, x: Tensor, layer: int, step: _Step) -> Tensor:
        """One new position for each row, `[rows, width]`; the attention of all at once."""
        queries, new_pairs = self._project(x, step.cos, step.sin)
        pairs = step.pairs[layer]
        pairs.view(-1, self.head_dim).index_copy_(0, step.targets, new_pairs.flatten(0, 1))
        looked_at = pairs[:, :, :, : step.span].index_select(1, step.slots)
        # What was never written may be anything, and zero times NaN is no zero.
        keys, values = looked_at.masked_fill_(step.unseen, 0)
        grouped = queries.view(len(x), self.kv_heads, -1, self.head_dim)
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=step.seen)
        out: Tensor = self.o_proj(attended.flatten(1))
        return out

    def _project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated queries `[rows, heads, head_dim]`, and rotated keys, then values,
        `[rows, 2 * kv_heads, head_dim]`."""
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        rotated = qkv[:, : self.heads + self.kv_heads]
        swapped = rotated.roll(self.head_dim // 2, -1)
        rotated.mul_(cos).addcmul_(swapped, sin)
        return qkv[:, : self.heads], qkv[:, self.heads :]

    def _attend(
        self, queries: Tensor, pairs: Tensor, segment: Segment, mask: Tensor | None
    ) -> Tensor:
        """Attention `[length, heads * head_dim]` of a segment's queries to its slot."""
        # Query heads that share a key head become rows of it, so that no key is repeated.
        total = segment.start + segment.length
        keys, values = pairs[:, None, :, :total]
        if segment.length == 1:
            grouped = queries.view(1, self.kv_heads, -1, self.head_dim)
            return F.scaled_dot_product_attention(grouped, keys, values).view(1, -1)
        grouped = queries.transpose(0, 1).reshape(1, self.kv_heads, -1, self.head_dim)
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        by_head = attended.view(self.heads, segment.length, self.head_dim)
        return by_head.transpose(0, 1).reshape(segment.length, -1)

    def attend_sequence(
        self, x: Tensor, cos: Tensor, sin: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """Attention `[batch, positions, width]` within whole sequences, differentiable.

        It is causal, unless `seen` says which position sees which.
        """
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        rotated, values = qkv.split((self.heads + self.kv_heads, self.kv_heads), 2)
        rotated = rotated * cos + rotated.roll(self.head_dim // 2, -1) * sin
        queries, keys = rotated.split((self.heads, self.kv_heads), 2)
        attended = F.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=None if seen is None else seen[:, None],
            is_causal=seen is None,
            enable_gqa=self.heads != self.kv_heads,
        )
        out: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.width, 2 * config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
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

    def decode(self, x: Tensor, layer: int, step: _Step) -> Tensor:
        """The block over one new position for each row, `[rows, width]`."""
        x = x + self.self_attn.decode(self.input_layernorm(x), layer, step)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out

    def read_sequence(
        self, x: Tensor, cos: Tensor, sin: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """The block over whole sequences, `[batch, positions, width]`."""
        x = x + self.self_attn.attend_sequence(self.input_layernorm(x), cos, sin, seen)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llm(nn.Module):
    """The decoder, untrained; pretrained weights come with `from_state_dict`.

    `forward` and `decode` are for inference with a cache, `forward_sequence` and `forward_tree` are
    for training.
    """

    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.config = config
        table = torch.empty(config.vocabulary_size, config.width)
        if not table.is_meta:  # there is nothing to draw there, and it takes a second of imports
            nn.init.normal_(table, std=_INITIAL_DEVIATION)
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.width, _weight=table)
        self._blocks = [_Block(config) for _ in range(config.layers)]
        self.layers = nn.ModuleList(self._blocks)
        self.norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.lm_head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        if config.tied_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

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

    def decode(
        self, embeddings: Tensor, slots: Tensor, positions: Tensor, cache: LlmCache, span: int
    ) -> Tensor:
        """Last hidden states of one new position for each of many sequences, which join the cache.

        Shapes depend on `rows` and `span` only and nothing is read back, so that it can be
        recorded (`minmo.engine.graphs`).

        Args:
            embeddings: `[rows, width]`.
            slots: `[rows]`, int64. No slot twice, but for rows that are nobody's.
            positions: `[rows]`, int64: a sequence's next one; `cache.scratch` for a row that is
                nobody's, whose result has no meaning.
            cache: read up to each position, written there.
            span: positions that are looked at in every slot; more than any in `positions` but
                the scratch.

        Returns:
            `[rows, width]`, after the final norm: what `logits` reads.
        """
        step = _Step(slots, positions, cache, span)
        x = embeddings
        for number, block in enumerate(self._blocks):
            x = block.decode(x, number, step)
        hidden: Tensor = self.norm(x)
        cache.hidden.index_put_((slots, positions), hidden)
        return hidden

    def forward_sequence(self, embeddings: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Last hidden states of whole sequences, without a cache; differentiable.

        Args:
            embeddings: `[batch, positions, width]`, each sequence from its position 0 on.
            lengths: `[batch]`, positions that are there; all where None. What stands behind them
                has no influence, and the result is zero there.

        Returns:
            `[batch, positions, width]`, after the final norm: what `logits` reads.
        """
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)
        missing = None if lengths is None else (positions >= lengths[:, None])[:, :, None]
        x = embeddings if missing is None else embeddings.masked_fill(missing, 0)
        cos, sin = _rotary(self.config, positions, x.dtype)
        for block in self._blocks:
            x = block.read_sequence(x, cos, sin)
        hidden: Tensor = self.norm(x)
        return hidden if missing is None else hidden.masked_fill(missing, 0)

    def forward_tree(self, embeddings: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """Last hidden states of branches that share their beginning, without a cache.

        What several sequences have in common stands there once: each row says at which position
        it is read and which rows come before it.

        Args:
            embeddings: `[batch, rows, width]`.
            positions: `[batch, rows]`, int64, from 0 on; two rows of different branches may have
                the same one.
            seen: `[batch, rows, rows]`, true where a row sees another; each sees itself.

        Returns:
            `[batch, rows, width]`, after the final norm.
        """
        cos, sin = (
            table.view(*positions.shape, 1, -1)
            for table in _rotary(self.config, positions.flatten(), embeddings.dtype)
        )
        x = embeddings
        for block in self._blocks:
            x = block.read_sequence(x, cos, sin, seen)
        hidden: Tensor = self.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[positions, vocabulary]`, float32, of last hidden states `[positions, width]`."""
        scores: Tensor = self.lm_head(hidden)
        return scores.float()


def random_llm(
    config: LlmConfig,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Llm:
    """An untrained decoder for tests and measurements; the same one for the same seed and device.

    Its numbers are drawn where they are to stay, and the global generator is left alone.
    """
    with torch.device("meta"):
        model = Llm(config).to(dtype)
    model.to_empty(device=device)
    if config.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if isinstance(module, nn.RMSNorm):
                    parameter.fill_(1.0)
                else:
                    parameter.normal_(0.0, _INITIAL_DEVIATION, generator=generator)
    return model.eval()


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
