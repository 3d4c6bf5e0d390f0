"""The voice token LM: what CosyVoice 2's weights compute, streamed or whole, and its training."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2Model

from minmo.model.interleave import Input, Interleaving, Kind, collate, interleave
from minmo.model.llm import LlmCache, Segment
from minmo.model.packed import PackedLinear
from minmo.model.token_loss import IGNORED, token_loss
from minmo.model.voice_token_lm import (
    VoiceTokenLm,
    VoiceTokenLmConfig,
    from_cosyvoice,
)

_CONFIG = VoiceTokenLmConfig(
    speech_tokens=61,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    norm_epsilon=1e-6,
    rope_theta=1_000_000.0,
    qkv_bias=True,
    tied_embeddings=False,
    max_context=128,
    text_group=5,
    speech_group=15,
    text_vocabulary=0,
)
_CLOSE = {"atol": 1e-4, "rtol": 0.0}


class _Published:
    """CosyVoice 2's LM, of Transformers' Qwen2 and plain tables: small, with random weights."""

    def __init__(self, text_vocabulary: int = 37) -> None:
        torch.manual_seed(0)
        self.trunk = Qwen2Model(
            Qwen2Config(
                vocab_size=text_vocabulary,
                hidden_size=_CONFIG.width,
                intermediate_size=_CONFIG.mlp_width,
                num_hidden_layers=_CONFIG.layers,
                num_attention_heads=_CONFIG.heads,
                num_key_value_heads=_CONFIG.kv_heads,
                max_position_embeddings=_CONFIG.max_context,
                rope_parameters={"rope_type": "default", "rope_theta": _CONFIG.rope_theta},
                rms_norm_eps=_CONFIG.norm_epsilon,
                initializer_range=0.3,
            )
        ).eval()
        for name, parameter in self.trunk.named_parameters():
            if name.endswith("bias") or "norm" in name:
                torch.nn.init.normal_(parameter, 0.5, 0.3)
        # As a file of float16 holds them, so that packing changes nothing.
        for parameter in self.trunk.parameters():
            parameter.data = parameter.data.half().float()
        self.specials = torch.randn(2, _CONFIG.width)
        self.speech_embedding = torch.randn(_CONFIG.classes, _CONFIG.width)
        self.head = torch.randn(_CONFIG.classes, _CONFIG.width).half().float()
        self.bias = torch.randn(_CONFIG.classes)

    def state(self) -> dict[str, Tensor]:
        """The tensors under the names of `llm.pt`."""
        trunk = self.trunk.state_dict().items()
        return {
            **{f"llm.model.model.{name}": value for name, value in trunk},
            "llm.model.lm_head.weight": torch.randn(37, _CONFIG.width),
            "llm_embedding.weight": self.specials,
            "speech_embedding.weight": self.speech_embedding,
            "llm_decoder.weight": self.head,
            "llm_decoder.bias": self.bias,
        }

    def hidden(self, embeddings: Tensor) -> Tensor:
        """`[positions, width]` to the same, through the trunk."""
        return self.trunk(inputs_embeds=embeddings[None], use_cache=False).last_hidden_state[0]

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head, self.bias)

    def embed(self, inputs: Sequence[Input], prefix: Tensor, vectors: Tensor) -> Tensor:
        rows = {
            Kind.START: lambda _: self.specials[0],
            Kind.TURN_OF_SPEECH: lambda _: self.specials[1],
            Kind.PREFIX: lambda number: prefix[number],
            Kind.SEMANTIC: lambda number: vectors[number],
            Kind.SPEECH: lambda token: self.speech_embedding[token],
        }
        return torch.stack([rows[kind](value) for kind, value in inputs])


_PUBLISHED = _Published()


def _lm(packed: bool = False) -> VoiceTokenLm:
    renamed = from_cosyvoice(_CONFIG, _PUBLISHED.state())
    return VoiceTokenLm.from_state_dict(_CONFIG, renamed.state, packed=packed)


_LM = _lm()


def _pair(vectors: int, speech: int, prefix: int) -> tuple[list[Input], list[int]]:
    generator = torch.Generator().manual_seed(vectors)
    tokens = torch.randint(_CONFIG.speech_tokens, (speech,), generator=generator).tolist()
    return interleave(
        vectors,
        tokens,
        speech_tokens=_CONFIG.speech_tokens,
        max_positions=_CONFIG.max_context,
        prefix=prefix,
    )


@torch.inference_mode()
def test_a_whole_interleaved_sequence_gives_the_published_logits() -> None:
    pairs = [_pair(12, 40, prefix=3), _pair(2, 7, prefix=1)]
    prefix, vectors = torch.randn(2, 3, _CONFIG.width), torch.randn(2, 12, _CONFIG.width)
    batch = collate(pairs)
    embeddings = _LM.embed_batch(batch, vectors, prefix)
    hidden = _LM.trunk.forward_sequence(embeddings, batch.lengths)
    logits = _LM.forward_batch(batch, vectors, prefix)
    for row, (inputs, _) in enumerate(pairs):
        expected = _PUBLISHED.hidden(_PUBLISHED.embed(inputs, prefix[row], vectors[row]))
        torch.testing.assert_close(hidden[row, : len(inputs)], expected, **_CLOSE)
        scores = _PUBLISHED.logits(expected)
        torch.testing.assert_close(logits[row, : len(inputs)], scores, **_CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[1] * 60, [3, 6, 1, 20, 30], [59, 1], [17, 2, 2, 39]])
def test_the_cache_gives_the_same_however_the_sequence_is_cut(chunks: list[int]) -> None:
    embeddings = torch.randn(60, _CONFIG.width)
    expected = _PUBLISHED.hidden(embeddings)
    cache = LlmCache(_LM.cache_config, slots=2, context=60)
    cache.keys_values.normal_(std=100)
    start = 0
    for length in chunks:
        rows = embeddings[start : start + length]
        hidden = _LM(rows, [Segment(1, start, length)], cache)
        torch.testing.assert_close(hidden, expected[start : start + length], **_CLOSE)
        start += length


@torch.inference_mode()
def test_sequences_in_other_slots_change_nothing() -> None:
    alone, crowded = (LlmCache(_LM.cache_config, slots=3, context=40) for _ in range(2))
    crowded.keys_values.normal_(std=100)
    mine, others = torch.randn(30, _CONFIG.width), torch.randn(2, 40, _CONFIG.width)
    expected = [_LM(mine[:20], [Segment(1, 0, 20)], alone)]
    expected += [_LM(mine[i, None], [Segment(1, i, 1)], alone) for i in range(20, 30)]
    joined = torch.cat((others[0, :5], mine[:20], others[1, :9]))
    segments = [Segment(0, 0, 5), Segment(1, 0, 20), Segment(2, 0, 9)]
    made = [_LM(joined, segments, crowded)[5:25]]
    slots = torch.tensor([2, 1, 0])
    for i in range(10):
        rows = torch.stack((others[1, 9 + i], mine[20 + i], others[0, 5 + i]))
        positions = torch.tensor([9 + i, 20 + i, 5 + i])
        made.append(_LM.decode(rows, slots, positions, crowded, span=40)[1:2])
    torch.testing.assert_close(torch.cat(made), torch.cat(expected), **_CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("packed", [False, True])
def test_greedy_speech_is_the_published_models(packed: bool) -> None:
    lm = _lm(packed)
    assert packed == any(isinstance(module, PackedLinear) for module in lm.modules())
    vectors, prefix = torch.randn(7, _CONFIG.width), torch.randn(2, _CONFIG.width)
    interleaving = Interleaving(
        _CONFIG.text_group, _CONFIG.speech_group, 60, end=_CONFIG.end, prefix=len(prefix)
    )
    interleaving.push(len(vectors))
    interleaving.end()
    cache = LlmCache(lm.cache_config, slots=1, context=60)
    fed: list[Input] = []
    while interleaving.spoken < 30 and (inputs := interleaving.feed()):
        start = len(fed)
        fed += inputs
        rows = _PUBLISHED.embed(inputs, prefix, vectors)
        if inputs[-1].kind is Kind.SPEECH:
            rows = lm.embed_speech(torch.tensor([inputs[-1].value]))
        hidden = lm(rows, [Segment(0, start, len(inputs))], cache)
        # The whole sequence again, without a cache.
        whole = _PUBLISHED.hidden(_PUBLISHED.embed(fed, prefix, vectors))[-1]
        classes = _CONFIG.speech_tokens + interleaving.may_end
        token = int(lm.logits(hidden[-1:])[0, :classes].argmax())
        assert token == int(_PUBLISHED.logits(whole)[:classes].argmax())
        interleaving.draw(token)
    assert interleaving.spoken == 30 or interleaving.done


def test_cosyvoice_tensors_are_renamed_and_stay_as_they_are() -> None:
    state = _PUBLISHED.state()
    ours = from_cosyvoice(_CONFIG, state)
    assert ours.missing == []
    assert ours.left_over == ["llm.model.model.embed_tokens.weight", "llm.model.lm_head.weight"]
    assert ours.state.keys() == VoiceTokenLm(_CONFIG).state_dict().keys()
    for name, value in _LM.state_dict().items():
        assert torch.equal(value, ours.state[name]), name


def test_renaming_tells_what_is_missing_and_what_is_too_much() -> None:
    state = _PUBLISHED.state()
    del state["llm_decoder.bias"]
    state["llm.model.model.layers.2.mlp.up_proj.weight"] = torch.zeros(1)
    renamed = from_cosyvoice(_CONFIG, state)
    assert renamed.missing == ["llm_decoder.bias"]
    assert "llm.model.model.layers.2.mlp.up_proj.weight" in renamed.left_over
    with pytest.raises(ValueError, match="head_bias"):
        VoiceTokenLm.from_state_dict(_CONFIG, renamed.state)


def test_published_weights_speak_text_tokens_without_an_llm() -> None:
    config = dataclasses.replace(_CONFIG, text_vocabulary=37)
    renamed = from_cosyvoice(config, _PUBLISHED.state())
    assert renamed.left_over == ["llm.model.lm_head.weight"]
    lm = VoiceTokenLm.from_state_dict(config, renamed.state)
    tokens = torch.tensor([3, 36, 0])
    assert torch.equal(lm.embed_text(tokens), _PUBLISHED.trunk.embed_tokens(tokens))
    with pytest.raises(ValueError, match="text_vocabulary is 0"):
        _LM.embed_text(tokens)


def test_a_tied_head_is_stored_once_and_stays_tied() -> None:
    config = dataclasses.replace(_CONFIG, tied_embeddings=True)
    lm = VoiceTokenLm(config)
    state = lm.state_dict()
    assert "trunk.lm_head.weight" not in state
    fewer = sum(p.numel() for p in VoiceTokenLm(_CONFIG).parameters())
    assert fewer - sum(p.numel() for p in lm.parameters()) == config.classes * config.width
    loaded = VoiceTokenLm.from_state_dict(config, state)
    hidden = torch.randn(3, config.width)
    assert torch.equal(loaded.logits(hidden), lm.logits(hidden))
    again = VoiceTokenLm(config)
    again.load_state_dict(state)
    assert again.trunk.lm_head.weight is again.trunk.embed_tokens.weight


def test_garbage_behind_a_sequence_does_not_reach_its_loss() -> None:
    pairs = [_pair(7, 25, prefix=2), _pair(3, 6, prefix=0)]
    prefix, vectors = torch.randn(2, 2, _CONFIG.width), torch.randn(2, 7, _CONFIG.width)
    batch = collate(pairs)
    loss = token_loss(_LM.forward_batch(batch, vectors, prefix), batch.targets)
    vectors[1, 3:] = 1e6
    prefix[1] = 1e6
    again = token_loss(_LM.forward_batch(batch, vectors, prefix), batch.targets)
    assert torch.equal(loss.loss, again.loss)


def test_every_target_counts_the_same_whatever_batch_it_is_in() -> None:
    pairs = [_pair(7, 25, prefix=0), _pair(3, 6, prefix=0)]
    vectors = torch.randn(2, 7, _CONFIG.width)
    batch = collate(pairs)
    together = token_loss(_LM.forward_batch(batch, vectors), batch.targets)
    total = right = count = 0.0
    for row, (_, targets) in enumerate(pairs):
        alone = collate(pairs[row : row + 1])
        logits = _LM.forward_batch(alone, vectors[row : row + 1])[0]
        for scores, target in zip(logits, targets, strict=True):
            if target != IGNORED:
                total -= float(scores.log_softmax(-1)[target])
                right += int(scores.argmax()) == target
                count += 1
    # 25 tokens, a fill and an end; 6 tokens and an end.
    assert int(together.targets) == count == 34
    assert float(together.loss) == pytest.approx(total / count, abs=1e-4)
    assert float(together.accuracy) == pytest.approx(right / count)


def test_label_smoothing_shares_the_target_with_all_classes() -> None:
    logits, targets = torch.randn(1, 2, 8), torch.tensor([[3, IGNORED]])
    scores = logits[0, 0].log_softmax(-1)
    expected = -(0.9 * scores[3] + 0.1 * scores.mean())
    smoothed = token_loss(logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(smoothed.loss, expected)
    nothing = token_loss(logits, torch.full((1, 2), IGNORED))
    assert float(nothing.loss) == float(nothing.accuracy) == 0.0


def test_it_learns_to_say_a_sentence_and_to_end() -> None:
    torch.manual_seed(0)
    lm = VoiceTokenLm(dataclasses.replace(_CONFIG, tied_embeddings=True))
    batch = collate([_pair(6, 22, prefix=1), _pair(2, 5, prefix=1)])
    vectors, prefix = torch.randn(2, 6, _CONFIG.width), torch.randn(2, 1, _CONFIG.width)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    first = None
    for _ in range(40):
        learnt = token_loss(lm.forward_batch(batch, vectors, prefix), batch.targets)
        first = learnt.loss.item() if first is None else first
        optimizer.zero_grad()
        learnt.loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in lm.parameters())
    assert learnt.loss.item() < 0.1 < first
    assert learnt.accuracy.item() == 1.0


def test_it_is_counted_without_memory() -> None:
    with torch.device("meta"):
        lm = VoiceTokenLm(dataclasses.replace(_CONFIG, text_vocabulary=37))
    assert all(parameter.is_meta for parameter in lm.parameters())


@torch.inference_mode()
def test_in_bfloat16_too_one_by_one_gives_what_the_whole_gives() -> None:
    renamed = from_cosyvoice(_CONFIG, _PUBLISHED.state())
    lm = VoiceTokenLm.from_state_dict(_CONFIG, renamed.state, dtype=torch.bfloat16)
    embeddings = torch.randn(2, 60, _CONFIG.width, dtype=torch.bfloat16)
    expected = lm.trunk.forward_sequence(embeddings)
    cache = LlmCache(lm.cache_config, slots=2, context=60, dtype=torch.bfloat16)
    joined = embeddings[:, :20].flatten(0, 1)
    made = [lm(joined, [Segment(0, 0, 20), Segment(1, 0, 20)], cache).unflatten(0, (2, 20))]
    slots = torch.tensor([0, 1])
    for position in range(20, 60):
        where = torch.tensor([position] * 2)
        rows = lm.trunk.decode(embeddings[:, position], slots, where, cache, span=60)
        made.append(rows[:, None])
    hidden = torch.cat(made, 1)
    # Where numbers are between 2 and 4, bfloat16 has steps of 0.016; a few of them add up.
    assert hidden.dtype == torch.bfloat16 and 2 < expected.abs().max() < 8
    torch.testing.assert_close(hidden, expected, atol=0.08, rtol=0)
    assert lm.logits(hidden).dtype == torch.float32
    torch.testing.assert_close(lm.logits(hidden), lm.logits(expected), atol=0.3, rtol=0)
