"""The voice token LM: semantic vectors in, speech tokens out (the LM of CosyVoice 2).

A decoder of the Qwen2.5 family whose vocabulary is the speech tokens, behind a head with a bias.
It reads the sequence of `minmo.model.interleave`; the paper's section 3.2 describes the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from minmo.model.interleave import InterleavedBatch, Kind
from minmo.model.llm import Llm, LlmCache, LlmConfig, Segment
from minmo.model.packed import pack_linears

SPECIAL_CLASSES = 3
"""Classes behind the speech tokens: the end, one without use, the fill (as in CosyVoice 2)."""

_INITIAL_DEVIATION = 0.02
_START, _TURN_OF_SPEECH = 0, 1


@dataclass(frozen=True)
class VoiceTokenLmConfig:
    """Sizes of the voice token LM.

    Attributes:
        speech_tokens: of the speech tokenizer.
        width: of embeddings and hidden states.
        layers: decoder blocks.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        mlp_width: inner width of the gated MLP.
        norm_epsilon: of every RMS norm.
        rope_theta: base of the rotary frequencies.
        qkv_bias: whether the query, key and value projections have biases.
        tied_embeddings: whether the head reads the table of speech embeddings.
        max_context: positions of a sequence.
        text_group: semantic vectors of a group.
        speech_group: speech tokens that follow each group of semantic vectors.
        text_vocabulary: rows of a table of text embeddings, with which CosyVoice 2's own weights
            speak text tokens without an LLM's hidden states; 0 for none.
    """

    speech_tokens: int
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
    text_group: int
    speech_group: int
    text_vocabulary: int

    @property
    def classes(self) -> int:
        """Classes of the head: speech tokens, then the specials."""
        return self.speech_tokens + SPECIAL_CLASSES

    @property
    def end(self) -> int:
        """The class that ends the speech."""
        return self.speech_tokens

    @property
    def fill(self) -> int:
        """The class that follows a full group of speech: semantic vectors come next."""
        return self.speech_tokens + 2

    @property
    def trunk(self) -> LlmConfig:
        """The decoder's sizes; its vocabulary is the classes."""
        return LlmConfig(
            vocabulary_size=self.classes,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width,
            norm_epsilon=self.norm_epsilon,
            rope_theta=self.rope_theta,
            qkv_bias=self.qkv_bias,
            tied_embeddings=self.tied_embeddings,
            max_context=self.max_context,
        )


