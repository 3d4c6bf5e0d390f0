"""`minmo eval`: how well mini listens, beside the systems that it is compared with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from minmo.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from minmo.evaluation.answering import Answerer
    from minmo.evaluation.asr import MadeWith, Progress
    from minmo.evaluation.clips import ClipSet
    from minmo.evaluation.modules import Source
    from minmo.evaluation.report import Table
    from minmo.evaluation.systems import System

_PIPE_WIDTH = 200


class AsrSystem(StrEnum):
    """What writes speech down."""

    ALIGNED = "aligned"
    WHOLE = "whole"
    FULL = "full"
    DECODER = "decoder"


class SqaSystem(StrEnum):
    """What the LLM reads of a question."""

    TEXT = "text"
    CASCADE = "cascade"
    PIECES = "pieces"
    ALIGNED = "aligned"


class SpokenSystem(StrEnum):
    """What the LLM reads of a turn that was spoken."""

    CASCADE = "cascade"
    ALIGNED = "aligned"


app = typer.Typer(
    no_args_is_help=True,
    help="Measure how well speech is heard and understood.\n\n"
    "Example: minmo eval asr ~/.cache/minmo/speech/mini --limit 200",
)

_Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="FOLDER...",
        help="Folders of Lhotse Shar, or of recordings with a CSV file (path or id, and text).",
    ),
]
_Preset = Annotated[str, typer.Option(help="Preset whose modules are evaluated.")]
_Modules = Annotated[
    Path | None,
    typer.Option(
        "--modules",
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="Aligned modules to evaluate, FOLDER/<module>; by default those that are served.",
    ),
]
_Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many clips of each set, drawn at random.")
]
_Seed = Annotated[int, typer.Option(min=0, help="Of the draw and of the intervals.")]
_Kinds = Annotated[
    list[str] | None, typer.Option("--kind", help="Only clips of this kind. Repeatable.")
]
_Sources = Annotated[
    list[str] | None, typer.Option("--source", help="Only clips from this source. Repeatable.")
]
_Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Only this set of the folders. Repeatable.")
]
_Out = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help="Folder for results clip by clip; a second run does only what is missing there.",
    ),
]
_Threads = Annotated[
    int | None, typer.Option(min=1, max=256, help="Threads; by default as many as cores.")
]
_Markdown = Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown.")]


@app.command("asr")
def asr(
    folders: _Folders,
    preset: _Preset = "mini",
    modules: _Modules = None,
    systems: Annotated[
        list[AsrSystem] | None,
        typer.Option(
            "--system",
            help="aligned: as a stream. whole: the whole clip under the stream's mask. full: with "
            "full attention. decoder: the published encoder and its own decoder. Repeatable; the "
            "first is compared with the others.",
        ),
    ] = None,
    limit: _Limit = None,
    seed: _Seed = 0,
    kinds: _Kinds = None,
    sources: _Sources = None,
    sets: _Sets = None,
    out: _Out = None,
    threads: _Threads = None,
    as_json: Json = False,
    markdown: _Markdown = False,
) -> None:
    """Write speech down: word error rates, what streaming costs, how long the last word takes.

    Example: minmo eval asr tests/data --system decoder --markdown
    """
    with _evaluating(threads):
        from minmo.evaluation import asr as suite

        source = _source(preset, modules)
        found = _sets(folders, sets, kinds, sources, limit, seed)
        chosen = _asr_systems(source, systems or list(AsrSystem))
        report = _shown(
            as_json,
            lambda progress: suite.measure(
                found,
                chosen,
                made_with=_made_with(source),
                folder=out,
                seed=seed,
                progress=progress,
            ),
        )
        _print(report, as_json, markdown)


@app.command("sqa")
def sqa(
    folders: _Folders,
    preset: _Preset = "mini",
    modules: _Modules = None,
    systems: Annotated[
        list[SqaSystem] | None,
        typer.Option(
            "--system",
            help="What the LLM reads. text: the true text. cascade: what the published recogniser "
            "wrote. pieces: the aligned path's transcript. aligned: its embeddings. Repeatable.",
        ),
    ] = None,
    limit: _Limit = None,
    seed: _Seed = 0,
    kinds: _Kinds = None,
    sources: _Sources = None,
    sets: _Sets = None,
    latency_clips: Annotated[
        int, typer.Option(min=0, help="Questions of each set on which the first token is timed.")
    ] = 50,
    out: _Out = None,
    threads: _Threads = None,
    as_json: Json = False,
    markdown: _Markdown = False,
) -> None:
    """Answer spoken questions: how many rightly, beside their text, and how soon.

    Example: minmo eval sqa ~/.cache/minmo/speech/mini --set test --limit 500 --out results
    """
    with _evaluating(threads):
        from minmo.evaluation import sqa as suite

        source = _source(preset, modules)
        found = _sets(folders, sets, kinds, sources, limit, seed, with_answers=True)
        chosen = _sqa_systems(source, systems or list(SqaSystem))
        report = _shown(
            as_json,
            lambda progress: suite.measure(
                found,
                chosen,
                _answerer(source),
                made_with=_made_with(source, with_llm=True),
                folder=out,
                latency_clips=latency_clips,
                seed=seed,
                progress=progress,
            ),
        )
        _print(report, as_json, markdown)


@app.command("understanding")
def understanding(
    folders: _Folders,
    preset: _Preset = "mini",
    modules: _Modules = None,
    systems: Annotated[
        list[SpokenSystem] | None,
        typer.Option("--system", help="aligned: embeddings. cascade: text. Repeatable."),
    ] = None,
    limit: _Limit = None,
    seed: _Seed = 0,
    kinds: _Kinds = None,
    sources: _Sources = None,
    sets: _Sets = None,
    pairs: Annotated[
        int, typer.Option(min=1, help="Pairs of each kind of the same words said differently.")
    ] = 100,
    out: _Out = None,
    threads: _Threads = None,
    as_json: Json = False,
    markdown: _Markdown = False,
) -> None:
    """Compare what speech and text do to the LLM: punctuation, answers, how it was said.

    Example: minmo eval understanding ~/.cache/minmo/speech/mini --set test --kind turn
    """
    with _evaluating(threads):
        from minmo.evaluation import understanding as suite

        source = _source(preset, modules)
        found = _sets(folders, sets, kinds, sources, limit, seed)
        wanted = systems or list(SpokenSystem)
        chosen = _sqa_systems(source, [SqaSystem(system.value) for system in wanted])
        report = _shown(
            as_json,
            lambda progress: suite.measure(
                found,
                chosen,
                _answerer(source),
                llm_sha256=source.sha256("llm"),
                made_with=_made_with(source, with_llm=True),
                folder=out,
                pair_count=pairs,
                seed=seed,
                progress=progress,
            ),
        )
        _print(report, as_json, markdown)


@contextmanager
def _evaluating(threads: int | None) -> Iterator[None]:
    """Sets threads, and says in one line what evaluation cannot do."""
    import torch

    from minmo.cli.errors import InputError
    from minmo.evaluation.errors import EvaluationError
    from minmo.stack.threads import available_cores

    torch.set_num_threads(threads or available_cores())
    try:
        yield
    except EvaluationError as error:
        raise InputError(str(error)) from error


def _source(preset: str, modules: Path | None) -> Source:
    from minmo.evaluation.modules import Source
    from minmo.presets import load_preset

    load_preset(preset)  # A wrong name is said at once, not after minutes.
    return Source(preset, modules)


def _sets(
    folders: Sequence[Path],
    names: Sequence[str] | None,
    kinds: Sequence[str] | None,
    sources: Sequence[str] | None,
    limit: int | None,
    seed: int,
    *,
    with_answers: bool = False,
) -> list[ClipSet]:
    from minmo.evaluation.clips import Choice, read_sets

    choice = Choice(
        sets=frozenset(names or ()),
        kinds=frozenset(kinds or ()),
        sources=frozenset(sources or ()),
        limit=limit,
        seed=seed,
        with_answers=with_answers,
    )
    return read_sets(folders, choice)


def _asr_systems(source: Source, wanted: Sequence[AsrSystem]) -> list[System]:
    from minmo.evaluation.systems import Aligned, OwnDecoder, WholeClip

    ears = source.ears() if set(wanted) - {AsrSystem.DECODER} else None
    made: list[System] = []
    for system in dict.fromkeys(wanted):
        if system is AsrSystem.DECODER:
            made.append(OwnDecoder(source.recogniser()))
            continue
        assert ears is not None
        if system is AsrSystem.ALIGNED:
            made.append(Aligned(ears))
        else:
            made.append(WholeClip(ears, full_attention=system is AsrSystem.FULL))
    return made


def _sqa_systems(source: Source, wanted: Sequence[SqaSystem]) -> list[System]:
    from minmo.evaluation.systems import Aligned, OwnDecoder, PiecesAsText, TrueText

    listening = {SqaSystem.ALIGNED, SqaSystem.PIECES} & set(wanted)
    aligned = Aligned(source.ears()) if listening else None
    made: list[System] = []
    for system in dict.fromkeys(wanted):
        match system:
            case SqaSystem.TEXT:
                made.append(TrueText())
            case SqaSystem.CASCADE:
                made.append(OwnDecoder(source.recogniser(), "cascade"))
            case SqaSystem.PIECES:
                assert aligned is not None
                made.append(PiecesAsText(aligned))
            case SqaSystem.ALIGNED:
                assert aligned is not None
                made.append(aligned)
    return made


def _answerer(source: Source) -> Answerer:
    from minmo.evaluation.answering import Answerer

    return Answerer(source.llm(), source.chat())


def _made_with(source: Source, *, with_llm: bool = False) -> MadeWith:
    """What results depend on, so that they are not mixed with those of other weights."""
    from minmo.evaluation.answering import MAX_TOKENS, SYSTEM_PROMPT

    def made_with(system: System) -> dict[str, Any]:
        modules = [*system.uses, *(["llm"] if with_llm else [])]
        options = {"instructions": SYSTEM_PROMPT, "max_tokens": MAX_TOKENS} if with_llm else {}
        return {module: source.sha256(module) for module in modules} | options

    return made_with


class _Report(Protocol):
    def to_json(self) -> dict[str, Any]: ...

    def tables(self) -> list[Table]: ...


_Found = TypeVar("_Found")


def _shown(quiet: bool, work: Callable[[Progress], _Found]) -> _Found:
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


def _print(report: _Report, as_json: bool, markdown: bool) -> None:
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

    shown = RichTable(title=table.title, title_justify="left", box=None, header_style="dim")
    for name in table.header:
        words = name in {"set", "system", "than", "pairs", "mark"}
        shown.add_column(name, justify="left" if words else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    # Where nobody looks, as in a pipe, a table is as wide as it has to be.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(shown)
    for note in table.notes:
        console.print(note, markup=False)
    console.print()
