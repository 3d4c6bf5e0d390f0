"""A quantised GGUF becomes a checkpoint and a tokenizer that transformers knows."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from minmo.weights import WeightsError, llama_gguf
from minmo.weights.gguf_tokenizer import build_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTES = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?'", "Ġ", "Ċ"]
MERGES = ["t h", "th e", "Ġ the", "Ġ Ġ", "1 9"]
TOKENS = [*SPECIAL, *BYTES, "th", "the", "Ġthe", "ĠĠ", "19"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}{% endfor %}"
QUANTISED = gguf.GGMLQuantizationType.Q4_1

CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
)
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def model() -> LlamaForCausalLM:
    """A small Llama whose linear weights survive quantisation unchanged."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        value = parameter.data.numpy()
        if value.ndim == 2:
            quantised = gguf.quantize(value, QUANTISED)
            value = gguf.dequantize(quantised, QUANTISED).astype(np.float32)
        parameter.data = torch.from_numpy(value.astype(np.float16).astype(np.float32))
    return model


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of queries and keys as GGUF wants them: x0 y0 x1 y1 for rotating pairs."""
    order = []
    size = weight.shape[0] // heads
    for head in range(heads):
        for i in range(size // 2):
            order += [head * size + i, head * size + size // 2 + i]
    return weight[order]


def write(model: LlamaForCausalLM, path: Path, architecture: str = "llama", drop: str = "") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_context_length(512)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        if name in ("lm_head.weight", drop):
            continue
        value = tensor.numpy()
        if "q_proj" in name:
            value = interleaved(value, CONFIG.num_attention_heads)
        elif "k_proj" in name:
            value = interleaved(value, CONFIG.num_key_value_heads)
        if value.ndim == 2 and "layers" in name:
            writer.add_tensor(
                stored_name(name), gguf.quantize(value, QUANTISED), raw_dtype=QUANTISED
            )
        else:
            writer.add_tensor(stored_name(name), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_name(name: str) -> str:
    name = name.removeprefix("model.").removesuffix(".weight")
    top = {"embed_tokens": "token_embd", "norm": "output_norm"}
    if name in top:
        return top[name] + ".weight"
    _, number, rest = name.split(".", 2)
    return f"blk.{number}.{NAMES[rest]}.weight"


@pytest.fixture
def folder(model: LlamaForCausalLM, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    llama_gguf.convert(write(model, tmp_path / "model.gguf"), out)
    return out


def test_the_tensors_are_the_dequantised_ones_in_rotating_order(
    model: LlamaForCausalLM, folder: Path
) -> None:
    written = load_file(folder / "model.safetensors")
    expected = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        assert written[name].dtype == torch.float16
        # Requantising a dequantised block may move its offset by one step of float16.
        assert torch.allclose(written[name].float(), value, atol=2e-3), name


def test_transformers_loads_it_and_says_the_same(model: LlamaForCausalLM, folder: Path) -> None:
    loaded, info = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.tensor([[5, 9, 30, 44, 7, 12]])
    with torch.no_grad():
        logits, expected = loaded.eval()(tokens).logits, model(tokens).logits
    assert torch.allclose(logits, expected, atol=0.05)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_the_configuration_is_the_metadata(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 5000.0
    assert config["max_position_embeddings"] == 512
    assert config["tie_word_embeddings"] is True
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the the", ["the", "Ġthe"]),
        ("in 1984", ["i", "n", "Ġ", "1", "9", "8", "4"]),  # digits never merge
        ("  7", ["ĠĠ", "7"]),
        ("a<|im_end|>b", ["a", "<|im_end|>", "b"]),
        ("", []),
    ],
)
def test_text_is_cut_as_the_model_learnt_it(folder: Path, text: str, tokens: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = tokenizer.encode(text)
    assert encoded.tokens == tokens
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


def test_special_tokens_are_known_and_skipped(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer("<|im_end|>")["input_ids"] == [2]
    assert tokenizer.decode([2, 3], skip_special_tokens=True) == "a"
    message = {"role": "user", "content": ""}
    assert tokenizer.apply_chat_template([message], tokenize=False) == "<|im_start|>user"


def test_bytes_outside_ascii_come_back_whole() -> None:
    every_byte = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = build_tokenizer(every_byte, [], [])
    text = "naïve 你好 😀 e\u0301"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_another_architecture_is_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="architecture is 'mamba'"):
        llama_gguf.convert(write(model, tmp_path / "m.gguf", architecture="mamba"), tmp_path)


def test_a_missing_tensor_is_named(model: LlamaForCausalLM, tmp_path: Path) -> None:
    path = write(model, tmp_path / "m.gguf", drop="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(WeightsError, match=r"first 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        llama_gguf.convert(path, tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 100, 20_000])
def test_a_cut_file_is_an_error_of_weights(
    model: LlamaForCausalLM, tmp_path: Path, kept: int
) -> None:
    path = write(model, tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"m\.gguf is not a whole GGUF file"):
        llama_gguf.convert(path, tmp_path)
