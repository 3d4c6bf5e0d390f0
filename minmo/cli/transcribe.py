"""`minmo transcribe`: a recording, written down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minmo.cli.options import Address, Json, Preset, TlsCa, Token


def transcribe(
    recording: Annotated[
        Path, typer.Argument(help="WAV, FLAC, Ogg or MP3 of any rate and length.")
    ],
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    preset: Preset = "mini",
    as_json: Json = False,
) -> None:
    """Write down what is said in a recording.

    Example: minmo transcribe examples/question.wav --json
    """
    import json
    from dataclasses import asdict

    from minmo.cli.reach import Reach, Server
    from minmo.cli.show import stderr
    from minmo.client import speech
    from minmo.client.recording import Recording
    from minmo.stack import StackConfig

    read = Recording.read(recording)

    async def work(server: Server) -> speech.Transcript:
        from rich.progress import Progress

        long = read.duration_ms > speech.PART_SECONDS * 1000
        with Progress(console=stderr(), transient=True, disable=as_json or not long) as bars:
            task = bars.add_task("listening", total=1.0)
            return await speech.transcribe(
                server.target, read, progress=lambda share: bars.update(task, completed=share)
            )

    # Words are what the cascade's encoder is started with.
    config = StackConfig(preset=preset, mode="cascade")
    reach = Reach(address, token, tls_ca, config, quiet=as_json)
    transcript = reach.run(work)
    if as_json:
        typer.echo(json.dumps(asdict(transcript), indent=2, ensure_ascii=False))
        return
    if not transcript.text:
        typer.echo(f"minmo: nothing was said in {recording}", err=True)
        raise typer.Exit(3)
    typer.echo(transcript.text)
