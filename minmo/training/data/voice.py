"""The voice that training speech is made with: a VITS of 904 speakers, run by onnxruntime.

The published network draws its noise inside, from a generator that nothing can reset between two
utterances. Here the noise is an input, so that an utterance depends on its own seed alone. How long
each sound is, which the network decides inside, is an output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import soxr

from minmo.audio.pcm import Samples
from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.training.data.errors import DataError
from minmo.training.data.packages import Package
from minmo.weights.artifacts import LIBRITTS_VOICE
from minmo.weights.errors import WeightsError

if TYPE_CHECKING:
    import onnx

VOICE_HZ = 22_050
"""Of the voice itself; what is made is resampled."""

_MODEL, _SYMBOLS = "voice.onnx", "symbols.json"
_PAD, _START, _END = "_", "^", "$"
# Names in the graph: noise of durations, `[1, 2, phonemes]`, and of frames, `[1, width, frames]`.
_NOISES = {"duration_noise": "/dp/RandomNormalLike", "frame_noise": "/RandomNormalLike"}
_FRAME_WIDTH = 192
# 23 s at 86 frames a second; a sentence that needs more is refused.
_MOST_FRAMES = 2048
_FRAME_SECONDS = 256 / VOICE_HZ
_DURATIONS = "Ceil"
# Sounds of their own, but of no word.
_NO_WORD = frozenset('_^$ !(),-.:;?"«»¡¿—…')
# Deviations of frames and of durations, as the voice was published.
_NOISE_SCALE, _DURATION_NOISE_SCALE = 0.667, 0.8
_PAUSE_SECONDS = 0.12
_LOUDEST = 0.99


class UnsayableError(Exception):
    """The voice cannot say this."""


class Said(NamedTuple):
    """An utterance.

    Attributes:
        samples: `[samples]` at the rate that was asked for.
        words: start and end of each word, in seconds; a word is what the phonemes write as one,
            which may be two of the text.
    """

    samples: Samples
    words: list[tuple[float, float]]


class Voice:
    """Says phoneme ids.

    Args:
        folder: that `VOICE` was built into.
        rate_hz: of what it says.
    """

    def __init__(self, folder: Path, rate_hz: int = LISTENING_RATE_HZ) -> None:
        import onnxruntime

        self.rate_hz = rate_hz

        options = onnxruntime.SessionOptions()
        # One utterance gains little from more; a worker on each core does.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # What it cannot say is an answer here, not an error to be logged.
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            with_durations(folder / _MODEL), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]
        symbols = Symbols.of(folder)
        self._space, self._no_word = symbols.numbers_of(" "), symbols.numbers_of(_NO_WORD)

    def say(self, sentences: Sequence[Sequence[int]], speaker: int, rate: float, seed: int) -> Said:
        """One utterance.

        Args:
            sentences: phoneme ids of each (`Symbols.ids`).
            speaker: number of the voice.
            rate: length of the sounds; above 1 is slower.
            seed: of the noise: equal arguments give equal samples on one machine and version of
                onnxruntime.

        Raises:
            UnsayableError: a sentence is empty or too long.
        """
        noise = np.random.default_rng(seed)
        pause = np.zeros(int(_PAUSE_SECONDS * VOICE_HZ), np.float32)
        parts: list[Samples] = []
        words: list[tuple[float, float]] = []
        for ids in sentences:
            begin = sum(map(len, parts)) / VOICE_HZ
            samples, lengths = self._sentence(ids, speaker, rate, noise)
            words += [(begin + start, begin + end) for start, end in self._words(ids, lengths)]
            parts += [samples, pause]
        if not parts:
            raise UnsayableError("there is nothing to say")
        whole: Samples = soxr.resample(np.concatenate(parts[:-1]), VOICE_HZ, self.rate_hz, "HQ")
        peak = float(np.abs(whole).max(initial=0.0))
        return Said(whole if peak <= _LOUDEST else whole * np.float32(_LOUDEST / peak), words)

    def _words(self, ids: Sequence[int], lengths: Samples) -> list[tuple[float, float]]:
        """Words of one sentence, from how many frames each of its phonemes lasts."""
        words: list[tuple[float, float]] = []
        goes_on, ends = False, np.cumsum(lengths) * _FRAME_SECONDS
        for number, length, end in zip(ids, lengths, ends, strict=True):
            if number in self._space:
                goes_on = False
            elif number not in self._no_word:
                start = words.pop()[0] if goes_on else float(end - length * _FRAME_SECONDS)
                words.append((start, float(end)))
                goes_on = True
        return words

    def _sentence(
        self, ids: Sequence[int], speaker: int, rate: float, noise: np.random.Generator
    ) -> tuple[Samples, Samples]:
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
            said, lengths = self._session.run(self._outputs, given)
        except (Fail, RuntimeException) as error:
            # The noise has fewer frames than the sentence.
            raise UnsayableError(f"a sentence of {len(ids)} phonemes is too long") from error
        return said.reshape(-1), lengths.reshape(-1)


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

    def numbers_of(self, symbols: Iterable[str]) -> frozenset[int]:
        """Numbers of those symbols that the voice has."""
        return frozenset(self._numbers[one] for one in symbols if one in self._numbers)

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


def with_durations(path: Path) -> bytes:
    """The network with one more output: `[1, 1, phonemes]`, frames that each phoneme lasts.

    Raises:
        WeightsError: it is not the network that it should be.
    """
    import onnx

    model = onnx.load(path)
    found = [node.output[0] for node in model.graph.node if node.op_type == _DURATIONS]
    if len(found) != 1:
        raise WeightsError(f"{path} does not say how long its sounds are; it is not the pinned one")
    model.graph.output.append(onnx.ValueInfoProto(name=found[0]))
    content: bytes = model.SerializeToString()
    return content


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
