"""The plan that trains the voice: its four modules, stage by stage, into one voice set.

    tokens of the speech tokenizer, which is made first where none is packed
    token2wav, vocoder, then the voice token LM: many speakers, one, answers and instructions

The set is that of the unpacked bundle's home, and comes home from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minmo.training.bundle.errors import BundleError
from minmo.training.bundle.plan import Plan, Step

SPEECH = "made-24k"
"""Name of the speech that is made on the machine, under `home/speech`."""

MINUTES: Mapping[str, float] = {
    "speech": 8.0,
    "speech-tokenizer": 6.0,
    "token2wav": 12.0,
    "vocoder": 6.0,
    "vocoder-adversarial": 12.0,
    "speak": 15.0,
    "speak-voice": 5.0,
    "speak-dialogue": 5.0,
}
"""How long each step may take that takes as long as one lets it."""

_STAGES = {
    "vocoder-adversarial": "vocoder",
    "speak": "text-to-speech",
    "speak-voice": "text-to-speech",
    "speak-dialogue": "speech-to-speech",
}
# They read no audio, and so need no processes that do.
_SILENT = ("speak", "speak-voice", "speak-dialogue")
_RATE_HZ = "24000"


@dataclass(frozen=True)
class Folders:
    """Names of folders under `home/speech`.

    Attributes:
        speakers: recordings of many speakers.
        voice: recordings of the one whose voice it becomes.
        instructed: answers to spoken instructions and questions.
    """

    speakers: Sequence[str] = ()
    voice: Sequence[str] = ()
    instructed: Sequence[str] = ()


def speaking(
    preset: str,
    *,
    texts: str | None,
    folders: Folders,
    tokenizer: bool,
    recipes: Mapping[str, str] | None = None,
    minutes: Mapping[str, float] | None = None,
) -> Plan:
    """Training of the voice.

    Args:
        preset: as the unpacked bundle finds it.
        texts: their path in the bundle, or None for no speech to make.
        folders: what there is to learn from.
        tokenizer: whether a speech tokenizer is packed; without, one is trained first.
        recipes: of steps, by the step: their paths in the bundle.
        minutes: of steps, where they are others than `MINUTES`.

    Raises:
        BundleError: there is nothing to learn from, or no such step.
    """
    lasts = {**MINUTES, **(minutes or {})}
    known = MINUTES.keys()
    if unknown := sorted((lasts.keys() - known) | ((recipes or {}).keys() - (known - {"speech"}))):
        raise BundleError(f"there is no step {unknown[0]!r}; there are {', '.join(MINUTES)}")
    made = [] if texts is None else [_folder(SPEECH)]
    many = [*made, *map(_folder, folders.speakers)]
    one, instructed = [_folder(n) for n in folders.voice], [_folder(n) for n in folders.instructed]
    if not (many or one):
        raise BundleError(
            "there is nothing to learn from: give --texts, --recordings or --voice, or several"
        )
    steps = _Steps(preset, dict(recipes or {}), lasts)
    if texts is not None:
        steps.speech(texts, made[0])
    if not tokenizer:
        steps.train("speech-tokenizer", many or one)
        steps.export("speech-tokenizer")
    steps.tokens([*many, *one, *instructed])
    steps.train("token2wav", [*many, *one])
    steps.export("token2wav")
    steps.train("vocoder", one or many)
    steps.train("vocoder-adversarial", one or many, "vocoder")
    steps.export("vocoder-adversarial")
    steps.train("speak", many or one)
    last = "speak"
    for name, learned in (("speak-voice", one if many else []), ("speak-dialogue", instructed)):
        if learned:
            steps.train(name, learned if name == "speak-voice" else [*learned, *one], last)
            last = name
    steps.export(last)
    return Plan(
        tuple(steps.made),
        ("home/weights/*/voice/**/*", "work/*/**/*.csv", "work/*/config.yaml"),
        ("work/{step}/checkpoints/best-*/*",),
    )


def _folder(name: str) -> str:
    return f"{{root}}/home/speech/{name}"


class _Steps:
    """Steps as they are added."""

    def __init__(
        self, preset: str, recipes: Mapping[str, str], minutes: Mapping[str, float]
    ) -> None:
        self._preset, self._recipes, self._minutes = preset, recipes, minutes
        self.made: list[Step] = []

    def speech(self, texts: str, folder: str) -> None:
        """Texts are spoken."""
        command = ("minmo", "data", "speech", f"{{root}}/{texts}", "--workers", "{cores}")
        told = ("--rate", _RATE_HZ, "--out", folder)
        minutes = self._minutes["speech"]
        self.made.append(Step("speech", (*command, *told), cut_after_minutes=minutes))

    def tokens(self, folders: Sequence[str]) -> None:
        """Clips that came without speech tokens get them."""
        command = ("minmo", "data", "tokens", *folders, "--workers", "{cores}")
        self.made.append(Step("tokens", (*command, "--preset", self._preset)))

    def train(self, name: str, folders: Sequence[str], init: str = "") -> None:
        """A stage's recipe."""
        recipe = f"{{root}}/{self._recipes[name]}" if name in self._recipes else name
        command = ["minmo", "train", _STAGES.get(name, name), "--recipe", recipe]
        command += ["--preset", self._preset]
        command += [word for folder in folders for word in ("--data", folder)]
        command += ["--init", f"{{work}}/{init}"] if init else []
        command += ["--minutes", f"{self._minutes[name]:g}", "--out", f"{{work}}/{name}"]
        command += [] if name in _SILENT else ["--set", "data.workers={workers}"]
        self.made.append(Step(name, tuple(command)))

    def export(self, name: str) -> None:
        """What a stage has made goes into the voice set."""
        command = ("minmo", "train", "export", f"{{work}}/{name}")
        self.made.append(Step(f"export-{name}", command))
