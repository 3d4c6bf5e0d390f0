"""Moonshine's own decoder: the voice encoder's frames in, text tokens out.

The recogniser of the cascade. Parameters are named as in `transformers`, without the prefix
`model.decoder.`; the output matrix is the embedding matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.attention import FusedProjections
from minmo.model.interleaved_rotary import rotary_table, rotate
from minmo.model.recognition import RecognizerCache, repetition


@dataclass(frozen=True)
class MoonshineRecognizerConfig:
    """Sizes and special tokens of the recogniser."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    rotary_dim: int
    rotary_theta: float
    max_tokens: int
    vocabulary_size: int
    start_token: int
    end_token: int

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any]) -> Self:
        """Reads the `config.json` of a Moonshine checkpoint."""
        heads = int(config["decoder_num_attention_heads"])
        rope = config["rope_parameters"]
        head_dim = int(config["hidden_size"]) // heads
        return cls(
            width=int(config["hidden_size"]),
            mlp_width=int(config["intermediate_size"]),
            layers=int(config["decoder_num_hidden_layers"]),
            heads=heads,
            rotary_dim=int(head_dim * float(rope["partial_rotary_factor"])),
            rotary_theta=float(rope["rope_theta"]),
            max_tokens=int(config["max_position_embeddings"]),
            vocabulary_size=int(config["vocab_size"]),
            start_token=int(config["decoder_start_token_id"]),
            end_token=int(config["eos_token_id"]),
        )


class Reading(NamedTuple):
    """What follows a token, and where it is heard.

    Attributes:
        logits: `[vocabulary]` of the next token.
        attention: `[frames]`, how much the upper half of the layers attends to each frame for it:
            the sound of a word, up to its end. Sums to 1.
    """

    logits: Tensor
    attention: Tensor


