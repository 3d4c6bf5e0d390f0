"""A Llama in GGUF (SmolLM2 is one) to safetensors, named as transformers' Llama names it."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from minmo.weights.errors import WeightsError
from minmo.weights.gguf_tokenizer import field, write_tokenizer

# Both halves take half of float32's 538 MB. Q4_1 and Q8_0 scales are float16 themselves: stored so,
# 39 of 40 greedy answers stay as float32 gives them, in bfloat16 34.
STORED_DTYPE = torch.float16

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def convert(gguf_file: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer in Hugging Face's layout into an existing folder.

    Raises:
        WeightsError: the file is damaged, or not a Llama with SmolLM's tokenizer.
    """
    try:
        reader = gguf.GGUFReader(gguf_file)
    except (ValueError, IndexError, OSError) as error:
        raise WeightsError(f"{gguf_file.name} is not a whole GGUF file: {error}") from error
    config = _config(reader)
    tensors = {
        name: torch.from_numpy(value).to(STORED_DTYPE) for name, value in dequantise(reader).items()
    }
    tied = "lm_head.weight" not in tensors
    if missing := sorted(
        expected_names(int(str(config["num_hidden_layers"])), tied) - tensors.keys()
    ):
        raise WeightsError(f"{gguf_file.name} lacks {len(missing)} tensors, first {missing[0]!r}")
    config["tie_word_embeddings"] = tied
    config["dtype"] = str(STORED_DTYPE).removeprefix("torch.")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    write_tokenizer(reader, folder)


def dequantise(reader: gguf.GGUFReader) -> dict[str, NDArray[np.float32]]:
    """Return every tensor in float32, exactly as quantised, by its transformers name.

    Raises:
        WeightsError: a tensor has no place in a Llama.
    """
    heads = int(field(reader, "llama.attention.head_count"))
    key_heads = int(field(reader, "llama.attention.head_count_kv"))
    tensors = {}
    for tensor in reader.tensors:
        name = _name(tensor.name)
        value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if name.endswith("q_proj.weight"):
            value = _unpermute(value, heads)
        elif name.endswith("k_proj.weight"):
            value = _unpermute(value, key_heads)
        # A copy, since float32 tensors still lie in the read-only map of the file.
        tensors[name] = np.array(value)
    return tensors


def expected_names(layers: int, tied: bool) -> set[str]:
    """Return the tensor names of a Llama checkpoint; `tied` leaves the output layer out."""
    names = {_TOP["token_embd.weight"], _TOP["output_norm.weight"]}
    names |= {f"model.layers.{i}.{name}" for i in range(layers) for name in _LAYER.values()}
    return names if tied else names | {_TOP["output.weight"]}


def _name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    prefix, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    if prefix != "blk" or not number.isdigit() or rest not in _LAYER:
        raise WeightsError(f"the GGUF file holds a tensor {name!r} that a Llama has no place for")
    return f"model.layers.{number}.{_LAYER[rest]}"


def _unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo GGUF's order of a head's rows: it interleaves the two halves that rotate together."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, rows // heads // 2, 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _config(reader: gguf.GGUFReader) -> dict[str, object]:
    architecture = field(reader, "general.architecture")
    if architecture != "llama":
        raise WeightsError(f"the GGUF file's architecture is {architecture!r}; this reads 'llama'")

    def number(key: str) -> int:
        return int(field(reader, f"llama.{key}"))

    def decimal(key: str) -> float:
        # Through the shortest text of a float32: 9.99999974e-06 was written as 1e-05.
        return float(str(np.float32(field(reader, f"llama.{key}"))))

    width, heads = number("embedding_length"), number("attention.head_count")
    theta = decimal("rope.freq_base")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": number("vocab_size"),
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv"),
        "head_dim": width // heads,
        "hidden_act": "silu",
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": decimal("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": int(field(reader, "tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(field(reader, "tokenizer.ggml.eos_token_id")),
        "pad_token_id": int(field(reader, "tokenizer.ggml.padding_token_id")),
    }
