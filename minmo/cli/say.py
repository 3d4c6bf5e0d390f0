"""`minmo say`: a text, spoken."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from minmo.cli.options import Address, Json, Preset, TlsCa, Token

_PART_CHARACTERS = 400


def say(
    text: Annotated[
        str,
        typer.Argument(
            help='What to say, plain or in Markdown, of any length; "-" reads it from stdin.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write: .wav, .flac, .ogg or .opus.")],
    instruct: Annotated[
        str,
        typer.Option(
            help='How to speak, in words, as in "slowly" or "louder, in a deep voice". A voice '
            "refuses what it does not know."
        ),
    ] = "",
    voice: Annotated[str, typer.Option(help="Name of the voice; empty is the default one.")] = "",
    rate: Annotated[int, typer.Option(help="Rate of the audio in Hz.")] = 24_000,
    as_written: Annotated[
        bool,
        typer.Option(
            "--as-written",
            help="Leave numbers, dates and the like for the voice to read by itself.",
        ),
    ] = False,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    preset: Preset = "mini",
    as_json: Json = False,
) -> None:
    """Have a text spoken.

    Numbers, dates, money, units, abbreviations and addresses are written out first, English ones;
    marks of Markdown and emoji are dropped.

    Example: minmo say "The kettle is on." --out speech.wav

    Example: minmo say - --out book.opus --instruct slowly < book.md
    """
    import json
    import sys

    from minmo.audio.pcm import FileWriter
    from minmo.cli.checks import check_output, check_rate
    from minmo.cli.errors import InputError
    from minmo.cli.reach import Reach, Server
    from minmo.cli.show import stderr
    from minmo.client import speech
    from minmo.engine.speakable import shown
    from minmo.stack import StackConfig

    check_output(out)
    check_rate(rate)
    words = sys.stdin.read() if text == "-" else text
    if not words.strip():
        raise InputError("there is no text to say")
    parts = parts_of(words, as_written)
    # Before a server is started for it.
    first = next(parts)

    async def work(server: Server) -> tuple[int, float, str]:
        from rich.progress import Progress

        samples, compute_ms, left_out = 0, 0.0, ""
        is_long = len(words) > first.written
        with (
            Progress(console=stderr(), transient=True, disable=as_json or not is_long) as bars,
            FileWriter(out, rate) as file,
        ):
            task = bars.add_task("speaking", total=len(words))
            for part in chain([first], parts):
                spoken = await speech.say(
                    server.target, part.text, rate_hz=rate, voice=voice, instruct=instruct
                )
                file.write(spoken.samples)
                samples += len(spoken.samples)
                compute_ms += spoken.compute_ms
                left_out += part.unsayable
                bars.advance(task, part.written)
        return samples, compute_ms, shown(left_out)

    reach = Reach(address, token, tls_ca, StackConfig(preset=preset), quiet=as_json)
    samples, compute_ms, left_out = reach.run(work)
    seconds = samples / rate
    if as_json:
        result = {
            "file": str(out),
            "left_out": left_out,
            "audio_ms": round(seconds * 1000),
            "compute_ms": compute_ms,
            "rate_hz": rate,
        }
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    if left_out:
        stderr().print(f"left out, as no English word stands for it: {left_out}", markup=False)
    typer.echo(f"{out}: {seconds:.1f} s of speech, made in {compute_ms / 1000:.2f} s")


class Part(NamedTuple):
    """What is spoken at once: some sentences.

    Attributes:
        text: as it is said.
        unsayable: what of it no English word stands for.
        written: characters of the sentences as they are written.
    """

    text: str
    unsayable: str
    written: int


def parts_of(text: str, as_written: bool = False) -> Iterator[Part]:
    """A text in parts, each made when it is asked for: a long text is heard of as it is spoken.

    Args:
        text: plain or in Markdown.
        as_written: whether numbers and the like stay.

    Raises:
        InputError: with the first part, there is no word in the text.
    """
    from minmo.cli.errors import InputError
    from minmo.engine.speakable import shown
    from minmo.engine.spoken_form import SpokenForm, spoken_sentence, written_sentences

    part, was_said = Part("", "", 0), False
    for sentence in written_sentences(text):
        said = SpokenForm(sentence.strip(), "") if as_written else spoken_sentence(sentence)
        if part.text and len(part.text) + len(said.text) >= _PART_CHARACTERS:
            yield part
            part, was_said = Part("", "", 0), True
        joined = f"{part.text} {said.text}".strip()
        part = Part(joined, part.unsayable + said.unsayable, part.written + len(sentence))
    if part.text:
        yield part
    elif not was_said:
        held = f"only {shown(part.unsayable)}" if part.unsayable else "only signs"
        raise InputError(f"the text has no word that can be said, {held}; give English text")
