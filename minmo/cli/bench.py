"""`minmo bench`: figures, measured on what runs here."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from minmo.cli.options import Address, Json, Mode, ModeOption, Preset, TlsCa, Token


class Dtype(StrEnum):
    """Number type of computation."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


app = typer.Typer(
    no_args_is_help=True,
    help="Measure what runs here.\n\nExample: minmo bench latency",
)


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
    mode: ModeOption = Mode.CASCADE,
    as_json: Json = False,
) -> None:
    """Ask spoken questions one by one: first-audio latency, hops, tokens per second, memory.

    Example: minmo bench latency --count 20 --json
    """
    import json

    from minmo.bench import latency as bench
    from minmo.cli.bench_tables import latency_table
    from minmo.cli.reach import Reach, Server
    from minmo.cli.show import stderr
    from minmo.stack import StackConfig

    recordings = bench.read_questions(questions, count)

    async def work(server: Server) -> bench.LatencyResult:
        from rich.progress import Progress

        with Progress(console=stderr(), transient=True, disable=as_json) as bars:
            task = bars.add_task("asking", total=len(recordings))
            return await bench.measure(
                server.target,
                recordings,
                supervisor_pid=server.descriptor.pid if server.descriptor else None,
                progress=lambda done: bars.update(task, completed=done),
            )

    config = StackConfig(preset=preset, mode=mode.value)
    result = Reach(address, token, tls_ca, config, quiet=as_json).run(work)
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
    else:
        latency_table(result)


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
