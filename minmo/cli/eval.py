"""`minmo eval`: how well mini listens and speaks, beside what it is compared with."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from minmo.cli import eval_duplex, eval_speech
from minmo.cli.evaluating import (
    Folders,
    Kinds,
    Limit,
    Markdown,
    Modules,
    Out,
    PresetOption,
    Seed,
    Sets,
    Sources,
    Threads,
    answerer_of,
    chosen_sets,
    evaluating,
    made_with_of,
    print_report,
    shown,
    source_of,
)
from minmo.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minmo.evaluation.modules import Source
    from minmo.evaluation.systems import System


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
    help="Measure how well speech is heard, understood and made, and turns are taken.\n\n"
    "Example: minmo eval asr ~/.cache/minmo/speech/mini --limit 200",
)


app.command("tts")(eval_speech.tts)
app.command("instruct")(eval_speech.instruct)
app.command("speech-to-speech")(eval_speech.speech_to_speech)
app.command("duplex")(eval_duplex.duplex)


@app.command("asr")
def asr(
    folders: Folders,
    preset: PresetOption = "mini",
    modules: Modules = None,
    systems: Annotated[
        list[AsrSystem] | None,
        typer.Option(
            "--system",
            help="aligned: as a stream. whole: the whole clip under the stream's mask. full: with "
            "full attention. decoder: the published encoder and its own decoder. Repeatable; the "
            "first is compared with the others.",
        ),
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    kinds: Kinds = None,
    sources: Sources = None,
    sets: Sets = None,
    out: Out = None,
    threads: Threads = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Write speech down: word error rates, what streaming costs, how long the last word takes.

    Example: minmo eval asr tests/data --system decoder --markdown
    """
    with evaluating(threads):
        from minmo.evaluation import asr as suite

        source = source_of(preset, modules)
        found = chosen_sets(folders, sets, kinds, sources, limit, seed)
        chosen = _asr_systems(source, systems or list(AsrSystem))
        report = shown(
            as_json,
            lambda progress: suite.measure(
                found,
                chosen,
                made_with=made_with_of(source),
                folder=out,
                seed=seed,
                progress=progress,
            ),
        )
        print_report(report, as_json, markdown)


@app.command("sqa")
def sqa(
    folders: Folders,
    preset: PresetOption = "mini",
    modules: Modules = None,
    systems: Annotated[
        list[SqaSystem] | None,
        typer.Option(
            "--system",
            help="What the LLM reads. text: the true text. cascade: what the published recogniser "
            "wrote. pieces: the aligned path's transcript. aligned: its embeddings. Repeatable.",
        ),
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    kinds: Kinds = None,
    sources: Sources = None,
    sets: Sets = None,
    latency_clips: Annotated[
        int, typer.Option(min=0, help="Questions of each set on which the first token is timed.")
    ] = 50,
    out: Out = None,
    threads: Threads = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Answer spoken questions: how many rightly, beside their text, and how soon.

    Example: minmo eval sqa ~/.cache/minmo/speech/mini --set test --limit 500 --out results
    """
    with evaluating(threads):
        from minmo.evaluation import sqa as suite

        source = source_of(preset, modules)
        found = chosen_sets(folders, sets, kinds, sources, limit, seed, with_answers=True)
        chosen = _sqa_systems(source, systems or list(SqaSystem))
        report = shown(
            as_json,
            lambda progress: suite.measure(
                found,
                chosen,
                answerer_of(source),
                made_with=made_with_of(source, with_llm=True),
                folder=out,
                latency_clips=latency_clips,
                seed=seed,
                progress=progress,
            ),
        )
        print_report(report, as_json, markdown)


@app.command("understanding")
def understanding(
    folders: Folders,
    preset: PresetOption = "mini",
    modules: Modules = None,
    systems: Annotated[
        list[SpokenSystem] | None,
        typer.Option("--system", help="aligned: embeddings. cascade: text. Repeatable."),
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    kinds: Kinds = None,
    sources: Sources = None,
    sets: Sets = None,
    pairs: Annotated[
        int, typer.Option(min=1, help="Pairs of each kind of the same words said differently.")
    ] = 100,
    out: Out = None,
    threads: Threads = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Compare what speech and text do to the LLM: punctuation, answers, how it was said.

    Example: minmo eval understanding ~/.cache/minmo/speech/mini --set test --kind turn
    """
    with evaluating(threads):
        from minmo.evaluation import understanding as suite

        source = source_of(preset, modules)
        found = chosen_sets(folders, sets, kinds, sources, limit, seed)
        wanted = systems or list(SpokenSystem)
        chosen = _sqa_systems(source, [SqaSystem(system.value) for system in wanted])
        report = shown(
            as_json,
            lambda progress: suite.measure(
                found,
                chosen,
                answerer_of(source),
                llm_sha256=source.sha256("llm"),
                made_with=made_with_of(source, with_llm=True),
                folder=out,
                pair_count=pairs,
                seed=seed,
                progress=progress,
            ),
        )
        print_report(report, as_json, markdown)


def _asr_systems(source: Source, wanted: Sequence[AsrSystem]) -> list[System]:
    from minmo.evaluation.systems import Aligned, OwnDecoder, WholeClip

    ears = source.listener() if set(wanted) - {AsrSystem.DECODER} else None
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
    aligned = Aligned(source.listener()) if listening else None
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
