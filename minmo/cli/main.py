"""The `minmo` command.

Every import that takes time is made by the command that needs it, so that help comes at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from minmo.cli import bench, data, describe, say, serve, sessions, talk, train, transcribe
from minmo.cli import eval as evaluation
from minmo.cli.errors import explain

app = typer.Typer(
    name="minmo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Talk with MinMo, a voice assistant that listens while it speaks.\n\n"
    "Example: minmo talk examples/question.wav --out answer.wav",
)

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_debug = False


def _print_version(asked: bool) -> None:
    if asked:
        from minmo.rpc.metrics import minmo_version

        typer.echo(f"minmo {minmo_version()}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Talk with MinMo, a voice assistant that listens while it speaks.

    Example: minmo talk examples/question.wav --out answer.wav
    """
    global _debug  # noqa: PLW0603 (an error is reported after its command has ended)
    _debug = debug


app.command("serve")(serve.serve)
app.command("talk")(talk.talk)
app.command("say")(say.say)
app.command("transcribe")(transcribe.transcribe)
app.command("describe")(describe.describe)
app.add_typer(sessions.app, name="sessions")
app.add_typer(bench.app, name="bench")
app.add_typer(evaluation.app, name="eval")
app.add_typer(train.app, name="train")
app.add_typer(data.app, name="data")


@app.command("weights", context_settings=_PASSED_ON, add_help_option=False)
def weights(context: typer.Context) -> None:
    """Fetch and prepare the pretrained weights of a preset.

    Example: minmo weights --preset mini
    """
    from minmo.cli.weights import app as weights_app

    weights_app(args=context.args, prog_name="minmo weights")


def main() -> None:
    """Runs the command line; exits with the status of the command."""
    try:
        app(prog_name="minmo")
    except Exception as error:
        explained = None if _debug else explain(error)
        if explained is None:
            if _debug:
                raise
            _report_fault(error)
        message, status = explained or ("", 1)
        if message:
            typer.echo(f"minmo: {message}", err=True)
        sys.exit(status)


def _report_fault(error: Exception) -> None:
    typer.echo(
        f"minmo: {type(error).__name__}: {error}; this should not happen: "
        "run it again with `minmo --debug ...` to see where",
        err=True,
    )


if __name__ == "__main__":
    main()