class VoiceTokenLm(nn.Module):
    """The decoder, with the vectors and the bias that an LLM has not.

    State dicts keep query, key and value, and gate and up, as tensors of their own under the names
    of `transformers`; they are joined when one is loaded.
    """

    def __init__(self, config: VoiceTokenLmConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Llm(config.trunk)
        self.head_bias = nn.Parameter(torch.zeros(config.classes))
        self.specials = nn.Parameter(_drawn(2, config.width))
        self.text_embedding: nn.Embedding | None = None
        if config.text_vocabulary:
            table = _drawn(config.text_vocabulary, config.width)
            self.text_embedding = nn.Embedding(config.text_vocabulary, config.width, _weight=table)
        self.register_load_state_dict_pre_hook(_join)  # type: ignore[no-untyped-call]
        self.register_state_dict_post_hook(_part)  # type: ignore[no-untyped-call]

    @classmethod
    def from_state_dict(
        cls,
        config: VoiceTokenLmConfig,
        state: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        packed: bool = False,
    ) -> Self:
        """Builds the LM for inference from tensors with the names of `state_dict`.

        Args:
            config: its sizes.
            state: the tensors, in any float dtype.
            dtype: of computation.
            device: where to compute.
            packed: whether to read weights from float16 where that changes nothing
                (`minmo.model.packed`).

        Raises:
            ValueError: a tensor is missing, left over, or has another shape.
        """
        with torch.device("meta"):
            model = cls(config)
        try:
            model.load_state_dict(dict(state), assign=True)
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit the configuration: {error}") from error
        model.requires_grad_(False)
        model.to(device, dtype)
        if packed and dtype == torch.float32:
            pack_linears(model.trunk)
        return model.eval()

    @property
    def cache_config(self) -> LlmConfig:
        """What an `LlmCache` of it is made from."""
        return self.trunk.config

    @property
    def start(self) -> Tensor:
        """`[width]`, the input that starts a sequence."""
        return self.specials[_START]

    @property
    def turn_of_speech(self) -> Tensor:
        """`[width]`, the input after the last semantic vector: from here on speech only."""
        return self.specials[_TURN_OF_SPEECH]

    def embed_speech(self, tokens: Tensor) -> Tensor:
        """Input embeddings `[..., width]` of speech tokens `[...]`."""
        return self.trunk.embed(tokens)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Semantic vectors `[..., width]` of text tokens `[...]`, from the table of its own.

        Raises:
            ValueError: the LM has no such table.
        """
        if self.text_embedding is None:
            raise ValueError(
                "the voice token LM has no text embeddings (text_vocabulary is 0): "
                "make semantic vectors with the output projector"
            )
        vectors: Tensor = self.text_embedding(tokens)
        return vectors

    def forward(self, embeddings: Tensor, segments: Sequence[Segment], cache: LlmCache) -> Tensor:
        """Last hidden states of new positions, which join the cache; for inference.

        Args:
            embeddings: `[rows, width]`, the new positions of all segments, one after the other.
            segments: whose positions the rows are.
            cache: read up to each segment's start, written from there on.

        Returns:
            `[rows, width]`, what `logits` reads.
        """
        hidden: Tensor = self.trunk(embeddings, segments, cache)
        return hidden

    def decode(
        self, embeddings: Tensor, slots: Tensor, positions: Tensor, cache: LlmCache, span: int
    ) -> Tensor:
        """One new position for each of many sequences; as `Llm.decode`.

        Args:
            embeddings: `[rows, width]`.
            slots: `[rows]`, int64.
            positions: `[rows]`, int64; `cache.scratch` for a row that is nobody's.
            cache: read up to each position, written there.
            span: positions that are looked at in every slot.

        Returns:
            `[rows, width]`, what `logits` reads.
        """
        return self.trunk.decode(embeddings, slots, positions, cache, span)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[..., classes]`, float32, of hidden states `[..., width]`."""
        return self.trunk.logits(hidden) + self.head_bias.float()

    def embed_batch(
        self, batch: InterleavedBatch, vectors: Tensor, prefix: Tensor | None = None
    ) -> Tensor:
        """Inputs of whole interleaved sequences.

        Args:
            batch: their layout.
            vectors: `[batch, vectors, width]`, the semantic vectors of each.
            prefix: `[batch, positions, width]`, the vectors of each one's query; None for none.

        Returns:
            `[batch, positions, width]`.
        """
        specials = self.specials.to(vectors).expand(len(vectors), -1, -1)
        prefix = vectors[:, :0] if prefix is None else prefix
        given = torch.cat((specials, prefix, vectors), dim=1)
        # Where each kind's vectors start in that table; speech has one of its own.
        starts = {Kind.START: 0, Kind.TURN_OF_SPEECH: 1, Kind.PREFIX: 2, Kind.SPEECH: 0}
        starts[Kind.SEMANTIC] = 2 + prefix.shape[1]
        offsets = torch.tensor([starts[kind] for kind in Kind], device=given.device)
        is_speech = batch.kinds == Kind.SPEECH
        rows = offsets[batch.kinds] + batch.values.masked_fill(is_speech, 0)
        read = given.gather(1, rows[:, :, None].expand(-1, -1, given.shape[2]))
        spoken = self.embed_speech(batch.values.masked_fill(~is_speech, 0))
        return torch.where(is_speech[:, :, None], spoken, read)

    def forward_batch(
        self, batch: InterleavedBatch, vectors: Tensor, prefix: Tensor | None = None
    ) -> Tensor:
        """Logits of whole interleaved sequences, differentiable.

        Args:
            batch: their layout.
            vectors: `[batch, vectors, width]`, the semantic vectors of each.
            prefix: `[batch, positions, width]`, the vectors of each one's query; None for none.

        Returns:
            `[batch, positions, classes]`, float32; those at a position predict its target.
        """
        embeddings = self.embed_batch(batch, vectors, prefix)
        return self.logits(self.trunk.forward_sequence(embeddings, batch.lengths))


class Renamed(NamedTuple):
    """Tensors under other names.

    Attributes:
        state: what was found.
        missing: names that were looked for in vain.
        left_over: names that nothing was made of.
    """

    state: dict[str, Tensor]
    missing: list[str]
    left_over: list[str]


def from_cosyvoice(config: VoiceTokenLmConfig, state: Mapping[str, Tensor]) -> Renamed:
    """Renames the tensors of CosyVoice 2's `llm.pt` to those of `VoiceTokenLm.state_dict`.

    Its text head, `llm.model.lm_head`, serves nobody and is left over; so is its table of text
    embeddings where the configuration has none.

    Args:
        config: sizes of the LM; decides which tensors it has.
        state: the tensors under CosyVoice 2's names.
    """
    names = {theirs: ours for ours, theirs in _names(config).items()}
    return Renamed(
        {new: state[old] for old, new in names.items() if old in state},
        [old for old in names if old not in state],
        [old for old in state if old not in names],
    )


def _names(config: VoiceTokenLmConfig) -> dict[str, str]:
    """CosyVoice 2's name for each of ours."""
    names = {
        "specials": "llm_embedding.weight",
        "trunk.embed_tokens.weight": "speech_embedding.weight",
        "trunk.lm_head.weight": "llm_decoder.weight",
        "head_bias": "llm_decoder.bias",
        "trunk.norm.weight": "llm.model.model.norm.weight",
    }
    if config.tied_embeddings:
        del names["trunk.lm_head.weight"]
    if config.text_vocabulary:
        names["text_embedding.weight"] = "llm.model.model.embed_tokens.weight"
    parts = [f"self_attn.{part}_proj.weight" for part in "qkvo"]
    if config.qkv_bias:
        parts += [f"self_attn.{part}_proj.bias" for part in "qkv"]
    parts += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    parts += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    for layer in range(config.layers):
        for part in parts:
            names[f"trunk.layers.{layer}.{part}"] = f"llm.model.model.layers.{layer}.{part}"
    return names


def _drawn(rows: int, width: int) -> Tensor:
    table = torch.empty(rows, width)
    if not table.is_meta:
        nn.init.normal_(table, std=_INITIAL_DEVIATION)
    return table


def _fusions(config: VoiceTokenLmConfig) -> list[tuple[str, dict[str, int]]]:
    """Names of the trunk's joined tensors, with the parts that each is made of and their rows."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = {"q": queries, "k": keys, "v": keys}
    mlp = {"gate": config.mlp_width, "up": config.mlp_width}
    fusions = []
    for layer in range(config.layers):
        name = f"trunk.layers.{layer}."
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            parts = {f"{name}self_attn.{part}_proj.{kind}": r for part, r in attention.items()}
            fusions.append((f"{name}self_attn.qkv_proj.{kind}", parts))
        parts = {f"{name}mlp.{part}_proj.weight": rows for part, rows in mlp.items()}
        fusions.append((f"{name}mlp.gate_up_proj.weight", parts))
    return fusions


def _join(module: VoiceTokenLm, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for joined, parts in _fusions(module.config):
        names = [prefix + part for part in parts]
        if all(name in state for name in names):
            state[prefix + joined] = torch.cat([state.pop(name) for name in names])
    table = f"{prefix}trunk.embed_tokens.weight"
    if module.config.tied_embeddings and table in state:
        state[f"{prefix}trunk.lm_head.weight"] = state[table]


def _part(module: VoiceTokenLm, state: dict[str, Any], prefix: str, _: Any) -> None:
    for joined, parts in _fusions(module.config):
        if prefix + joined not in state:  # a packed layer keeps its numbers to itself
            continue
        split = state.pop(prefix + joined).split(list(parts.values()))
        state.update({prefix + name: part for name, part in zip(parts, split, strict=True)})
    if module.config.tied_embeddings:
        state.pop(f"{prefix}trunk.lm_head.weight", None)
