"""What a bundle does on its machine: steps, one after the other, as `run` reads them.

A plan is JSON, so that it can be changed on the machine too:

    {"steps": [{"name": ..., "command": [...]}, ...], "results": [...], "unfinished": [...]}

A command's first word is a program, `minmo` or `python`; `{root}` is the unpacked bundle,
`{work}` its working folder, `{cores}` the number of cores, `{workers}` two fewer. A step may have
`cut_after_minutes` (it is stopped then, and what it made is used), `json` (its standard output is
one JSON document, which goes to the figures) and `optional` (the run goes on where it fails).
`results` are patterns of the files to bring home, relative to the bundle; `unfinished` those to
bring as well when the run has not come to its end, `{step}` being the last step that has such
files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from minmo.training.bundle.errors import BundleError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class Step:
    """One command of a plan.

    Attributes:
        name: lower-case letters, digits and hyphens.
        command: the program and its arguments.
        cut_after_minutes: after which it is stopped, or None.
        json: whether its standard output is a JSON document of figures.
        optional: whether the run goes on where it fails.
    """

    name: str
    command: tuple[str, ...]
    cut_after_minutes: float | None = None
    json: bool = False
    optional: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BundleError(
                f"a plan has a step {self.name!r}; names are lower-case letters, digits, hyphens"
            )
        if not self.command or not all(isinstance(one, str) for one in self.command):
            raise BundleError(f"step {self.name!r}: command is a list of texts, one at least")
        if self.cut_after_minutes is not None and not self.cut_after_minutes > 0:
            raise BundleError(
                f"step {self.name!r}: cut_after_minutes is {self.cut_after_minutes:g}; it must be "
                "above 0"
            )


@dataclass(frozen=True)
class Plan:
    """Steps, and what to bring home of them.

    Attributes:
        steps: in their order.
        results: patterns of files, relative to the bundle.
        unfinished: the same, for a run that was cut or has failed.
    """

    steps: tuple[Step, ...]
    results: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if not names or len(set(names)) < len(names):
            raise BundleError("a plan has one step at least, and each has a name of its own")

    def to_json(self) -> dict[str, Any]:
        """As the plan's file has it; what is not set is left out."""
        steps = [
            {
                one.name: list(value) if isinstance(value, tuple) else value
                for one in fields(step)
                if (value := getattr(step, one.name)) not in (None, False)
            }
            for step in self.steps
        ]
        patterns = {"results": list(self.results), "unfinished": list(self.unfinished)}
        return {"steps": steps, **patterns}


def read_plan(path: Path) -> Plan:
    """Reads a plan's file.

    Raises:
        BundleError: it cannot be read, or a key is missing or unknown.
    """
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read the plan {path}: {error}") from error
    try:
        steps = tuple(
            Step(**{**step, "command": tuple(step["command"])}) for step in raw.pop("steps")
        )
        results, unfinished = (tuple(raw.pop(key, ())) for key in ("results", "unfinished"))
        return Plan(steps, results, unfinished, **raw)
    except (TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"the plan {path} has a key too few or too many: {error}") from error


SPEECH = "made"
"""Name of the speech that is made on the machine, under `home/speech`."""

MINUTES: Mapping[str, float] = {"speech": 8.0, "adapt": 6.0, "pre-align": 2.0, "sft": 4.0}
"""How long each step may take that takes as long as one lets it."""

_STAGES = ("adapt", "pre-align", "sft")
_EVALUATED_CLIPS = 200


def listening(
    preset: str,
    *,
    texts: str | None,
    recordings: Sequence[str] = (),
    recipes: Mapping[str, str] | None = None,
    minutes: Mapping[str, float] | None = None,
) -> Plan:
    """Speech-to-text training: speech, the three stages, and what came of it.

    Args:
        preset: as the unpacked bundle finds it.
        texts: their path in the bundle, or None for no speech to make.
        recordings: names of folders under `home/speech`.
        recipes: of stages, by the stage: their paths in the bundle.
        minutes: of steps, where they are others than `MINUTES`.

    Raises:
        BundleError: there is nothing to learn from, or no such step.
    """
    own, lasts = dict(recipes or {}), {**MINUTES, **(minutes or {})}
    if unknown := sorted((lasts.keys() - MINUTES.keys()) | (own.keys() - set(_STAGES))):
        raise BundleError(f"there is no step {unknown[0]!r}; there are {', '.join(MINUTES)}")
    names = [*([] if texts is None else [SPEECH]), *recordings]
    if not names:
        raise BundleError("there is nothing to learn from: give --texts, --recordings or both")
    folders = [f"{{root}}/home/speech/{name}" for name in names]
    steps = []
    if texts is not None:
        command = ["minmo", "data", "speech", f"{{root}}/{texts}", "--workers", "{cores}"]
        command += ["--out", folders[0]]
        steps.append(Step("speech", tuple(command), cut_after_minutes=lasts["speech"]))
    init: list[str] = []
    for stage in _STAGES:
        recipe = f"{{root}}/{own[stage]}" if stage in own else stage
        command = ["minmo", "train", "speech-to-text", "--recipe", recipe, "--preset", preset]
        command += [word for folder in folders for word in ("--data", folder)]
        command += [*init, "--minutes", f"{lasts[stage]:g}", "--set", "data.workers={workers}"]
        command += ["--out", f"{{work}}/{stage}"]
        steps.append(Step(stage, tuple(command)))
        init = ["--init", f"{{work}}/{stage}"]
    export = ("minmo", "train", "export", f"{{work}}/{_STAGES[-1]}", "--out", "{work}/modules")
    steps.append(Step("export", export))
    for suite, systems in (("asr", ("aligned",)), ("sqa", ("text", "pieces", "aligned"))):
        command = ["minmo", "eval", suite, *folders, "--preset", preset, "--set", "test", "--json"]
        command += [word for system in systems for word in ("--system", system)]
        command += ["--modules", "{work}/modules", "--limit", f"{_EVALUATED_CLIPS}"]
        # What a cut evaluation has measured stays there, and is not measured again.
        command += ["--out", f"{{work}}/evaluation/{suite}"]
        steps.append(Step(f"eval-{suite}", tuple(command), json=True, optional=True))
    return Plan(
        tuple(steps),
        ("work/modules/*/*", "work/*/**/*.csv", "work/*/config.yaml"),
        ("work/{step}/checkpoints/best-*/*",),
    )
