"""`minmo say`: a text, spoken."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minmo.cli.options import Address, Json, Preset, TlsCa, Token


def say(
    text: Annotated[str, typer.Argument(help='What to say; "-" reads it from stdin.')],
    out: Annotated[Path, typer.Option(help="File to write: .wav, .flac, .ogg or .opus.")],
    instruct: Annotated[str, typer.Option(help="How to speak, in words.")] = "",
    voice: Annotated[str, typer.Option(help="Name of the voice; empty is the default one.")] = "",
    rate: Annotated[int, typer.Option(help="Rate of the audio in Hz.")] = 24_000,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    preset: Preset = "mini",
    as_json: Json = False,
) -> None:
    """Have a text spoken.

    Example: minmo say "The kettle is on." --out speech.wav
    """
    import json
    import sys

    from minmo.audio.pcm import write_file
    from minmo.cli.checks import check_output, check_rate
    from minmo.cli.errors import InputError
    from minmo.cli.reach import Reach, Server
    from minmo.client import speech
    from minmo.stack import StackConfig

    check_output(out)
    check_rate(rate)
    words = sys.stdin.read() if text == "-" else text
    if not words.strip():
        raise InputError("there is no text to say")

    async def work(server: Server) -> speech.Speech:
        return await speech.say(server.target, words, rate_hz=rate, voice=voice, instruct=instruct)

    reach = Reach(address, token, tls_ca, StackConfig(preset=preset), quiet=as_json)
    spoken = reach.run(work)
    write_file(out, spoken.samples, spoken.rate_hz)
    seconds = len(spoken.samples) / spoken.rate_hz
    if as_json:
        result = {
            "file": str(out),
            "audio_ms": round(seconds * 1000),
            "compute_ms": spoken.compute_ms,
            "rate_hz": spoken.rate_hz,
        }
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo(f"{out}: {seconds:.1f} s of speech, made in {spoken.compute_ms / 1000:.2f} s")
