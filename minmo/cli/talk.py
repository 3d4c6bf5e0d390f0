"""`minmo talk`: recorded questions, spoken answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minmo.cli.options import Address, Mode, ModeOption, Preset, TlsCa, Token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minmo.cli.reach import Server
    from minmo.client import Recording, TalkTurn
    from minmo.client.events import Event


def talk(
    recordings: Annotated[
        list[Path], typer.Argument(help="What you say: WAV, FLAC, Ogg or MP3, one after the other.")
    ],
    out: Annotated[
        Path, typer.Option(help="File to write the answers to: .wav, .flac, .ogg or .opus.")
    ],
    report: Annotated[
        Path | None, typer.Option(help="JSON file to write texts and times to.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Draw who spoke when into this SVG or PNG, at the end and on Ctrl-C.",
        ),
    ] = None,
    speed: Annotated[
        float, typer.Option(min=0.1, max=20, help="How much faster than real time to talk.")
    ] = 1.0,
    fast: Annotated[
        bool, typer.Option("--fast", help="Talk as fast as it goes; times are not meaningful then.")
    ] = False,
    rate: Annotated[int, typer.Option(help="Rate of the answer in Hz.")] = 24_000,
    session: Annotated[str, typer.Option(help="Session to go on with; empty makes one.")] = "",
    deadline: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds to wait for an answer.")
    ] = 30.0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Let a server that was started serve until Ctrl-C.")
    ] = False,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    preset: Preset = "mini",
    mode: ModeOption = Mode.AUTO,
) -> None:
    """Say recordings to MinMo as a microphone would, hear its answers, see where the time went.

    --plot draws the user's speech and the answers as they were heard on one line of time, with
    back-channels and interruptions, the ends of turns, first audio and stops.

    Example: minmo talk examples/question.wav --out answer.wav --plot talk.svg
    """
    from minmo.audio.pcm import write_file
    from minmo.cli.checks import check_output, check_picture, check_rate
    from minmo.cli.reach import Reach
    from minmo.cli.serve import announce
    from minmo.client import Recording
    from minmo.client.errors import NothingSaidError
    from minmo.client.microphone import FAST
    from minmo.client.talk import joined
    from minmo.stack import StackConfig

    check_output(out)
    check_rate(rate)
    if report is not None:
        check_output(report, endings=(".json",))
    if plot is not None:
        check_picture(plot)
    said = [Recording.read(path) for path in recordings]
    for recording in said:
        if recording.silent:
            raise NothingSaidError(f"nothing was said in {recording.path}: it is silent")

    answered = False

    async def work(server: Server) -> list[TalkTurn]:
        nonlocal answered
        pace = FAST if fast else speed
        turns = await _converse(server, said, rate, session, pace, deadline, plot)
        write_file(out, joined(turns), rate)
        typer.echo(f"answer written to {out}")
        if report is not None:
            _write_report(report, server, turns, out, fast)
            typer.echo(f"report written to {report}")
        if keep and server.stack is not None:
            answered = True
            announce(server.stack)
            raise await server.stack.failed()
        return turns

    reach = Reach(address, token, tls_ca, StackConfig(preset=preset, mode=mode.value, gateway=keep))
    try:
        turns = reach.run(work)
    except KeyboardInterrupt:
        if not answered:
            raise
        # How serving ends when all is well.
        typer.echo("MinMo has stopped.")
        return
    if any(turn.outcome == "failed" for turn in turns):
        raise typer.Exit(1)


async def _converse(
    server: Server,
    recordings: Sequence[Recording],
    rate: int,
    session: str,
    speed: float,
    deadline: float,
    plot: Path | None,
) -> list[TalkTurn]:
    import time

    from rich.console import Console

    from minmo.cli.waterfall import summary, waterfall
    from minmo.client import Conversation, ask
    from minmo.client.timeline import Timeline

    console = Console(highlight=False)
    turns: list[TalkTurn] = []
    conversation = Conversation(
        server.target,
        input_rate_hz=recordings[0].rate_hz,
        output_rate_hz=rate,
        session_id=session,
        speed=speed,
    )
    timeline = Timeline(conversation.sent_at, rate, speed)
    printer = _Printer(console)

    def listen(event: Event) -> None:
        printer.event(event)
        timeline.take(event, time.monotonic())

    try:
        async with conversation:
            for recording in recordings:
                answered = await ask(
                    conversation,
                    recording,
                    speed=speed,
                    deadline_seconds=deadline,
                    listener=listen,
                )
                printer.end()
                for turn in answered:
                    console.print()
                    console.print(waterfall(turn))
                    console.print(summary(turn), markup=False, soft_wrap=True)
                    if turn.outcome == "failed":
                        console.print(f"the answer failed: {turn.detail or 'see the logs'}")
                    console.print()
                turns += answered
    finally:
        # Also of a conversation that failed, or that Ctrl-C has ended.
        if plot is not None and timeline:
            timeline.advance(time.monotonic())
            timeline.draw(plot)
            typer.echo(f"timeline written to {plot}")
    return turns


class _Printer:
    """Prints both texts as they come."""

    def __init__(self, console: object) -> None:
        from rich.console import Console

        assert isinstance(console, Console)
        self._console = console
        self._utterance = ""

    def event(self, event: object) -> None:
        from minmo.client.events import (
            AssistantText,
            Disconnected,
            Happening,
            Reconnected,
            TurnEvent,
            UserText,
        )

        match event:
            case UserText(text=text, final=True):
                self.end()
                self._console.print(f"  you  {text}", markup=False)
            case AssistantText(utterance_id=utterance_id, text=text):
                if utterance_id != self._utterance:
                    self.end()
                    self._console.print("MinMo  ", end="", markup=False)
                    text = text.lstrip()
                self._utterance = utterance_id
                self._console.print(text, end="", markup=False, soft_wrap=True)
            case TurnEvent(kind=Happening.INTERRUPTED):
                self._note("(interrupted)")
            case TurnEvent(kind=Happening.RECOVERING, detail=detail):
                self._note(f"(waiting for {detail})")
            case TurnEvent(kind=Happening.RECOVERED, detail=detail):
                self._note(f"(goes on: {detail})")
            case Disconnected(reason=reason):
                self._note(f"(connection lost: {reason})")
            case Reconnected(seconds=seconds):
                self._note(f"(connected again after {seconds:.1f} s)")
            case _:
                pass

    def end(self) -> None:
        """Ends the line."""
        if self._utterance:
            self._console.print()
        self._utterance = ""

    def _note(self, text: str) -> None:
        self.end()
        self._console.print(text, style="dim", markup=False)


def _write_report(
    path: Path, server: Server, turns: Sequence[TalkTurn], answer: Path, fast: bool
) -> None:
    import json

    from minmo.bench.latency import after_decision_ms
    from minmo.rpc.metrics import minmo_version

    text = json.dumps(
        {
            "version": minmo_version(),
            "address": server.target.address,
            "session_id": turns[0].session_id,
            "mode": turns[0].mode,
            "real_time": not fast,
            "answer": str(answer),
            "turns": [
                {**turn.to_json(), "listening_to_first_token_ms": after_decision_ms(turn)}
                for turn in turns
            ],
        },
        indent=2,
        ensure_ascii=False,
    )
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)
