"""The ONNX export becomes the checkpoint that transformers knows."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from transformers import MoonshineConfig, MoonshineForConditionalGeneration

from minmo.weights import WeightsError, moonshine

CONFIG = MoonshineConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    encoder_num_hidden_layers=2,
    decoder_num_hidden_layers=2,
)
EXPORTED = {"o_proj": "dense"}
DECODER_EXPORTED = {"o_proj": "dense", "fc1": "up_proj", "fc2": "down_proj"}

Tensors = dict[str, NDArray[np.float32]]


class Export:
    """Builds a graph the way PyTorch's exporter does: linear weights transposed and nameless."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def named(self, name: str, value: NDArray[np.float32], op: str) -> None:
        self.initializers.append(numpy_helper.from_array(value, name))
        self.nodes.append(helper.make_node(op, ["x", name], [f"{name}_out"], name=f"/{name}/{op}"))

    def used(self, op: str, node: str, value: NDArray[np.float32]) -> None:
        nameless = f"onnx::{op}_{1000 + len(self.nodes)}"
        self.initializers.append(numpy_helper.from_array(value, nameless))
        self.nodes.append(helper.make_node(op, ["x", nameless], [f"{node}_out"], name=node))

    def graph(self) -> onnx.GraphProto:
        return helper.make_graph(self.nodes, "g", [], [], self.initializers)


def encoder_graph(tensors: Tensors, drop: str = "") -> onnx.GraphProto:
    export = Export()
    for name, value in sorted(tensors.items(), reverse=True):
        short = name.removeprefix("model.encoder.")
        if short in (name, drop):
            continue
        if short.startswith("groupnorm"):
            op = "Mul" if short.endswith("weight") else "Add"
            export.used(op, f"/groupnorm/{op}", value[:, None])
        elif value.ndim == 2:
            path = [EXPORTED.get(part, part) for part in short.split(".")[:-1]]
            node = f"/{path[0]}.{path[1]}/" + "/".join(path[2:]) + "/MatMul"
            export.used("MatMul", node, np.ascontiguousarray(value.T))
        else:
            export.named(short, value, "Conv")
    return export.graph()


def decoder_graph(tensors: Tensors) -> onnx.GraphProto:
    """Two branches under an `If`, each with every layer; cross attention's keys are in one only."""
    outer, branches = Export(), (Export(), Export())
    for name, value in tensors.items():
        short = name.removeprefix("model.decoder.")
        if short == name:
            continue
        path = [DECODER_EXPORTED.get(part, part) for part in short.split(".")]
        if value.ndim == 2 and short.startswith("layers."):
            node = f"/model/decoder/{path[0]}.{path[1]}/" + "/".join(path[2:-1]) + "/MatMul"
            only_first = "encoder_attn.k" in short or "encoder_attn.v" in short
            for branch in branches[: 1 if only_first else 2]:
                branch.used("MatMul", node, np.ascontiguousarray(value.T))
        else:
            branches[0].named("model.decoder." + ".".join(path) + "_merged_0", value, "Mul")
    outer.nodes.append(
        helper.make_node(
            "If",
            ["use_cache_branch"],
            ["logits"],
            name="optimum::if",
            then_branch=branches[0].graph(),
            else_branch=branches[1].graph(),
        )
    )
    return outer.graph()


@pytest.fixture
def model() -> MoonshineForConditionalGeneration:
    torch.manual_seed(0)
    model = MoonshineForConditionalGeneration(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


def tensors_of(model: MoonshineForConditionalGeneration) -> Tensors:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def save(graph: onnx.GraphProto, path: Path) -> Path:
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]))
    onnx.save(helper.make_model(graph), str(path))
    return path


def convert(tensors: Tensors, tmp_path: Path, drop: str = "") -> Path:
    encoder = save(encoder_graph(tensors, drop), tmp_path / "encoder.onnx")
    decoder = save(decoder_graph(tensors), tmp_path / "decoder.onnx")
    tokenizer = tmp_path / "source.json"
    tokenizer.write_text("{}")
    folder = tmp_path / "out"
    folder.mkdir()
    moonshine.convert(encoder, decoder, tokenizer, folder)
    return folder


def test_every_tensor_finds_its_name_and_its_orientation(
    model: MoonshineForConditionalGeneration, tmp_path: Path
) -> None:
    folder = convert(tensors_of(model), tmp_path)
    expected = model.state_dict()
    expected.pop("proj_out.weight")  # the embedding again
    written = load_file(folder / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_transformers_loads_it_and_hears_the_same(
    model: MoonshineForConditionalGeneration, tmp_path: Path
) -> None:
    folder = convert(tensors_of(model), tmp_path)
    loaded, info = MoonshineForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    audio = torch.randn(1, 4000)
    start = torch.tensor([[1]])
    with torch.no_grad():
        heard = loaded.eval()(audio, decoder_input_ids=start).logits
        assert torch.allclose(heard, model(audio, decoder_input_ids=start).logits, atol=1e-5)


def test_the_configuration_has_the_sizes_of_the_tensors(
    model: MoonshineForConditionalGeneration, tmp_path: Path
) -> None:
    config = json.loads((convert(tensors_of(model), tmp_path) / "config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"], config["vocab_size"]) == (
        16,
        24,
        40,
    )
    assert (config["encoder_num_hidden_layers"], config["decoder_num_hidden_layers"]) == (2, 2)


def test_a_graph_without_a_tensor_is_refused_by_its_name(
    model: MoonshineForConditionalGeneration, tmp_path: Path
) -> None:
    with pytest.raises(
        WeightsError, match=r"lack 1 tensors, first 'model\.encoder\.layers\.1\.mlp"
    ):
        convert(tensors_of(model), tmp_path, drop="layers.1.mlp.fc2.weight")


def test_another_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not the float32 export"):
        convert({}, tmp_path)
