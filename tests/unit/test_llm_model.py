"""Our decoder against the reference implementation, on random weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from minmo.model.llm import Llm, LlmCache, LlmConfig, Segment, random_llm
from minmo.presets import load_preset
from tests.streaming_llm import (
    check_any_chunking,
    check_decoding,
    check_forks_and_cuts,
    check_reuse,
)
from tests.unit.tiny_llm import CONFIG, random_state

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}
IDS = torch.tensor([5, 17, 80, 3, 3, 42, 96, 0, 11, 29, 64])


def reference(family: str, tied: bool) -> LlamaForCausalLM | Qwen2ForCausalLM:
    torch.manual_seed(1)
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    sizes = {**SIZES, "tie_word_embeddings": tied, "rope_parameters": rope}
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", True), ("qwen2", False)])
@torch.inference_mode()
def test_computes_what_transformers_computes(family: str, tied: bool, packed: bool) -> None:
    theirs = reference(family, tied)
    if packed:
        theirs = theirs.half().float()
    config = LlmConfig.from_dict(theirs.config.to_dict())
    ours = Llm.from_state_dict(config, theirs.state_dict(), packed=packed)
    expected = theirs(IDS[None], output_hidden_states=True)
    cache = LlmCache(config, slots=2, context=32)
    hidden = ours(ours.embed(IDS), [Segment(1, 0, len(IDS))], cache)
    assert (hidden - expected.hidden_states[-1][0]).abs().max() < 1e-4
    assert (ours.logits(hidden) - expected.logits[0]).abs().max() < 1e-4


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False)])
def test_reads_whole_sequences_as_transformers_and_as_the_cached_forward(
    family: str, tied: bool
) -> None:
    theirs = reference(family, tied)
    config = LlmConfig.from_dict(theirs.config.to_dict())
    ours = Llm.from_state_dict(config, theirs.state_dict())
    batch = torch.stack((IDS, IDS.flip(0)))
    lengths = torch.tensor([len(IDS), 6])
    embeddings = ours.embed(batch.flatten()).view(2, len(IDS), -1).clone()
    embeddings[1, 6:] = float("nan")
    embeddings.requires_grad_()
    hidden = ours.forward_sequence(embeddings, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = theirs(batch[None, row, :length], output_hidden_states=True).hidden_states[-1]
        assert (hidden[row, :length] - expected[0]).abs().max() < 1e-4
        assert (hidden[row, length:] == 0).all()
        cache = LlmCache(config, slots=1, context=32)
        with torch.inference_mode():
            cached = ours(embeddings[row, :length], [Segment(0, 0, length)], cache)
        assert (hidden[row, :length] - cached).abs().max() < 1e-5
    hidden.square().sum().backward()
    assert embeddings.grad is not None and embeddings.grad.isfinite().all()
    assert (embeddings.grad[1, 6:] == 0).all() and (embeddings.grad[1, :6] != 0).any()


def test_branches_that_share_their_beginning_are_read_as_each_by_itself() -> None:
    model = random_llm(CONFIG, 3)
    # Rows 0 to 2 are shared; 3 and 4 go on from row 2, 5 and 6 from row 1.
    paths = [[0, 1, 2, 3, 4], [0, 1, 5, 6]]
    seen = torch.eye(7, dtype=torch.bool)
    positions = torch.zeros(7, dtype=torch.int64)
    for path in paths:
        for place, row in enumerate(path):
            positions[row] = place
            seen[row, path[:place]] = True
    embeddings = model.embed(IDS[:7])[None].repeat(2, 1, 1)
    embeddings[1] = embeddings[1].flip(0)
    with torch.inference_mode():
        hidden = model.forward_tree(embeddings, positions.repeat(2, 1), seen.repeat(2, 1, 1))
        for number in range(2):
            for path in paths:
                expected = model.forward_sequence(embeddings[number, path][None])[0]
                torch.testing.assert_close(hidden[number, path], expected, atol=1e-5, rtol=0)


def test_trains_every_weight_of_a_decoder_that_is_not_loaded() -> None:
    model = random_llm(dataclasses.replace(CONFIG, qkv_bias=True, tied_embeddings=False))
    embeddings = model.embed(IDS)[None]
    loss = nn.functional.cross_entropy(model.logits(model.forward_sequence(embeddings))[0], IDS)
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert loss < 6


def test_a_random_decoder_is_the_same_for_the_same_seed_and_ties_what_is_tied() -> None:
    before = torch.get_rng_state()
    config = dataclasses.replace(CONFIG, tied_embeddings=True)
    first, again, other = (random_llm(config, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.layers[0].mlp.down_proj.weight, again.layers[0].mlp.down_proj.weight)
    assert not torch.equal(first.embed_tokens.weight, other.embed_tokens.weight)
    assert first.lm_head.weight is first.embed_tokens.weight
    assert random_llm(CONFIG, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(("preset", "millions"), [("8b", 7615.6), ("mini", 134.5)])
def test_a_preset_has_the_published_number_of_parameters(preset: str, millions: float) -> None:
    with torch.device("meta"):
        model = Llm(load_preset(preset).llm)
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.1
    )


@torch.inference_mode()
def test_decoding_many_at_once_gives_what_reading_each_gives() -> None:
    model = Llm.from_state_dict(CONFIG, random_state(CONFIG))
    caches = [LlmCache(CONFIG, slots=4, context=32) for _ in range(2)]
    lengths, slots = (10, 3, 7), (2, 0, 3)
    for cache in caches:
        cache.keys_values.fill_(float("nan"))  # what was never written must never be read
        prompts = [Segment(slot, 0, n) for slot, n in zip(slots, lengths, strict=True)]
        model(model.embed(torch.cat([IDS[:n] for n in lengths])), prompts, cache)
    for step in range(3):
        positions = [length + step for length in lengths]
        rows = model.embed(torch.tensor([step, 40, 7]))
        segments = [Segment(slot, n, 1) for slot, n in zip(slots, positions, strict=True)]
        expected = model(rows, segments, caches[0])
        padded = torch.cat((rows, rows.new_zeros(2, CONFIG.width)))
        where = torch.tensor([*positions, caches[1].scratch, caches[1].scratch])
        hidden = model.decode(padded, torch.tensor([*slots, 0, 0]), where, caches[1], span=16)
        assert (hidden[:3] - expected).abs().max() < 1e-5
        for slot, position in zip(slots, positions, strict=True):
            kept = [cache.hidden[slot, position] for cache in caches]
            assert (kept[0] - kept[1]).abs().max() < 1e-5
    assert caches[1].keys_values[:, :, 1].isnan().all()  # nobody's slot
    assert caches[1].keys_values[:, :, 2, :, 13:32].isnan().all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    ],
)
def test_refuses_a_variant_that_it_does_not_compute(change: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        LlmConfig.from_dict({"model_type": "llama", **SIZES, **change})


def test_names_the_tensor_that_is_missing() -> None:
    state = random_state(CONFIG)
    del state["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.k_proj"):
        Llm.from_state_dict(CONFIG, state)


def test_refuses_weights_of_another_size() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Llm.from_state_dict(dataclasses.replace(CONFIG, mlp_width=64), random_state(CONFIG))


def test_refuses_more_context_than_the_model_was_trained_for() -> None:
    with pytest.raises(ValueError, match="513"):
        LlmCache(CONFIG, slots=1, context=513)


@pytest.fixture(scope="module")
def streaming() -> tuple[Llm, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(0, 97, (length,), generator=generator) for length in (60, 7, 33)]
    return Llm.from_state_dict(CONFIG, random_state(CONFIG)), ids


@pytest.mark.parametrize("seed", range(4))
def test_any_chunking_gives_what_the_whole_gives(
    streaming: tuple[Llm, list[torch.Tensor]], seed: int
) -> None:
    check_any_chunking(*streaming, atol=2e-5, seed=seed)


def test_decoding_all_at_once_gives_what_the_whole_gives(
    streaming: tuple[Llm, list[torch.Tensor]],
) -> None:
    check_decoding(*streaming, atol=2e-5)


def test_in_bfloat16_too_pieces_give_what_the_whole_gives() -> None:
    # Where numbers are between 2 and 4, bfloat16 has steps of 0.016; a few of them add up.
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(0, 97, (length,), generator=generator) for length in (60, 7, 33)]
    llm = Llm.from_state_dict(CONFIG, random_state(CONFIG), torch.bfloat16)
    check_any_chunking(llm, ids, atol=0.06)
    check_decoding(llm, ids, atol=0.06)


def test_forks_and_cuts_go_on_as_new_sequences(
    streaming: tuple[Llm, list[torch.Tensor]],
) -> None:
    llm, (ids, _, other) = streaming
    check_forks_and_cuts(llm, ids, other, atol=2e-5)


def test_a_slot_shows_nothing_of_who_had_it_before(
    streaming: tuple[Llm, list[torch.Tensor]],
) -> None:
    llm, (ids, other, _) = streaming
    check_reuse(llm, ids, other, atol=2e-5)


@torch.inference_mode()
def test_decoding_reads_nothing_back_and_makes_nothing_on_the_host() -> None:
    """Either would end a recording on a GPU."""
    called: set[str] = set()

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            called.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    llm = random_llm(CONFIG)
    cache = LlmCache(CONFIG, slots=2, context=32)
    tokens, slots, positions = torch.tensor([[5, 7], [0, 1], [0, 0]])
    with Listener():
        llm.decode(llm.embed(tokens), slots, positions, cache, span=16)
    assert "index_copy_" in called
    forbidden = {"_local_scalar_dense", "nonzero", "lift_fresh", "scalar_tensor", "masked_select"}
    assert not called & forbidden
