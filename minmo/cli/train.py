"""`minmo train`: the stages of training, and what they have made in the product's format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minmo.cli import bundle, train_voice
from minmo.cli.errors import EXIT_INTERRUPTED, InputError
from minmo.cli.options import Json

if TYPE_CHECKING:
    from minmo.training.config import TrainingConfig

_SIGNALLED = 128

app = typer.Typer(
    no_args_is_help=True,
    help="Train the modules.\n\n"
    "Example: minmo train speech-to-text --recipe adapt --data FOLDER --out runs/adapt",
)

Out = Annotated[
    Path, typer.Option(file_okay=False, help="Folder of the run: checkpoints and curves.")
]
Recipe = Annotated[
    str, typer.Option(help="What is moved and minimised: a name, or the path of a YAML file.")
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FOLDER[=WEIGHT]",
        help="Folder of spoken clips (lhotse Shar), and how much of it; repeatable.",
    ),
]
Init = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="Run or export to begin with."),
]
Preset = Annotated[str | None, typer.Option(help="The preset whose modules are meant.")]
Minutes = Annotated[
    float | None, typer.Option(help="How long it may take; the learning rate falls with it.")
]
Steps = Annotated[int | None, typer.Option(help="After how many steps it ends.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Another value, as data.seconds=60; repeatable."
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on, and refuse if there is no checkpoint.")
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Remove the run that is there and begin anew.")
]
Show = Annotated[bool, typer.Option("--show", help="Print the configuration, and train nothing.")]


@dataclass(frozen=True)
class StageCommand:
    """The command of a stage.

    Attributes:
        stage: its name.
        about: what it does, in the imperative.
        recipes: its packaged ones; it begins with the first.
        example: what comes behind the stage in the example.
    """

    stage: str
    about: str
    recipes: tuple[str, ...]
    example: str

    @property
    def help(self) -> str:
        """The command's text."""
        return (
            f"{self.about}\n\nRecipes: {', '.join(self.recipes)}. A run goes on from its last "
            "checkpoint where there is one; Ctrl-C writes one and stops.\n\n"
            f"Example: minmo train {self.stage} {self.example}"
        )


COMMANDS = (
    StageCommand(
        "speech-to-text",
        "Teach the LLM to listen: voice encoder, input projector and recognition head.",
        ("adapt", "pre-align", "full-align", "sft"),
        "--recipe adapt --data ~/speech --out runs/adapt",
    ),
    StageCommand(
        "speech-tokenizer",
        "Make speech tokens carry words: the tokenizer behind the pretrained voice encoder.",
        ("speech-tokenizer",),
        "--data ~/speech --out runs/speech-tokenizer --minutes 60",
    ),
    StageCommand(
        "token2wav",
        "Make mel spectrograms of speech tokens and a speaker: the flow matching.",
        ("token2wav",),
        "--data ~/speech-24k --out runs/token2wav --minutes 240",
    ),
    StageCommand(
        "vocoder",
        "Make audio of mel spectrograms: the vocoder.",
        ("vocoder", "vocoder-adversarial"),
        "--data ~/speech-24k --out runs/vocoder --minutes 240",
    ),
    StageCommand(
        "text-to-speech",
        "Teach the voice to say what the LLM writes: output projector and voice token LM.",
        ("speak", "speak-voice", "speak-project"),
        "--recipe speak-voice --data ~/kathleen-24k --init runs/speak --out runs/speak-voice",
    ),
    StageCommand(
        "speech-to-speech",
        "Teach the voice to say it as the user wants: output projector and voice token LM.",
        ("speak-dialogue",),
        "--data ~/instructed --init runs/speak-voice --out runs/speak-dialogue --minutes 60",
    ),
    StageCommand(
        "duplex",
        "Teach who should speak: the full-duplex predictor, on simulated conversations.",
        ("duplex",),
        "--data ~/scenes --out runs/duplex",
    ),
)