class MoonshineRecognizer(nn.Module):
    """A Transformer decoder that reads encoder frames through cross-attention."""

    rotary: Tensor

    def __init__(self, config: MoonshineRecognizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.layers = nn.ModuleList([RecognizerLayer(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width, bias=False)
        table = rotary_table(config.max_tokens, config.rotary_dim, config.rotary_theta)
        self.register_buffer("rotary", table, persistent=False)

    def lay_out_for_steps(self) -> None:
        """Lays every matrix out by columns: a product with a single vector then reads it in order.

        Values, names and shapes stay; a step of one token takes two thirds of the time. For
        inference, after the weights were loaded.
        """
        for parameter in self.parameters():
            if parameter.dim() == 2:
                parameter.data = parameter.data.t().contiguous().t()

    def start(self, frames: Tensor) -> RecognizerCache:
        """Opens an utterance.

        Args:
            frames: `[1, frames, width]` of the voice encoder.
        """
        config = self.config
        shape = (
            config.layers,
            2,
            1,
            config.heads,
            config.max_tokens,
            config.width // config.heads,
        )
        return RecognizerCache(frames.new_empty(shape), self.hear(frames))

    def hear(self, frames: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of `[1, frames, width]` for each layer's attention to what is heard."""
        return [cast("RecognizerLayer", layer).hear(frames) for layer in self.layers]

    def forward(self, tokens: Tensor, cache: RecognizerCache) -> Tensor:
        """Reads the next tokens of an utterance.

        Args:
            tokens: `[1, tokens]`, int64.
            cache: of the utterance; grows by the tokens.

        Returns:
            `[1, tokens, vocabulary]`: logits of the token after each.
        """
        begin, end = cache.length, cache.length + tokens.shape[1]
        if end > self.config.max_tokens:
            raise ValueError(
                f"{end} tokens do not fit: an utterance has at most {self.config.max_tokens}"
            )
        hidden = self.embed_tokens(tokens)
        table = self.rotary[:, begin:end]
        for layer, said, heard in zip(self.layers, cache.said, cache.heard, strict=True):
            hidden = layer(hidden, table, said, begin, heard)
        cache.length = end
        return F.linear(self.norm(hidden), self.embed_tokens.weight)

    def follow(self, token: int, cache: RecognizerCache) -> Reading:
        """Reads the next token of an utterance, and says where the one after it is heard.

        Args:
            token: the next one.
            cache: of the utterance; grows by one.
        """
        attention: list[Tensor] = []
        position = slice(cache.length, cache.length + 1)
        hidden = self.embed_tokens(torch.tensor([[token]], device=cache.said.device))
        for number, layer in enumerate(self.layers):
            hidden = cast("RecognizerLayer", layer)(
                hidden,
                self.rotary[:, position],
                cache.said[number],
                cache.length,
                cache.heard[number],
                attention if number >= len(self.layers) // 2 else None,
            )
        cache.length += 1
        logits = F.linear(self.norm(hidden), self.embed_tokens.weight)[0, 0]
        return Reading(logits, torch.stack(attention).mean(0))

    def read(self, tokens: Tensor, frames: Tensor, seen: Tensor) -> Tensor:
        """Reads whole texts beside the frames that they were heard in; differentiable.

        Args:
            tokens: `[batch, tokens]`, int64, the start token first.
            frames: `[batch, frames, width]` of the voice encoder.
            seen: `[batch, tokens, frames]` or `[batch, 1, frames]`, bool: the frames that each
                token attends to; at least one.

        Returns:
            `[batch, tokens, vocabulary]`: logits of the token after each.
        """
        hidden = self.embed_tokens(tokens)
        table = self.rotary[:, : tokens.shape[1]]
        for layer in self.layers:
            hidden = cast("RecognizerLayer", layer).read(hidden, table, frames, seen[:, None])
        return F.linear(self.norm(hidden), self.embed_tokens.weight)

    @torch.inference_mode()
    def greedy(self, frames: Tensor, max_tokens: int) -> list[int]:
        """The likeliest token after each, until the end token or `max_tokens`.

        Args:
            frames: `[1, frames, width]` of the voice encoder.
            max_tokens: bounded further by the positions that the model has.

        Returns:
            Tokens without start and end; stops early, and cuts, where the same words repeat.
        """
        cache = self.start(frames)
        tokens: list[int] = []
        token = self.config.start_token
        for _ in range(min(max_tokens, self.config.max_tokens - 1)):
            token = int(self(torch.tensor([[token]]), cache)[0, -1].argmax())
            if token == self.config.end_token:
                break
            tokens.append(token)
            if repeated := repetition(tokens):
                return tokens[:-repeated]
        return tokens


class RecognizerLayer(nn.Module):
    """Attention to what was said, attention to what was heard, then a gated MLP."""

    def __init__(self, config: MoonshineRecognizerConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.width, bias=False)
        self.self_attn = FusedProjections(config.width, config.heads)
        self.post_attention_layernorm = nn.LayerNorm(config.width, bias=False)
        self.encoder_attn = CrossAttention(config.width, config.heads)
        self.final_layernorm = nn.LayerNorm(config.width, bias=False)
        self.mlp = GatedMlp(config)

    def hear(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's frames, once an utterance; see `CrossAttention`."""
        return self.encoder_attn.split_heads(frames)

    def forward(
        self,
        hidden: Tensor,
        table: Tensor,
        said: Tensor,
        begin: int,
        heard: tuple[Tensor, Tensor],
        attention: list[Tensor] | None = None,
    ) -> Tensor:
        """Reads `[1, tokens, width]` at position `begin` and writes their keys and values.

        Args:
            hidden: `[1, tokens, width]`.
            table: rows of `rotary_table` for these positions.
            said: `[2, 1, heads, max_tokens, head_dim]`, the layer's keys and values.
            begin: positions that `said` holds already.
            heard: keys and values of the encoder's frames.
            attention: takes how much the last token attends to each frame, `[frames]`, the mean of
                all heads; None for not to compute it.
        """
        joined = self.self_attn.split_heads(self.input_layernorm(hidden))
        query, key = rotate(joined[:2], table)
        tokens = hidden.shape[1]
        said[0, :, :, begin : begin + tokens] = key
        said[1, :, :, begin : begin + tokens] = joined[2]
        keys, values = said[:, :, :, : begin + tokens]
        mask = _causal_mask(begin, tokens) if tokens > 1 else None
        attended = F.scaled_dot_product_attention(query, keys, values, mask)
        hidden = hidden + self.self_attn.merge_heads(attended)
        asked = self.post_attention_layernorm(hidden)
        if attention is not None:
            attention.append(self.encoder_attn.attention(asked[:, -1:], heard))
        hidden = hidden + self.encoder_attn(asked, heard)
        changed: Tensor = self.mlp(self.final_layernorm(hidden))
        return hidden + changed

    def read(self, hidden: Tensor, table: Tensor, frames: Tensor, seen: Tensor) -> Tensor:
        """Reads whole texts, `[batch, tokens, width]`; see `MoonshineRecognizer.read`."""
        joined = self.self_attn.split_heads(self.input_layernorm(hidden))
        query, key = rotate(joined[:2], table)
        attended = F.scaled_dot_product_attention(query, key, joined[2], is_causal=True)
        hidden = hidden + self.self_attn.merge_heads(attended)
        heard = self.hear(frames)
        hidden = hidden + self.encoder_attn(self.post_attention_layernorm(hidden), heard, seen)
        changed: Tensor = self.mlp(self.final_layernorm(hidden))
        return hidden + changed


def _causal_mask(begin: int, tokens: int) -> Tensor:
    return torch.ones(tokens, begin + tokens, dtype=torch.bool).tril(begin)


class CrossAttention(nn.Module):
    """Attention to the encoder's frames, whose keys and values are computed once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def split_heads(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch, frames, width]` to keys and values `[batch, heads, frames, head_dim]`."""
        return self._split(self.k_proj(frames)), self._split(self.v_proj(frames))

    def forward(
        self, hidden: Tensor, heard: tuple[Tensor, Tensor], seen: Tensor | None = None
    ) -> Tensor:
        """`[batch, tokens, width]` to the same; of the frames that are `seen`, all if None."""
        attended = F.scaled_dot_product_attention(self._split(self.q_proj(hidden)), *heard, seen)
        merged: Tensor = self.o_proj(attended.transpose(1, 2).flatten(-2))
        return merged

    def attention(self, hidden: Tensor, heard: tuple[Tensor, Tensor]) -> Tensor:
        """How much one token, `[1, 1, width]`, attends to each frame: `[frames]`."""
        query = self._split(self.q_proj(hidden))
        scores = (query @ heard[0].transpose(-1, -2)) / query.shape[-1] ** 0.5
        attention: Tensor = scores.softmax(-1).mean((0, 1, 2))
        return attention

    def _split(self, frames: Tensor) -> Tensor:
        batch, length, width = frames.shape
        heads = frames.view(batch, length, self.heads, width // self.heads)
        return heads.transpose(1, 2).contiguous()


class GatedMlp(nn.Module):
    """A linear layer gated by the SiLU of another (one matrix), then a linear layer back."""

    def __init__(self, config: MoonshineRecognizerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, 2 * config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, tokens, width]` to the same."""
        passed, gate = self.fc1(hidden).chunk(2, dim=-1)
        changed: Tensor = self.fc2(F.silu(gate) * passed)
        return changed
