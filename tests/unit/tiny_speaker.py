"""A voice of a few nodes with the inputs and the random numbers of the real one, and its lines."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from minmo.training.data.lines import Line, Split
from minmo.training.data.voice import with_noise_as_input, write_voice

SYMBOLS = {"_": 0, "^": 1, "$": 2} | {letter: 3 + n for n, letter in enumerate("abcdefgh ")}
SAMPLES_A_PHONEME = 8 * 64
"""Of 22,050 a second: two of the real voice's frames."""


def network() -> onnx.ModelProto:
    """Noise whose loudness is the rate; 8 frames a phoneme and 64 samples a frame."""

    def ints(name: str, *values: int) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)

    nodes = [
        helper.make_node("Cast", ["input"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "one"], ["row"]),
        helper.make_node("Concat", ["row", "row"], ["phonemes"], axis=1),
        helper.make_node("RandomNormalLike", ["phonemes"], ["short"], "/dp/RandomNormalLike"),
        helper.make_node("Tile", ["row", "frames"], ["wide"]),
        helper.make_node("RandomNormalLike", ["wide"], ["long"], "/RandomNormalLike"),
        helper.make_node("ReduceMean", ["short"], ["offset"], keepdims=1),
        helper.make_node("Sub", ["wide", "wide"], ["nothing"]),
        helper.make_node("Sub", ["row", "row"], ["no_frames"]),
        helper.make_node("Add", ["no_frames", "nearly_two"], ["exact_frames"]),
        helper.make_node("Ceil", ["exact_frames"], ["durations"]),
        helper.make_node("Add", ["long", "nothing"], ["as_long"]),
        helper.make_node("ReduceMean", ["as_long"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Slice", ["scales", "one", "two"], ["rate"]),
        helper.make_node("Mul", ["mean", "rate"], ["louder"]),
        helper.make_node("Add", ["louder", "offset"], ["shifted"]),
        helper.make_node("Tile", ["shifted", "samples"], ["output"]),
    ]
    given = [
        helper.make_tensor_value_info("input", TensorProto.INT64, [1, "phonemes"]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
        helper.make_tensor_value_info("sid", TensorProto.INT64, [1]),
    ]
    made = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, "samples"])]
    constants = [ints("one", 1), ints("two", 2)]
    constants += [ints("frames", 1, 192, 8), ints("samples", 1, 1, 64)]
    constants += [helper.make_tensor("nearly_two", TensorProto.FLOAT, [1], [1.6])]
    graph = helper.make_graph(nodes, "tiny", given, made, constants)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9)


def write_tiny_voice(folder: Path) -> Path:
    """Writes it where `Voice` and `Symbols` read it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_voice(folder, with_noise_as_input(network()), SYMBOLS)
    return folder


def lines(count: int, split: Split = "train") -> list[Line]:
    """Texts of two words, each by a speaker of its own."""
    return [
        Line(f"{split}-{n:06d}", f"Text {n}.", "question", "quiz", split, n, 1.0, (f"answer {n}",))
        for n in range(count)
    ]


def phonemes(count: int) -> list[list[str]]:
    """Of each such line: 0.47 s or more in the tiny voice."""
    return [["abcd efgh"] for _ in range(count)]
