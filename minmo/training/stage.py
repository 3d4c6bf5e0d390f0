"""What the training loop knows of a stage: modules by name, losses of a batch, a measurement.

The stages of the paper (section 3.4), and those of the parts that it takes from CosyVoice 2, differ
in what they build, what they move and what they minimise; how weights are moved, kept and found
again is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from torch import Tensor, nn

from minmo.training.batches import Batch, Source
from minmo.training.config import TrainingConfig

StateDict = dict[str, Tensor]
Weights = Mapping[str, StateDict]
"""State dicts of modules, by the modules' names."""


class Trainee(nn.Module, ABC):
    """What a stage trains.

    Attributes:
        best: which of the measured figures is to be low.
        wants_clean: whether it also wants to hear clips as they were before noise and rooms.
    """

    best: str
    wants_clean = False

    @abstractmethod
    def kept(self) -> Mapping[str, nn.Module]:
        """The modules that a checkpoint holds, by their names in the preset.

        Those without a learning rate are frozen; modules that are not among them always are.
        """

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars of a batch on the model's device: `loss`, which is minimised, and its parts.

        What it draws it draws from PyTorch's default generator, which is seeded for each step.
        """

    @abstractmethod
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """What is measured on a valid set, `best` among it; in evaluation mode."""


class Stage(ABC):
    """A stage of training.

    Attributes:
        name: of the stage.
    """

    name: str

    @abstractmethod
    def check(self, config: TrainingConfig) -> None:
        """Refuses options and learning rates that it does not know, before anything is read.

        Raises:
            TrainingError: says which.
        """

    @abstractmethod
    def build(self, config: TrainingConfig, weights: Weights, sources: Sequence[Source]) -> Trainee:
        """Builds what is trained.

        Args:
            config: of the run.
            weights: of an earlier run or stage, for the modules that it has; others are
                pretrained or drawn.
            sources: what it will learn from; none where a checkpoint is to be exported.

        Raises:
            TrainingError: the weights don't fit.
            WeightsError: pretrained weights are missing.
        """

    @abstractmethod
    def export(self, config: TrainingConfig, weights: Weights, folder: Path | None) -> Path:
        """Writes trained modules in the product's format, float16.

        Args:
            config: of the run.
            weights: of its checkpoint.
            folder: for the modules' folders; None for where the product finds them first.

        Returns:
            The folder.

        Raises:
            WeightsError: they cannot be written.
        """


_CLASSES = {
    "speech-to-text": "SpeechToText",
    "speech-tokenizer": "SpeechTokenizerStage",
    "token2wav": "Token2WavStage",
    "vocoder": "VocoderStage",
    "text-to-speech": "TextToSpeechStage",
    "speech-to-speech": "SpeechToSpeechStage",
    "duplex": "DuplexStage",
}


class _Stages(Mapping[str, Stage]):
    """Each is imported when it is asked for: none needs what another one does."""

    def __getitem__(self, name: str) -> Stage:
        class_name = _CLASSES[name]
        module = import_module(f"minmo.training.{name.replace('-', '_')}")
        stage: Stage = getattr(module, class_name)()
        return stage

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


def stages() -> Mapping[str, Stage]:
    """The stages that can be trained, by their names."""
    return _Stages()
