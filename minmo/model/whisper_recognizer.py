"""Whisper's decoder: the voice encoder's frames in, text tokens out.

The recogniser of the cascade where the voice encoder is Whisper's. Parameters are named as in
`transformers`, without the prefix `model.decoder.`; the output matrix is the embedding matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.recognition import RecognizerCache, repetition


@dataclass(frozen=True)
class WhisperRecognizerConfig:
    """Sizes of the recogniser.

    Attributes:
        width: of a position.
        mlp_width: inner channels of a layer's MLP.
        layers: Transformer layers.
        heads: attention heads.
        vocabulary_size: tokens.
        max_tokens: positions, those of the prompt included.
    """

    width: int
    mlp_width: int
    layers: int
    heads: int
    vocabulary_size: int
    max_tokens: int


@dataclass(frozen=True)
class WhisperPrompt:
    """What a transcription starts with, and what it may not say.

    Attributes:
        start_token: opens every prompt.
        languages: token of each language, by its code; empty where the model knows English only.
        after_language: tokens between the language and the text: the task, no timestamps.
        end_token: ends the text.
        suppressed: tokens that are no text.
        suppressed_first: tokens that the text cannot begin with.
    """

    start_token: int
    languages: Mapping[str, int]
    after_language: tuple[int, ...]
    end_token: int
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads a Whisper checkpoint's `generation_config.json`."""
        languages = {
            name.strip("<|>"): int(token) for name, token in config.get("lang_to_id", {}).items()
        }
        task = [int(config["task_to_id"]["transcribe"])] if languages else []
        end = config["eos_token_id"]
        return cls(
            start_token=int(config["decoder_start_token_id"]),
            languages=languages,
            after_language=(*task, int(config["no_timestamps_token_id"])),
            end_token=int(end[0] if isinstance(end, list) else end),
            suppressed=tuple(config.get("suppress_tokens") or ()),
            suppressed_first=tuple(config.get("begin_suppress_tokens") or ()),
        )


