"""The modules that are evaluated, with their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer

from minmo.engine.ears import Ears
from minmo.engine.listening import Recogniser
from minmo.engine.prompt import ChatFormat
from minmo.engine.reading import read_with_moonshine
from minmo.evaluation.errors import EvaluationError
from minmo.loading import load_ears
from minmo.model.llm import Llm
from minmo.model.moonshine_encoder import MoonshineEncoder
from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.presets import load_preset
from minmo.weights.aligned import ALIGNED_MODULES, aligned_folder
from minmo.weights.load import weights_folder
from minmo.weights.modules import load_module, module_sha256
from minmo.weights.writing import FILE

_ALIGNED_PREFIX = "aligned "
ALIGNED = tuple(_ALIGNED_PREFIX + module for module in ALIGNED_MODULES)
"""Names of the aligned modules, of which the voice encoder is another than the published one."""


@dataclass(frozen=True)
class Listener:
    """What listens in the aligned path, and what writes down what it hears.

    Attributes:
        ears: the modules.
        to_text: token ids of the LLM to text.
    """

    ears: Ears
    to_text: Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Source:
    """Where modules come from.

    Attributes:
        preset: its name, or the path of its TOML file.
        folder: of an aligned set, `<folder>/<module>`; None for the one that the product uses.
    """

    preset: str
    folder: Path | None = None

    def of(self, module: str) -> Path:
        """The folder of a module's weights.

        Args:
            module: of the preset, or one of `ALIGNED`.

        Raises:
            EvaluationError: the folder of the aligned set lacks it.
            WeightsError: there are none.
        """
        if not module.startswith(_ALIGNED_PREFIX):
            return weights_folder(self.preset, module)
        name = module.removeprefix(_ALIGNED_PREFIX)
        if self.folder is None:
            return aligned_folder(self.preset, name)
        if not (self.folder / name / FILE).is_file():
            wanted = ", ".join(f"{each}/{FILE}" for each in ALIGNED_MODULES)
            raise EvaluationError(
                f"{self.folder} is no aligned set: it lacks {name}/{FILE}, and needs {wanted}"
            )
        return self.folder / name

    def sha256(self, module: str) -> str:
        """The hash of a module's weights; see `of`."""
        name = module.removeprefix(_ALIGNED_PREFIX)
        return module_sha256(self.preset, name, self.of(module))

    def listener(self) -> Listener:
        """Loads what listens in the aligned path.

        Raises:
            WeightsError: a module is missing, or was trained against another one.
        """
        ears = load_ears(load_preset(self.preset), lambda name: self.of(_ALIGNED_PREFIX + name))
        return Listener(ears, written_by(self.chat()))

    def recogniser(self) -> Recogniser:
        """Loads the published encoder and its own decoder, as the cascade has them.

        Raises:
            EvaluationError: the preset's decoder is not Moonshine's.
            WeightsError: a module is missing.
        """
        encoder = load_module(self.preset, "voice_encoder")
        if not isinstance(encoder, MoonshineEncoder):
            raise EvaluationError(
                f"preset {self.preset!r} has another voice encoder than Moonshine: its own decoder "
                "cannot be compared here; choose other systems with --system"
            )
        decoder = load_module(self.preset, "recognizer")
        assert isinstance(decoder, MoonshineRecognizer)
        decoder.lay_out_for_steps()
        path = weights_folder(self.preset, "recognizer") / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        return Recogniser(
            read_with_moonshine(encoder, decoder),
            lambda tokens: str(tokenizer.decode(list(tokens))),
            encoder.shortest_clip,
        )

    def chat(self) -> ChatFormat:
        """The LLM's chat format."""
        return ChatFormat.from_folder(weights_folder(self.preset, "llm"))

    def llm(self) -> Llm:
        """Loads the LLM.

        Raises:
            WeightsError: it is missing.
        """
        return cast("Llm", load_module(self.preset, "llm"))


def written_by(chat: ChatFormat) -> Callable[[Sequence[int]], str]:
    """What writes the LLM's tokens as text."""

    def text(tokens: Sequence[int]) -> str:
        return b"".join(map(chat.token_bytes, tokens)).decode("utf-8", "replace").strip()

    return text