def _add(command: StageCommand) -> None:
    """A stage's command; all have the same options."""

    @app.command(command.stage, help=command.help)
    def run_stage(
        out: Out,
        recipe: Recipe = command.recipes[0],
        data: Data = None,
        init: Init = None,
        preset: Preset = None,
        minutes: Minutes = None,
        steps: Steps = None,
        changes: Changes = None,
        resume: Resume = False,
        restart: Restart = False,
        show: Show = False,
        as_json: Json = False,
    ) -> None:
        if resume and restart:
            raise InputError("--resume goes on and --restart begins anew: give one of them")
        with _explained():
            config = _config(recipe, data, init, preset, minutes, steps, changes)
            if config.stage != command.stage:
                raise InputError(
                    f"recipe {recipe} is of the stage {config.stage}, not {command.stage}; the "
                    f"recipes of {command.stage} are: {', '.join(command.recipes)}"
                )
            if show:
                from minmo.training.config import to_yaml

                typer.echo(to_yaml(config), nl=False)
                return
            _train(config, out, "must" if resume else "restart" if restart else "auto", as_json)


for _command in COMMANDS:
    _add(_command)
app.command("voice")(train_voice.voice)
app.command("bundle")(bundle.bundle)
app.command("collect")(bundle.collect)


@app.command("export")
def export(
    run: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of a run (its --out).")
    ],
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Where to; by default where a preset finds them."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what a run has made, its best weights, as modules that MinMo loads (float16).

    Example: minmo train export runs/sft
    """
    with _explained():
        from minmo.training.exporting import export_run

        folder = export_run(run, out)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder)}))
    else:
        typer.echo(f"the modules are in {folder}")


def _config(
    recipe: str,
    data: list[str] | None,
    init: Path | None,
    preset: str | None,
    minutes: float | None,
    steps: int | None,
    changes: list[str] | None,
) -> TrainingConfig:
    from minmo.training.config import load_config, with_changes

    given: dict[str, Any] = {"data.folders": dict(map(_weighted, data))} if data else {}
    if init is not None:
        given["init"] = str(init.absolute())
    if preset is not None:
        given["preset"] = str(Path(preset).absolute()) if Path(preset).is_file() else preset
    if minutes is not None or steps is not None:
        # Either way the run is as long as was said, not as long as the recipe.
        given |= {"schedule.minutes": minutes, "schedule.steps": steps}
    return with_changes(load_config(recipe, changes or ()), given)


def _weighted(folder: str) -> tuple[str, float]:
    path, equals, weight = folder.rpartition("=")
    if not equals or Path(folder).is_dir():
        return str(Path(folder).expanduser().absolute()), 1.0
    try:
        return str(Path(path).expanduser().absolute()), float(weight)
    except ValueError:
        raise InputError(f"--data {folder}: the weight {weight!r} is not a number") from None


def _train(config: TrainingConfig, out: Path, resume: Any, as_json: bool) -> None:
    from minmo.cli.show import stderr
    from minmo.training.stage import stages
    from minmo.training.trainer import train
    from minmo.training.watch import Watch

    with Watch(stderr(), quiet=as_json) as watch:
        outcome = train(config, stages()[config.stage], out, watch, resume=resume)
    if as_json:
        best = {"step": outcome.step, "best": outcome.best, "figures": dict(outcome.figures)}
        typer.echo(json.dumps({"folder": str(out), **best, "signal": outcome.signal}))
    elif outcome.signal:
        typer.echo("stopped; run it again to go on from here", err=True)
    if outcome.signal:
        raise typer.Exit(_SIGNALLED + outcome.signal)


@contextmanager
def _explained() -> Iterator[None]:
    """Says what went wrong in training as the command line says everything."""
    try:
        import yaml  # noqa: F401 (configurations are read with it, whatever the command)

        from minmo.training.errors import TrainingError
    except ImportError as error:
        raise InputError(f"training needs {error.name}: pip install 'minmo[train]'") from error
    try:
        yield
    except TrainingError as error:
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
