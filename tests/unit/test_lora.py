"""LoRA on the LLM, against transformers and peft on the same tiny model."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from minmo.model.llm import Llm, LlmCache, LlmConfig, Segment
from minmo.model.lora import (
    LINEARS,
    add_lora,
    load_lora_state_dict,
    lora_config,
    lora_state_dict,
    merge_lora,
    merge_published_lora,
)
from minmo.weights.adapter import load_adapter, merge_adapter, save_adapter
from minmo.weights.errors import WeightsError
from tests.unit.test_llm_model import IDS, reference
from tests.unit.tiny_llm import CONFIG, random_state

PLAIN = "ab" * 32
"""Hash of the LLM without adapters."""


def plain_llm() -> Llm:
    return Llm.from_state_dict(CONFIG, random_state(CONFIG))


def randomised(llm: Llm) -> Llm:
    """Adapters as if they had been trained."""
    generator = torch.Generator().manual_seed(2)
    for weight in llm.parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.2, generator=generator)
    return llm


@torch.no_grad()
def read(llm: Llm) -> Tensor:
    return llm.forward_sequence(llm.embed(IDS)[None])[0]


@pytest.mark.parametrize("targets", [LINEARS, ("qkv_proj",)])
def test_training_changes_adapters_only(targets: tuple[str, ...]) -> None:
    llm = plain_llm()
    untouched = {name: weight.clone() for name, weight in llm.named_parameters()}
    before = read(llm)
    add_lora(llm, rank=4, alpha=8, targets=targets)
    assert torch.equal(read(llm), before)
    trained = [weight for weight in llm.parameters() if weight.requires_grad]
    assert len(trained) == 2 * CONFIG.layers * len(targets)
    optimiser = torch.optim.SGD(trained, lr=1.0)
    for _ in range(2):
        optimiser.zero_grad()
        llm.forward_sequence(llm.embed(IDS)[None]).square().mean().backward()
        optimiser.step()
    assert (read(llm) - before).abs().max() > 1e-3
    after = {n.replace(".base_layer", ""): w for n, w in llm.named_parameters() if "lora_" not in n}
    assert after.keys() == untouched.keys()
    assert all(torch.equal(after[name], weight) for name, weight in untouched.items())


def test_merged_weights_compute_what_weights_and_adapters_compute() -> None:
    llm = plain_llm()
    add_lora(llm, rank=4, alpha=8)
    expected = read(randomised(llm))
    assert (expected - read(plain_llm())).abs().max() > 0.1
    merge_lora(llm)
    assert llm.state_dict().keys() == plain_llm().state_dict().keys()
    assert (read(llm) - expected).abs().max() < 1e-5
    with torch.inference_mode():
        cached = llm(llm.embed(IDS), [Segment(0, 0, len(IDS))], LlmCache(CONFIG, 1, 32))
    assert (cached - expected).abs().max() < 1e-5


def test_adapters_that_were_saved_go_on_as_they_were(tmp_path: Path) -> None:
    llm, other, scaled = plain_llm(), plain_llm(), plain_llm()
    add_lora(llm, rank=4, alpha=8)
    add_lora(other, rank=4, alpha=8)
    add_lora(scaled, rank=4, alpha=9)
    save_adapter(randomised(llm), tmp_path, PLAIN)
    load_adapter(other, tmp_path, PLAIN)
    assert torch.equal(read(other), read(llm))
    with pytest.raises(WeightsError, match="lora_alpha is 8, the LLM's 9"):
        load_adapter(scaled, tmp_path, PLAIN)


def test_an_adapter_is_refused_by_another_llm_than_it_was_trained_against(tmp_path: Path) -> None:
    llm = plain_llm()
    add_lora(llm, rank=4, alpha=8)
    save_adapter(llm, tmp_path, PLAIN)
    other = "cd" * 32
    message = f"trained against another llm: expected sha256 {PLAIN}, found {other}"
    with pytest.raises(WeightsError, match=message):
        load_adapter(llm, tmp_path, other)
    with pytest.raises(WeightsError, match=message):
        merge_adapter(random_state(CONFIG), tmp_path, other)
    merge_adapter(random_state(CONFIG), tmp_path, PLAIN)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_adapters_trained_here_fit_the_plain_model(family: str, tmp_path: Path) -> None:
    theirs = reference(family, tied=True)
    llm = Llm.from_state_dict(LlmConfig.from_dict(theirs.config.to_dict()), theirs.state_dict())
    add_lora(llm, rank=4, alpha=6)
    randomised(llm)
    save_adapter(llm, tmp_path, PLAIN)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path)
    expected = adapted(IDS[None], output_hidden_states=True).hidden_states[-1][0]
    assert (read(llm) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_published_adapter_is_merged_as_peft_merges_it(
    family: str, rslora: bool, tmp_path: Path
) -> None:
    theirs = reference(family, tied=False)
    weights = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    adapted = publish(theirs, tmp_path, use_rslora=rslora)
    merged = merge_adapter(weights, tmp_path, PLAIN)
    expected = adapted.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    assert all((merged[name] - expected[name]).abs().max() < 1e-5 for name in expected)
    changed = [name for name in weights if not torch.equal(weights[name], merged[name])]
    assert len(changed) == 3 * len(theirs.model.layers)


def publish(
    model: LlamaForCausalLM | Qwen2ForCausalLM, folder: Path, **options: object
) -> peft.PeftModel:
    targets = ["q_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, task_type="CAUSAL_LM", **options
    )
    adapted = peft.get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(folder)
    return adapted.eval()


def test_says_why_an_adapter_cannot_be_merged() -> None:
    weights = random_state(CONFIG)
    plain = {"peft_type": "LORA", "lora_alpha": 8}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    adapter = {name.format("A"): torch.ones(2, 32), name.format("B"): torch.ones(32, 2)}
    merge_published_lora(weights, plain, adapter)
    with pytest.raises(ValueError, match="use_dora"):
        merge_published_lora(weights, {**plain, "use_dora": True}, adapter)
    with pytest.raises(ValueError, match="modules_to_save"):
        merge_published_lora(weights, {**plain, "modules_to_save": ["lm_head"]}, adapter)
    with pytest.raises(ValueError, match="another model"):
        merge_published_lora(weights, plain, {**adapter, name.format("B"): torch.ones(9, 2)})
    with pytest.raises(ValueError, match=r"lora_embedding_A"):
        extra = {"base_model.model.lora_embedding_A": torch.ones(2, 2)}
        merge_published_lora(weights, plain, {**adapter, **extra})
    with pytest.raises(ValueError, match=r"layers\.7"):
        moved = {key.replace(".0.", ".7."): tensor for key, tensor in adapter.items()}
        merge_published_lora(weights, plain, moved)


def test_says_why_adapters_cannot_be_added_or_loaded() -> None:
    llm = plain_llm()
    with pytest.raises(ValueError, match="q_proj"):
        add_lora(llm, targets=["q_proj"])
    with pytest.raises(ValueError, match="no adapters"):
        lora_config(llm)
    add_lora(llm, rank=4)
    with pytest.raises(ValueError, match="add adapters once"):
        add_lora(llm)
    state, config = lora_state_dict(llm), lora_config(llm)
    with pytest.raises(ValueError, match="rank 4, the adapter 2"):
        other = plain_llm()
        add_lora(other, rank=2)
        load_lora_state_dict(llm, config, lora_state_dict(other))
    key = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"
    with pytest.raises(ValueError, match="merge this adapter"):
        load_lora_state_dict(llm, config, {**state, key: state[key] + 1})
    with pytest.raises(ValueError, match=r"k_proj\.lora_A"):
        load_lora_state_dict(llm, config, {name: state[name] for name in state if name != key})


def test_packed_weights_take_no_adapter() -> None:
    packed = Llm.from_state_dict(CONFIG, random_state(CONFIG), packed=True)
    with pytest.raises(ValueError, match="packed=False"):
        add_lora(packed)


def test_says_which_folder_holds_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"adapter_model\.safetensors"):
        merge_adapter(random_state(CONFIG), tmp_path, PLAIN)
