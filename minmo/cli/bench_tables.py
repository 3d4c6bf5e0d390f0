"""What `minmo bench` prints for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from minmo.bench.components import MEANINGS, rows
from minmo.bench.latency import LatencyResult
from minmo.bench.load_result import FaultResult, Level, LoadResult
from minmo.bench.usage import OWN
from minmo.evaluation.report import Table as Figures

_WIDTH = 100
"""Of tables in a file."""


def latency_tables(result: LatencyResult) -> list[Figures]:
    """The figures of `minmo bench latency`: the paper's table 21, then the rest."""
    table21 = [
        [row.name, *(_milliseconds(value) for value in (row.paper_ms, row.median_ms, row.p95_ms))]
        for row in rows(result.components)
    ]
    others = [
        [f"first audio, median of {len(result.first_audio_ms)}", f"{result.median_ms:.0f} ms"],
        ["first audio, 95th percentile", f"{result.p95_ms:.0f} ms"],
        *([f"{hop}, median", f"{took:.0f} ms"] for hop, took in result.hops_ms.items()),
    ]
    if result.tokens_per_second is not None:
        others.append(["tokens per second, median", f"{result.tokens_per_second:.1f}"])
    if result.memory_bytes is not None:
        others.append(["memory of the stack (PSS)", f"{result.memory_bytes / 1e6:.0f} MB"])
        for name, size in sorted(result.memory_by_process.items(), key=lambda pair: -pair[1]):
            others.append([f"of it {name}", f"{size / 1e6:.0f} MB"])
    return [
        Figures(
            "The paper's table 21",
            ("component", "paper, L20", "median", "95th percentile"),
            table21,
            [f"- {name}: {meaning}." for name, meaning in MEANINGS.items()],
        ),
        Figures(
            "Hops and memory",
            ("figure", "value"),
            others,
            [f"- no answer: {failure}" for failure in result.failures],
        ),
    ]


def print_tables(tables: Sequence[Figures], *, markdown: bool) -> None:
    """Prints tables for a document, or for a terminal."""
    console = Console(highlight=False, soft_wrap=True)
    if markdown:
        console.print("\n\n".join(table.markdown() for table in tables), markup=False)
        return
    for table in tables:
        first, *others = table.header
        shown = Table(first, box=None, header_style="dim")
        for name in others:
            shown.add_column(name, justify="right", no_wrap=True)
        for cells in table.rows:
            shown.add_row(*cells)
        console.print(shown)
        for note in table.notes:
            console.print(note, markup=False, style="dim")
        console.print()


