"""`minmo bench load`: many people talk at the same time."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minmo.cli.options import (
    Address,
    Json,
    Mode,
    ModeOption,
    Preset,
    Replicas,
    TlsCa,
    Token,
    replicas_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from minmo.bench.faults import Fault
    from minmo.bench.lines import Question
    from minmo.bench.load import Load, LoadPlan, Servers
    from minmo.bench.load_result import LoadResult
    from minmo.cli.reach import Server
    from minmo.stack import Stack, StackConfig
    from minmo.stack.mode import WantedMode

_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s?")
_DRAIN_SECONDS = 10.0
_MOST_SESSIONS = 10_000
# A test takes what machines give; what services refuse by default is for the world outside.
_NO_LIMITS = {
    "MINMO_MAX_STREAMS": "100000",
    "MINMO_MAX_SESSIONS_PER_OWNER": "1000000",
    "MINMO_MAX_SESSIONS_PER_KEY": "100000",
    "MINMO_AUDIO_SECONDS_PER_HOUR": "100000000",
}
_REPLAYED = "minmo bench load --replayed --recording answers.gz"
EPILOG = "\n\n".join(
    (
        "The tables of docs/capacity.md, on a machine with nothing else to do:",
        "minmo bench load --sessions 1,2,3,4 --seconds 40",
        f"{_REPLAYED} --sessions 10,20,40 --seconds 25",
        f"{_REPLAYED} --through gateway --sessions 10,20,40 --seconds 25",
        f"{_REPLAYED} --sessions 10 --seconds 120 --replicas all=2 --faults all",
    )
)
"""What `--help` says at its end."""


class Through(StrEnum):
    """How users talk."""

    GRPC = "grpc"
    GATEWAY = "gateway"


def load(
    sessions: Annotated[
        str, typer.Option(metavar="N,...", help="Levels: sessions at once, one after the other.")
    ] = "1,2,4",
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Length of a level.")] = 30.0,
    ramp: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Instead of levels: one session more each --every."),
    ] = None,
    every: Annotated[
        str, typer.Option(metavar="SECONDS", help="Time between two sessions of --ramp.")
    ] = "5s",
    through: Annotated[Through, typer.Option(help="How users talk.")] = Through.GRPC,
    replayed: Annotated[
        bool,
        typer.Option(
            "--replayed",
            help="Load the pipeline alone: encoder, llm and voice decoder replay a recording of "
            "what the models said, at the same times.",
        ),
    ] = False,
    recording: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="The recording of --replayed; it is made if it is not there. By default one is "
            "made each time.",
        ),
    ] = None,
    replicas: Replicas = "",
    faults: Annotated[
        str,
        typer.Option(
            metavar="KIND:NAME@SECONDS,...",
            help="What happens meanwhile, as in kill:encoder@10s,drain:orchestrator-2@20s,"
            "add:llm@30s; `all` does all three to each service.",
        ),
    ] = "",
    questions: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder of spoken questions.")
    ] = Path("examples/questions"),
    count: Annotated[int, typer.Option(min=1, max=1000, help="Questions to choose from.")] = 10,
    think: Annotated[
        float, typer.Option(min=0, max=10, help="Median of the seconds before a question.")
    ] = 1.0,
    interrupt: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the answers that users speak over.")
    ] = 0.1,
    answer_tokens: Annotated[
        int, typer.Option(min=1, max=1024, help="Most text tokens of an answer.")
    ] = 24,
    limit: Annotated[
        float,
        typer.Option(
            min=1, help="Milliseconds of first-audio latency, 95th percentile, of a good level."
        ),
    ] = 1500.0,
    seed: Annotated[int, typer.Option(help="Of what users ask, think and interrupt.")] = 0,
    address: Address = None,
    gateway_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT,...", help="Gateways of --address, for --through gateway."),
    ] = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    preset: Preset = "mini",
    mode: ModeOption = Mode.AUTO,
    as_json: Json = False,
) -> None:
    """Let many talk at once: sessions held, first audio, late frames, and what a session costs.

    Users speak recordings in real time, listen, think, and now and then interrupt. Levels follow
    one another; users who came stay. At the end each session's history is compared with what its
    user was told. --replicas, --faults and --replayed start a stack of their own; otherwise the
    server that runs here is used, or one is started. Ctrl-C prints the figures so far.

    Example: minmo bench load --sessions 1,2,4 --seconds 30
    """
    import json

    from minmo.bench.latency import read_questions
    from minmo.bench.lines import Question
    from minmo.bench.load import LoadPlan, Stage
    from minmo.bench.load import ramp as stages_of_ramp
    from minmo.bench.user import Habits
    from minmo.cli.bench_tables import load_tables
    from minmo.cli.errors import InputError

    stages = tuple(Stage(number, seconds) for number in _numbers(sessions))
    if ramp is not None:
        stages = stages_of_ramp(ramp, _seconds(every, "--every"))
    plan = LoadPlan(
        stages,
        through=through.value,
        habits=Habits(think_seconds=think, interrupt_share=interrupt),
        answer_tokens=answer_tokens,
        seed=seed,
        faults=_faults(
            faults,
            sum(stage.seconds for stage in stages),
            replicas_of(replicas),
            gateway=through is Through.GATEWAY,
        ),
        first_audio_limit_ms=limit,
    )
    asked = [Question.of(question) for question in read_questions(questions, count)]
    run = _Run(plan, asked, preset, mode.value, replicas_of(replicas), quiet=as_json)

    def show(result: LoadResult) -> None:
        if as_json:
            typer.echo(json.dumps(result.to_json(), indent=2))
        else:
            load_tables(result)

    if address is not None and (replayed or replicas or faults):
        raise InputError(
            "--replicas, --faults and --replayed are for a stack that is started here: leave "
            "--address out"
        )
    with tempfile.TemporaryDirectory(prefix="minmo-bench-") as folder:
        try:
            if replayed:
                run.replayed(Path(folder), recording)
            elif replicas or faults:
                run.with_own_stack(Path(folder))
            else:
                gateways = tuple(gateway_address.split(",")) if gateway_address else ()
                run.with_server(Path(folder), address, gateways, token, tls_ca)
        finally:
            # Also after Ctrl-C: what there is.
            if run.load is not None and run.load.began:
                show(run.load.result())


@dataclass
class _Run:
    """A load test that is to be run, and what was measured.

    Attributes:
        load: once it was begun.
    """

    plan: LoadPlan
    questions: Sequence[Question]
    preset: str
    mode: WantedMode
    replicas: Mapping[str, int]
    quiet: bool
    load: Load | None = field(default=None, init=False)

    def with_server(
        self,
        folder: Path,
        address: str | None,
        gateways: tuple[str, ...],
        token: str | None,
        tls_ca: Path | None,
    ) -> None:
        """Loads a given server, or the one that runs here, or one that is started."""
        from minmo.cli.reach import Reach

        async def work(server: Server) -> None:
            await self._load(_servers(server, gateways))

        Reach(address, token, tls_ca, self._config(folder), quiet=self.quiet).run(work)

    def with_own_stack(self, folder: Path, recording: Path | None = None) -> None:
        """Loads a stack that is started for it, with the models or with a recording of them."""
        from minmo.bench.replay import stand_ins
        from minmo.cli.reach import Server, run_with_stack
        from minmo.client import Target

        config = self._config(folder)
        if recording is not None:
            config = replace(config, mode="cascade", stand_ins=stand_ins(recording))

        async def work(stack: Stack) -> None:
            server = Server(Target(stack.targets["orchestrator"]), stack.describe(), stack)
            await self._load(_servers(server, (), replayed=recording is not None))

        run_with_stack(config, work, quiet=self.quiet)

    def replayed(self, folder: Path, recording: Path | None) -> None:
        """Loads a stack whose models are replayed; makes the recording if there is none."""
        from minmo.bench.replay.record import record
        from minmo.bench.replay.recording import Recording
        from minmo.cli.reach import run_with_stack
        from minmo.stack import StackConfig

        path = recording or folder / "recording"
        if path.exists():
            Recording.read(path)
        else:

            async def work(stack: Stack) -> None:
                with _shown(quiet=self.quiet) as progress:
                    made = await record(
                        stack.targets,
                        stack.redis_url,
                        self.questions,
                        answer_tokens=self.plan.answer_tokens,
                        progress=progress,
                    )
                made.write(path)

            config = StackConfig(self.preset, "cascade", port=0, folder=folder / "recorded")
            run_with_stack(config, work, quiet=self.quiet)
        self.with_own_stack(folder, path)

    async def _load(self, servers: Servers) -> None:
        from minmo.bench.load import Load
        from minmo.rpc import logging

        # What the users' client logs is counted here, and output is for the figures.
        logging.configure("error", "console")
        with _shown(quiet=self.quiet) as progress:
            self.load = Load(self.plan, servers, self.questions, progress)
            await self.load.run()

    def _config(self, folder: Path) -> StackConfig:
        from minmo.bench.faults import added
        from minmo.stack import StackConfig
        from minmo.stack.replicas import SERVICES

        return StackConfig(
            self.preset,
            self.mode,
            port=0,
            gateway=self.plan.through == "gateway",
            web_port=0,
            folder=folder,
            variables=dict.fromkeys(SERVICES, _NO_LIMITS),
            replicas=self.replicas,
            held_back=added(self.plan.faults),
            drain_seconds=_DRAIN_SECONDS,
        )


def _servers(server: Server, gateways: tuple[str, ...], *, replayed: bool = False) -> Servers:
    """What is loaded, and what of it can be measured."""
    from minmo.bench.load import Servers
    from minmo.bench.usage import OWN
    from minmo.stack.replicas import kind_of

    stack, described = server.stack, server.descriptor
    if described is None:
        return Servers(server.target, gateways)
    services = described.services
    found = tuple(
        service.address for name, service in services.items() if kind_of(name) == "gateway"
    )
    urls = (service.metrics for name, service in services.items() if kind_of(name) == "triton")

    def pids() -> dict[str, int]:
        known = {name: service.pid for name, service in services.items() if service.pid}
        return {**(known if stack is None else stack.pids), OWN: os.getpid()}

    return Servers(
        server.target,
        gateways or found,
        pids=pids,
        metrics_urls=tuple(url for url in urls if url),
        redis_url=described.redis_url,
        stack=stack,
        replayed=replayed,
    )


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows what is being done."""
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from minmo.cli.show import stderr

    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=stderr(), transient=True, disable=quiet) as bars:
        task = bars.add_task("starting", total=None)
        yield lambda what: bars.update(task, description=what)