class WhisperRecognizer(nn.Module):
    """A Transformer decoder that reads encoder frames through cross-attention."""

    def __init__(self, config: WhisperRecognizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.embed_positions = nn.Embedding(config.max_tokens, config.width)
        self._blocks = [WhisperRecognizerLayer(config) for _ in range(config.layers)]
        self.layers = nn.ModuleList(self._blocks)
        self.layer_norm = nn.LayerNorm(config.width)

    def start(self, frames: Tensor) -> RecognizerCache:
        """Opens an utterance.

        Args:
            frames: `[1, frames, width]` of the voice encoder.
        """
        config = self.config
        head_dim = config.width // config.heads
        said = frames.new_empty(config.layers, 2, 1, config.heads, config.max_tokens, head_dim)
        return RecognizerCache(said, [layer.hear(frames) for layer in self._blocks])

    def forward(self, tokens: Tensor, cache: RecognizerCache) -> Tensor:
        """Reads the next tokens of an utterance.

        Args:
            tokens: `[1, tokens]`, int64.
            cache: of the utterance; grows by the tokens.

        Returns:
            `[1, tokens, vocabulary]`: logits of the token after each.

        Raises:
            ValueError: there are no positions left.
        """
        begin, end = cache.length, cache.length + tokens.shape[1]
        if end > self.config.max_tokens:
            raise ValueError(
                f"{end} tokens do not fit: an utterance has at most {self.config.max_tokens}"
            )
        hidden = self.embed_tokens(tokens) + self.embed_positions.weight[begin:end]
        for layer, said, heard in zip(self._blocks, cache.said, cache.heard, strict=True):
            hidden = layer(hidden, said, begin, heard)
        cache.length = end
        return F.linear(self.layer_norm(hidden), self.embed_tokens.weight)

    @torch.inference_mode()
    def greedy(
        self, frames: Tensor, max_tokens: int, prompt: WhisperPrompt, language: str | None = None
    ) -> list[int]:
        """The likeliest token after each, until the end token or `max_tokens`.

        Args:
            frames: `[1, frames, width]` of the voice encoder, of 30 s as Whisper was trained.
            max_tokens: bounded further by the positions that the model has.
            prompt: what stands before the text.
            language: its code; the likeliest one if None.

        Returns:
            Tokens of the text; stops early, and cuts, where the same words repeat.

        Raises:
            ValueError: the model does not know the language.
        """
        cache = self.start(frames)
        logits = self._read([prompt.start_token], cache)
        if prompt.languages:
            logits = self._read([_language_token(prompt, language, logits)], cache)
        logits = self._read(prompt.after_language, cache)
        first = list({*prompt.suppressed_first, *prompt.suppressed})
        later = list(prompt.suppressed)
        tokens: list[int] = []
        for _ in range(min(max_tokens, self.config.max_tokens - cache.length)):
            logits[later if tokens else first] = float("-inf")
            token = int(logits.argmax())
            if token == prompt.end_token:
                break
            tokens.append(token)
            if repeated := repetition(tokens):
                return tokens[:-repeated]
            logits = self._read([token], cache)
        return tokens

    def _read(self, tokens: Sequence[int], cache: RecognizerCache) -> Tensor:
        """`[vocabulary]`, logits after the last of these tokens."""
        device = self.embed_tokens.weight.device
        logits: Tensor = self(torch.tensor([list(tokens)], device=device), cache)
        return logits[0, -1]


def _language_token(prompt: WhisperPrompt, language: str | None, logits: Tensor) -> int:
    if language is None:
        known = list(prompt.languages.values())
        return known[int(logits[known].argmax())]
    if language not in prompt.languages:
        raise ValueError(
            f"language is {language!r}; the model knows {', '.join(sorted(prompt.languages))}"
        )
    return prompt.languages[language]


class WhisperRecognizerLayer(nn.Module):
    """Attention to what was said, attention to what was heard, then an MLP."""

    def __init__(self, config: WhisperRecognizerConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = WhisperAttention(width, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = WhisperAttention(width, config.heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def hear(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's frames, once an utterance."""
        return self.encoder_attn.keys_values(frames)

    def forward(
        self, hidden: Tensor, said: Tensor, begin: int, heard: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Reads `[1, tokens, width]` at position `begin` and writes their keys and values.

        Args:
            hidden: `[1, tokens, width]`.
            said: `[2, 1, heads, max_tokens, head_dim]`, the layer's keys and values.
            begin: positions that `said` holds already.
            heard: keys and values of the encoder's frames.
        """
        normed = self.self_attn_layer_norm(hidden)
        tokens = hidden.shape[1]
        said[:, :, :, begin : begin + tokens] = torch.stack(self.self_attn.keys_values(normed))
        mask = None
        if tokens > 1:
            mask = torch.ones(tokens, begin + tokens, dtype=torch.bool, device=hidden.device)
            mask = mask.tril(begin)
        keys, values = said[:, :, :, : begin + tokens]
        hidden = hidden + self.self_attn(normed, keys, values, mask)
        hidden = hidden + self.encoder_attn(self.encoder_attn_layer_norm(hidden), *heard)
        changed: Tensor = self.fc2(F.gelu(self.fc1(self.final_layer_norm(hidden))))
        return hidden + changed


class WhisperAttention(nn.Module):
    """Attention whose keys have no bias, as Whisper's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def keys_values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch, frames, width]` to keys and values `[batch, heads, frames, head_dim]`."""
        return self._split(self.k_proj(frames)), self._split(self.v_proj(frames))

    def forward(
        self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """`[batch, tokens, width]` to the same."""
        query = self._split(self.q_proj(hidden))
        attended = F.scaled_dot_product_attention(query, keys, values, mask)
        merged: Tensor = self.out_proj(attended.transpose(1, 2).flatten(-2))
        return merged

    def _split(self, frames: Tensor) -> Tensor:
        batch, length, width = frames.shape
        heads = frames.view(batch, length, self.heads, width // self.heads)
        return heads.transpose(1, 2).contiguous()
