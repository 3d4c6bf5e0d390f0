"""What the commands of `minmo eval` share: options, systems, bars, tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from minmo.evaluation.answering import Answerer
    from minmo.evaluation.asr import MadeWith, Progress
    from minmo.evaluation.clips import ClipSet
    from minmo.evaluation.modules import Source
    from minmo.evaluation.report import Table
    from minmo.evaluation.systems import System
    from minmo.model.llm import Llm

_PIPE_WIDTH = 200

Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="FOLDER...",
        help="Folders of Lhotse Shar, or of recordings with a CSV file (path or id, and text).",
    ),
]
PresetOption = Annotated[str, typer.Option(help="Preset whose modules are evaluated.")]
Modules = Annotated[
    Path | None,
    typer.Option(
        "--modules",
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="Aligned modules to evaluate, FOLDER/<module>; by default those that are served.",
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many clips of each set, drawn at random.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the draw and of the intervals.")]
Kinds = Annotated[
    list[str] | None, typer.Option("--kind", help="Only clips of this kind. Repeatable.")
]
Sources = Annotated[
    list[str] | None, typer.Option("--source", help="Only clips from this source. Repeatable.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Only this set of the folders. Repeatable.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help="Folder for results clip by clip; a second run does only what is missing there.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=256, help="Threads; by default as many as cores.")
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown.")]


@contextmanager
def evaluating(threads: int | None) -> Iterator[None]:
    """Sets threads, and says in one line what evaluation cannot do."""
    import torch

    from minmo.cli.errors import InputError
    from minmo.evaluation.errors import EvaluationError
    from minmo.stack.threads import available_cores
    from minmo.training.data.errors import DataError

    torch.set_num_threads(threads or available_cores())
    try:
        yield
    except (EvaluationError, DataError) as error:
        raise InputError(str(error)) from error


def source_of(preset: str, modules: Path | None) -> Source:
    """Where the modules of a preset come from."""
    from minmo.evaluation.modules import Source
    from minmo.presets import load_preset

    load_preset(preset)  # A wrong name is said at once, not after minutes.
    return Source(preset, modules)


def chosen_sets(
    folders: Sequence[Path],
    names: Sequence[str] | None,
    kinds: Sequence[str] | None,
    sources: Sequence[str] | None,
    limit: int | None,
    seed: int,
    *,
    splits: Sequence[str] | None = None,
    with_answers: bool = False,
) -> list[ClipSet]:
    """The sets of the folders, with the clips that the options choose."""
    from minmo.evaluation.clips import Choice, read_sets

    choice = Choice(
        sets=frozenset(names or ()),
        kinds=frozenset(kinds or ()),
        sources=frozenset(sources or ()),
        splits=frozenset(splits or ()),
        limit=limit,
        seed=seed,
        with_answers=with_answers,
    )
    return read_sets(folders, choice)


def answerer_of(source: Source, llm: Llm | None = None) -> Answerer:
    """What answers: the preset's LLM, loaded here if it is not given."""
    from minmo.evaluation.answering import Answerer

    return Answerer(llm or source.llm(), source.chat())


def made_with_of(source: Source, *, with_llm: bool = False) -> MadeWith:
    """What results depend on, so that they are not mixed with those of other weights."""
    from minmo.evaluation.answering import MAX_TOKENS, SYSTEM_PROMPT

    def made_with(system: System) -> dict[str, Any]:
        modules = [*system.uses, *(["llm"] if with_llm else [])]
        options = {"instructions": SYSTEM_PROMPT, "max_tokens": MAX_TOKENS} if with_llm else {}
        return {module: source.sha256(module) for module in modules} | options

    return made_with


class Report(Protocol):
    """What a suite found."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""

    def tables(self) -> list[Table]:
        """For people."""


_Found = TypeVar("_Found")


def shown(quiet: bool, work: Callable[[Progress], _Found]) -> _Found:
    """Runs work with a bar for what it does."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    from minmo.cli.show import stderr

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, *times, console=stderr(), transient=True, disable=quiet) as bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        return work(progress)


def print_report(report: Report, as_json: bool, markdown: bool) -> None:
    """Prints what was found: for programs, for documents, or for a terminal."""
    import json

    from minmo.evaluation.results import without_nan

    if as_json:
        typer.echo(json.dumps(without_nan(report.to_json()), indent=2, ensure_ascii=False))
    elif markdown:
        typer.echo("\n\n".join(table.markdown() for table in report.tables()))
    else:
        for table in report.tables():
            _print_table(table)


def _print_table(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    table_shown = RichTable(title=table.title, title_justify="left", box=None, header_style="dim")
    for name in table.header:
        words = name in {"set", "system", "than", "pairs", "mark"}
        table_shown.add_column(name, justify="left" if words else "right", no_wrap=True)
    for row in table.rows:
        table_shown.add_row(*row)
    # Where nobody looks, as in a pipe, a table is as wide as it has to be.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table_shown)
    for note in table.notes:
        console.print(note, markup=False)
    console.print()
