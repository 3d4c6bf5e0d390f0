"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Mode(StrEnum):
    """How an answer is made."""

    AUTO = "auto"
    CASCADE = "cascade"
    ALIGNED = "aligned"


Address = Annotated[
    str | None,
    typer.Option(
        envvar="MINMO_ADDRESS",
        metavar="HOST:PORT",
        help="Server to use. By default the one that runs here; if none does, one is started.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="MINMO_TOKEN",
        help="API token of the server. Better given by the environment.",
        show_envvar=True,
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        envvar="MINMO_CA",
        dir_okay=False,
        exists=True,
        help="PEM file of the CA that signed the server's certificate; turns TLS on.",
    ),
]
Preset = Annotated[str, typer.Option(help="Preset of a server that is started.")]
MODES_HELP = (
    "cascade: recognised text to the LLM; aligned: speech embeddings, which takes trained weights; "
    "auto: aligned for presets that answer as well in it."
)
ModeOption = Annotated[
    Mode, typer.Option("--mode", help=f"Mode of a server that is started. {MODES_HELP}")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Replicas = Annotated[
    str,
    typer.Option(
        metavar="NAME=N,...",
        help="Processes of a service: encoder, llm (each with a Triton of its own), voice_decoder, "
        "orchestrator, gateway, or all. One of each by default.",
    ),
]


def replicas_of(text: str) -> dict[str, int]:
    """What `Replicas` says; nothing if it is empty. Raises InputError."""
    from minmo.cli.errors import InputError
    from minmo.stack.replicas import parse_replicas

    try:
        return dict(parse_replicas(text)) if text else {}
    except ValueError as error:
        raise InputError(f"--replicas: {error}") from None
