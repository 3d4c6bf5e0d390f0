"""Our decoder against the reference implementation, on random weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from minmo.model.llm import Llm, LlmCache, LlmConfig, Segment
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


@torch.inference_mode()
def test_pieces_in_a_shared_batch_give_what_the_whole_gives_alone() -> None:
    model = Llm.from_state_dict(CONFIG, random_state(CONFIG))
    whole = model(model.embed(IDS), [Segment(0, 0, len(IDS))], LlmCache(CONFIG, 1, 32))
    cache = LlmCache(CONFIG, slots=3, context=32)
    cache.keys_values.fill_(float("nan"))  # what was never written must never be read
    found = []
    for start, end in ((0, 4), (4, 5), (5, 9), (9, 11)):
        other = torch.arange(start, end)
        rows = torch.cat((model.embed(other), model.embed(IDS[start:end]), torch.zeros(3, 32)))
        segments = [Segment(2, start, end - start), Segment(0, start, end - start)]
        found.append(model(rows, segments, cache)[end - start : 2 * (end - start)])
    assert (torch.cat(found) - whole).abs().max() < 1e-5
    assert (cache.hidden[0, : len(IDS)] - whole).abs().max() < 1e-5


@torch.inference_mode()
def test_a_copied_slot_goes_on_as_the_original_does() -> None:
    model = Llm.from_state_dict(CONFIG, random_state(CONFIG))
    cache = LlmCache(CONFIG, slots=2, context=32)
    model(model.embed(IDS), [Segment(0, 0, len(IDS))], cache)
    cache.copy(0, 1, 6)
    rows = model.embed(IDS[6:])
    copied = model(rows, [Segment(1, 6, 5)], cache)
    assert (copied - cache.hidden[0, 6:11]).abs().max() < 1e-5


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
