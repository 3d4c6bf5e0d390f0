"""The voice that training speech is made with: a VITS of 904 speakers, run by onnxruntime.

The published network draws its noise inside, from a generator that nothing can reset between two
utterances. Here the noise is an input, so that an utterance depends on its own seed alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
from numpy.typing import NDArray

from minmo.audio.pcm import Samples
from minmo.training.data.errors import DataError
from minmo.training.data.packages import Package
from minmo.weights.artifacts import LIBRITTS_VOICE
from minmo.weights.errors import WeightsError

if TYPE_CHECKING:
    import onnx

RATE_HZ = 16_000
"""Of what is made, which is what MinMo listens at."""

_VOICE_HZ = 22_050
_MODEL, _SYMBOLS = "voice.onnx", "symbols.json"
_PAD, _START, _END = "_", "^", "$"
# Names in the graph: noise of durations, `[1, 2, phonemes]`, and of frames, `[1, width, frames]`.
_NOISES = {"duration_noise": "/dp/RandomNormalLike", "frame_noise": "/RandomNormalLike"}
_FRAME_WIDTH = 192
# 23 s at 86 frames a second; a sentence that needs more is refused.
_MOST_FRAMES = 2048
# Deviations of frames and of durations, as the voice was published.
_NOISE_SCALE, _DURATION_NOISE_SCALE = 0.667, 0.8
_PAUSE_SECONDS = 0.12
_LOUDEST = 0.99


class UnsayableError(Exception):
    """The voice cannot say this."""


class Voice:
    """Says phoneme ids.

    Args:
        folder: that `VOICE` was built into.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # One utterance gains little from more; a worker on each core does.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # What it cannot say is an answer here, not an error to be logged.
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            folder / _MODEL, options, providers=["CPUExecutionProvider"]
        )

    def say(
        self, sentences: Sequence[Sequence[int]], speaker: int, rate: float, seed: int
    ) -> Samples:
        """One utterance.

        Args:
            sentences: phoneme ids of each (`Symbols.ids`).
            speaker: number of the voice.
            rate: length of the sounds; above 1 is slower.
            seed: of the noise: equal arguments give equal samples on one machine and version of
                onnxruntime.

        Returns:
            `[samples]` at 16 kHz.

        Raises:
            UnsayableError: a sentence is empty or too long.
        """
        noise = np.random.default_rng(seed)
        pause = np.zeros(int(_PAUSE_SECONDS * _VOICE_HZ), np.float32)
        parts: list[Samples] = []
        for ids in sentences:
            parts += [self._sentence(ids, speaker, rate, noise), pause]
        if not parts:
            raise UnsayableError("there is nothing to say")
        samples: Samples = soxr.resample(np.concatenate(parts[:-1]), _VOICE_HZ, RATE_HZ, "HQ")
        peak = float(np.abs(samples).max(initial=0.0))
        return samples if peak <= _LOUDEST else samples * np.float32(_LOUDEST / peak)

    def _sentence(
        self, ids: Sequence[int], speaker: int, rate: float, noise: np.random.Generator
    ) -> Samples:
        if not ids:
            raise UnsayableError("a sentence has no sounds")
        given = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([_NOISE_SCALE, rate, _DURATION_NOISE_SCALE], np.float32),
            "sid": np.array([speaker], np.int64),
            "duration_noise": noise.standard_normal((1, 2, len(ids)), np.float32),
            "frame_noise": noise.standard_normal((1, _FRAME_WIDTH, _MOST_FRAMES), np.float32),
        }
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

        try:
            said: NDArray[np.float32] = self._session.run(None, given)[0]
        except (Fail, RuntimeException) as error:
            # The noise has fewer frames than the sentence.
            raise UnsayableError(f"a sentence of {len(ids)} phonemes is too long") from error
        return said.reshape(-1)