def _numbers(text: str) -> list[int]:
    """Reads ``1,2,4``. Raises InputError."""
    from minmo.cli.errors import InputError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= _MOST_SESSIONS for word in words):
        raise InputError(
            f"--sessions {text!r}: give numbers from 1 to {_MOST_SESSIONS}, as in 1,2,4"
        )
    return [int(word) for word in words]


def _seconds(text: str, flag: str) -> float:
    """Reads ``5s``. Raises InputError."""
    from minmo.cli.errors import InputError

    match = _SECONDS.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise InputError(f"{flag} {text!r}: give seconds, as in 5s")
    return float(match[1])


def _faults(
    text: str, seconds: float, replicas: Mapping[str, int], *, gateway: bool
) -> tuple[Fault, ...]:
    """Reads --faults. Raises InputError."""
    from minmo.bench.faults import one_of_each, parse_faults
    from minmo.cli.errors import InputError

    if text == "all":
        return tuple(one_of_each(replicas, seconds, gateway=gateway))
    try:
        found = parse_faults(text) if text else []
    except ValueError as error:
        raise InputError(f"--faults: {error}") from None
    for fault in found:
        if fault.at_seconds >= seconds:
            raise InputError(f"--faults {fault}: all is over after {seconds:g} s")
    return tuple(found)