def load_tables(result: LoadResult) -> None:
    """Prints the figures of `minmo bench load`."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(f"through {result.through}, {result.outputs}", markup=False)
    if not result.finished:
        console.print("stopped before its end: the figures so far")
    console.print(_levels(result))
    console.print(
        "first audio: p50 p95 p99, from the last sample of speech, at the client; late: frames of "
        "20 ms that came after they had to be played; stutter: longest silence within an answer, "
        "ms; moved: connections lost and found again"
    )
    if result.total.stop.count:
        console.print(
            f"an answer that is spoken over is silent after {result.total.stop.p50:.0f} ms (p50)"
        )
    for name, count in sorted(result.total.errors.items()):
        console.print(f"{count} x {name}", markup=False)
    if result.faults:
        console.print(_faults(result.faults, result.total))
        console.print(
            "of the turns that were under way until the process was back, 5 s at least; first "
            "audio: p50 worst; again: questions that had to be asked again; lost: sessions"
        )
        for fault in result.faults:
            if fault.problem:
                console.print(f"{fault.fault}: {fault.problem}", markup=False)
    costed = result.costed
    if costed is not None:
        console.print(_cost(costed, result))
    _print_history(console, result)
    console.print(
        f"sustained: {result.sustained_sessions} sessions (nobody lost, all answered, no silence "
        f"of 100 ms within an answer, 95 % of first audio within "
        f"{result.first_audio_limit_ms:.0f} ms)"
    )
    late = [level.sessions for level in result.levels if level.client_late]
    console.print(
        f"this process was late by {result.own_lag_p99_ms:.1f} ms (99th percentile), "
        f"{result.own_lag_worst_ms:.0f} ms at worst"
    )
    if late:
        console.print(
            f"So with {', '.join(map(str, late))} sessions the client itself was not in time: "
            "those figures are not the servers' alone. Let it run on another machine."
        )


def _levels(result: LoadResult) -> Table:
    table = Table(box=None, header_style="dim")
    headings = ("sessions", "held", "answered", "first audio ms", "late", "stutter", "moved")
    for heading in (*headings, "cores"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("good", no_wrap=True)
    for level in result.levels:
        table.add_row(str(level.sessions), *_row(level), _verdict(result, level))
    if len(result.levels) > 1:
        table.add_row("all", *_row(result.total), "")
    return table


def _row(level: Level) -> list[str]:
    cores = ""
    if level.usage is not None and level.usage.seconds > 0:
        used = sum(seconds for name, seconds in level.usage.cpu_seconds.items() if name != OWN)
        cores = f"{used / level.usage.seconds:.2f}"
    first = level.first_audio
    return [
        str(level.held),
        f"{level.answered} of {level.turns}",
        " ".join(map(_figure, (first.p50, first.p95, first.p99))),
        str(level.late_frames),
        _figure(level.stutter_ms),
        str(level.reconnects),
        cores,
    ]


def _verdict(result: LoadResult, level: Level) -> str:
    if level.client_late:
        return "client late"
    return "yes" if result.is_sustained(level) else "no"


def _faults(faults: tuple[FaultResult, ...], total: Level) -> Table:
    table = Table("fault", box=None, header_style="dim")
    headings = ("back after", "answered", "first audio ms", "late", "stutter", "moved", "again")
    for heading in (*headings, "lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for fault in faults:
        back = "" if fault.back_seconds is None else f"{fault.back_seconds:.1f} s"
        table.add_row(fault.fault, back, *_felt(fault), str(fault.lost))
    table.add_row("the whole run", "", *_felt(total), str(total.lost))
    return table


def _felt(what: FaultResult | Level) -> list[str]:
    return [
        f"{what.answered} of {what.turns}",
        f"{_figure(what.first_audio.p50)} {_figure(what.first_audio.worst)}",
        str(what.late_frames),
        _figure(what.stutter_ms),
        str(what.reconnects),
        str(what.repeats),
    ]


def _cost(level: Level, result: LoadResult) -> Table:
    """What a conversation costs, at the level that stands for it."""
    usage = level.usage
    assert usage is not None, "it was measured"
    table = Table(f"cost, {level.sessions} sessions", box=None, header_style="dim")
    for heading in ("CPU s/min", "sessions/core", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, seconds in level.cpu_seconds_a_minute().items():
        each = f"{60 / seconds:.0f}" if seconds > 0.01 else ""
        memory = level.memory_bytes().get(name)
        table.add_row(
            name,
            f"{seconds:.2f}",
            each if name != OWN else "",
            "" if memory is None else f"{memory / 1e6:.0f} MB",
        )
    minutes = level.session_minutes
    tokens = level.tokens_a_second() * usage.seconds / minutes
    table.caption = f"a minute of one conversation: {tokens:.0f} text tokens"
    if usage.redis_written_bytes is not None:
        table.caption += f", {usage.redis_written_bytes / minutes / 1e3:.1f} kB written by Redis"
    if result.redis_bytes_by_session:
        sizes = result.redis_bytes_by_session.values()
        kilobytes = sum(sizes) / len(sizes) / 1e3
        table.caption += f"; a session takes {kilobytes:.1f} kB of Redis' memory"
    table.caption_justify = "left"
    return table


def _print_history(console: Console, result: LoadResult) -> None:
    if result.history_problems is None:
        return
    console.print(
        f"{result.whole_sessions} of {result.total.sessions} sessions were held and are stored as "
        "they went"
    )
    for session_id, problems in result.history_problems.items():
        for problem in problems:
            console.print(f"{session_id}: {problem}", markup=False)


def _figure(milliseconds: float) -> str:
    return "-" if math.isnan(milliseconds) else f"{milliseconds:.0f}"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms"