class Symbols:
    """The voice's numbers for phonemes."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = numbers
        self.unknown: dict[str, int] = {}
        """Symbols that the voice has no sound for, and how often they were left out."""

    @classmethod
    def of(cls, folder: Path) -> Symbols:
        """Those of the voice in a folder."""
        return cls(json.loads((folder / _SYMBOLS).read_text("utf-8")))

    def ids(self, phonemes: str) -> list[int]:
        """A sentence's phonemes, one a character, to what the voice reads."""
        ids = [self._numbers[_START], self._numbers[_PAD]]
        for symbol in phonemes:
            if symbol in self._numbers:
                ids += [self._numbers[symbol], self._numbers[_PAD]]
            else:
                self.unknown[symbol] = self.unknown.get(symbol, 0) + 1
        return [*ids, self._numbers[_END]]


def with_noise_as_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with its noise as inputs, `duration_noise` and `frame_noise`.

    The number of frames shows only inside, so that input may have more than are used.

    Raises:
        WeightsError: it is not the network that it should be.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = model.graph
    for given, name in _NOISES.items():
        found = [node for node in graph.node if node.name == name]
        if len(found) != 1:
            raise WeightsError(f"the voice has no node {name!r}; it is not the pinned one")
        node = found[0]
        place = list(graph.node).index(node)
        like, drawn = node.input[0], node.output[0]
        graph.node.remove(node)
        names = {part: f"{given}_{part}" for part in ("shape", "length", "from", "axis")}
        graph.initializer.extend(
            helper.make_tensor(names[part], TensorProto.INT64, [1], [value])
            for part, value in (("from", 0), ("axis", 2))
        )
        steps = [
            helper.make_node("Shape", [like], [names["shape"]]),
            helper.make_node("Gather", [names["shape"], names["axis"]], [names["length"]]),
            helper.make_node(
                "Slice", [given, names["from"], names["length"], names["axis"]], [drawn]
            ),
        ]
        for offset, step in enumerate(steps):
            graph.node.insert(place + offset, step)
        shape: list[str | int | None] = [1, "channels", f"{given}_length"]
        graph.input.append(helper.make_tensor_value_info(given, TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    return model


def _build(unpacked: Path, folder: Path) -> None:
    """Takes the network and its symbols out of a pack of Emscripten's."""
    import onnx

    data, script = (unpacked / member for member in LIBRITTS_VOICE.members)
    offsets = script.read_text("utf-8")
    content = {name: _packed(data, offsets, name) for name in ("/model.onnx", "/tokens.txt")}
    model = with_noise_as_input(onnx.load_model_from_string(content["/model.onnx"]))
    write_voice(folder, model, parse_symbols(content["/tokens.txt"].decode("utf-8")))


def _packed(data: Path, offsets: str, name: str) -> bytes:
    found = re.search(rf'filename: "{re.escape(name)}",\s*start: (\d+),\s*end: (\d+)', offsets)
    if found is None:
        raise WeightsError(f"{LIBRITTS_VOICE.archive} says nothing of where {name} lies")
    first, end = map(int, found.groups())
    with data.open("rb") as file:
        file.seek(first)
        return file.read(end - first)


def parse_symbols(text: str) -> dict[str, int]:
    """Numbers of symbols in a file with one a line: the symbol, a space, its number."""
    numbers: dict[str, int] = {}
    for line in text.splitlines():
        symbol, _, number = line.rpartition(" ")
        if number:
            numbers[symbol] = int(number)
    if missing := {_PAD, _START, _END} - set(numbers):
        raise DataError(f"the voice's symbols lack {sorted(missing)}")
    return numbers


def write_voice(folder: Path, model: Any, symbols: Mapping[str, int]) -> None:
    """Writes a network whose noise is an input, and its symbols, where `Voice` finds them."""
    import onnx

    onnx.save_model(model, folder / _MODEL)
    (folder / _SYMBOLS).write_text(json.dumps(symbols, ensure_ascii=False), "utf-8")


VOICE = Package("libritts_voice", LIBRITTS_VOICE, _build)
