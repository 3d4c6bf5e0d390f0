"""`minmo eval tts`, `instruct` and `speech-to-speech`: how well mini speaks."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    from contextlib import AbstractContextManager

    from minmo.audio.pcm import Samples
    from minmo.evaluation.answering import Answerer
    from minmo.evaluation.clips import ClipSet
    from minmo.evaluation.judges import Judge
    from minmo.evaluation.modules import Source
    from minmo.evaluation.speaking import Speaker
    from minmo.evaluation.systems import System
    from minmo.evaluation.voices import VoiceSource
    from minmo.model.llm import Llm

_LIKE_CLIPS = 30


class SpeakingSystem(StrEnum):
    """Who says a text."""

    MINMO = "minmo"
    PICO = "pico"
    PIPER = "piper"
    RECORDINGS = "recordings"


class Voice(StrEnum):
    """Who says a text that nobody has recorded."""

    MINMO = "minmo"
    PICO = "pico"
    PIPER = "piper"


class JudgeName(StrEnum):
    """Who hears it."""

    MOONSHINE = "moonshine"
    WHISPER = "whisper"
    DNSMOS = "dnsmos"
    SIMILARITY = "similarity"


class RecogniserName(StrEnum):
    """Who writes down what is heard."""

    MOONSHINE = "moonshine"
    WHISPER = "whisper"


class Ears(StrEnum):
    """What the LLM reads of a question."""

    TEXT = "text"
    CASCADE = "cascade"
    ALIGNED = "aligned"


_Texts = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="UTF-8 with a text a line; by default 100 sentences that MinMo brings.",
    ),
]
_SpeakerName = Annotated[
    str, typer.Option("--speaker", help="Speaker of MinMo's voice; empty is the default one.")
]
_RandomWeights = Annotated[
    bool,
    typer.Option("--random-weights", help="MinMo's voice untrained: what it costs, not its sound."),
]
_Voices = Annotated[
    list[Voice] | None,
    typer.Option(
        "--system",
        help="minmo: the voice that was trained. pico: SVOX Pico. piper: a voice that is fetched "
        "for it, with a tool under the GPL-3.0. Repeatable; by default pico, and minmo if it is "
        "here.",
    ),
]


def tts(
    recordings: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="Say what was recorded, and compare: Lhotse Shar, or recordings with a CSV file "
            "(path or id, and text). Repeatable.",
        ),
    ] = None,
    texts: _Texts = None,
    systems: Annotated[
        list[SpeakingSystem] | None,
        typer.Option(
            "--system",
            help="minmo: the voice that was trained. pico: SVOX Pico. piper: a voice that is "
            "fetched for it, with a tool under the GPL-3.0. recordings: people. Repeatable; the "
            "first is compared with the others. By default all but piper that are here.",
        ),
    ] = None,
    judges: Annotated[
        list[JudgeName] | None,
        typer.Option(
            "--judge",
            help="moonshine, whisper: recognisers. dnsmos: quality, 1 to 5. similarity: to the "
            "speaker. Repeatable; by default all. All but moonshine come with the extra judge.",
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="Recordings of the speaker for similarity; by default those of --recordings.",
        ),
    ] = None,
    preset: PresetOption = "mini",
    speaker: _SpeakerName = "",
    random_weights: _RandomWeights = False,
    limit: Limit = None,
    seed: Seed = 0,
    splits: Annotated[
        list[str] | None,
        typer.Option("--split", help="Only this split of a table of recordings. Repeatable."),
    ] = None,
    sets: Sets = None,
    out: Out = None,
    threads: Threads = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Read texts out: word errors of two recognisers, quality, likeness, how quick, clicks.

    With --out the audio is kept too.

    Example: minmo eval tts --recordings kathleen --split test --limit 20 --out results

    Example: minmo eval tts --system pico --judge moonshine --limit 10
    """
    with evaluating(threads), ExitStack() as open_:
        from minmo.cli.errors import InputError
        from minmo.evaluation import tts as suite

        source = source_of(preset, None)
        voice = _voice_of(source, speaker, random_weights)
        if recordings and texts:
            raise InputError("--recordings have texts of their own: leave --texts out")
        chosen = (
            chosen_sets(recordings, sets, None, None, limit, seed, splits=splits)
            if recordings
            else [_texts_of(texts, limit, seed)]
        )
        folder = like or (recordings[0] if recordings else None)
        heard_by = _judges(source, judges, folder, seed, threads)
        named = systems or [
            *(SpeakingSystem(name) for name in _voices(None, voice)),
            *([SpeakingSystem.RECORDINGS] if recordings else []),
        ]
        found = [
            suite.Recordings()
            if name is SpeakingSystem.RECORDINGS
            else open_.enter_context(_opened(Voice(name), voice))
            for name in dict.fromkeys(named)
        ]
        report = shown(
            as_json,
            lambda progress: suite.measure(
                chosen,
                found,
                heard_by,
                folder=out,
                seed=seed,
                progress=progress,
            ),
        )
        print_report(report, as_json, markdown)


def instruct(
    texts: _Texts = None,
    systems: _Voices = None,
    trials: Annotated[
        int, typer.Option(min=1, max=10_000, help="Instructions that each system gets.")
    ] = 50,
    preset: PresetOption = "mini",
    speaker: _SpeakerName = "",
    random_weights: _RandomWeights = False,
    seed: Seed = 0,
    out: Out = None,
    threads: Threads = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Say texts slowly, fast, loudly, quietly, high and deep: how often it is measured to be so.

    Example: minmo eval instruct --trials 60 --out results

    Example: minmo eval instruct --system pico --json
    """
    with evaluating(threads), ExitStack() as open_:
        from minmo.evaluation import instruct as suite

        voice = _voice_of(source_of(preset, None), speaker, random_weights)
        chosen = _texts_of(texts, None, seed)
        found = [open_.enter_context(_opened(name, voice)) for name in _voices(systems, voice)]
        report = shown(
            as_json,
            lambda progress: suite.measure(
                chosen,
                found,
                trials=trials,
                folder=out,
                seed=seed,
                progress=progress,
            ),
        )
        print_report(report, as_json, markdown)


def speech_to_speech(
    folders: Folders,
    ears: Annotated[
        Ears,
        typer.Option(
            help="What the LLM reads of a question: aligned: its embeddings. cascade: what the "
            "published recogniser wrote. text: the true text."
        ),
    ] = Ears.ALIGNED,
    systems: _Voices = None,
    judges: Annotated[
        list[RecogniserName] | None,
        typer.Option("--judge", help="Recogniser that hears the answers. Repeatable."),
    ] = None,
    preset: PresetOption = "mini",
    modules: Modules = None,
    speaker: _SpeakerName = "",
    random_weights: _RandomWeights = False,
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
    """Answer spoken questions aloud: how many answers are right in text, and as they are heard.

    Example: minmo eval speech-to-speech ~/.cache/minmo/speech/mini --set test --limit 200
    """
    with evaluating(threads), ExitStack() as open_:
        from minmo.evaluation import speech_to_speech as suite

        source = source_of(preset, modules)
        voice = _voice_of(source, speaker, random_weights)
        chosen = chosen_sets(folders, sets, kinds, sources, limit, seed, with_answers=True)
        heard = [JudgeName(name) for name in judges or list(RecogniserName)]
        recognisers = _judges(source, heard, None, seed, threads)
        llm = source.llm()
        listening, answerer = _ears(source, ears), answerer_of(source, llm)
        found = [
            open_.enter_context(_opened(name, voice, llm, answerer))
            for name in _voices(systems, voice)
        ]
        report = shown(
            as_json,
            lambda progress: suite.measure(
                chosen,
                listening,
                answerer,
                found,
                recognisers,
                made_with=made_with_of(source, with_llm=True)(listening),
                folder=out,
                seed=seed,
                progress=progress,
            ),
        )
        print_report(report, as_json, markdown)


def _voice_of(source: Source, speaker: str, random_weights: bool) -> VoiceSource:
    from minmo.evaluation.voices import VoiceSource

    return VoiceSource(source, speaker, random_weights)


def _texts_of(file: Path | None, limit: int | None, seed: int) -> ClipSet:
    from minmo.evaluation.tts import held_out, texts_of

    return held_out(limit, seed) if file is None else texts_of(file.stem, file, limit, seed)


def _voices(wanted: Sequence[Voice] | None, voice: VoiceSource) -> list[Voice]:
    """Those that are wanted, once each; else Pico, and MinMo's own where it is here."""
    if wanted:
        return list(dict.fromkeys(wanted))
    from minmo.weights.needs import missing_for_voice

    is_here = voice.random_weights or not missing_for_voice(voice.source.preset)
    return [Voice.MINMO, Voice.PICO] if is_here else [Voice.PICO]


def _opened(
    name: Voice, voice: VoiceSource, llm: Llm | None = None, answerer: Answerer | None = None
) -> AbstractContextManager[Speaker]:
    match name:
        case Voice.MINMO:
            return voice.speaking(llm or voice.source.llm(), voice.source.chat(), answerer)
        case Voice.PICO:
            from minmo.evaluation.voices import pico

            return pico()
        case Voice.PIPER:
            from minmo.cli.piper import piper

            return piper()


def _ears(source: Source, ears: Ears) -> System:
    from minmo.evaluation.systems import Aligned, OwnDecoder, TrueText

    match ears:
        case Ears.TEXT:
            return TrueText()
        case Ears.CASCADE:
            return OwnDecoder(source.recogniser(), "cascade")
        case Ears.ALIGNED:
            return Aligned(source.listener())


def _judges(
    source: Source,
    wanted: Sequence[JudgeName] | None,
    like: Path | None,
    seed: int,
    threads: int | None,
) -> list[Judge]:
    """The judges, each loaded; by default all, similarity only where the speaker is known."""
    from minmo.cli.errors import InputError
    from minmo.evaluation.judges import Likeness, Moonshine, Quality, Whisper
    from minmo.stack.threads import available_cores

    if wanted is None:
        known = like is not None
        wanted = [name for name in JudgeName if known or name is not JudgeName.SIMILARITY]
    made: list[Judge] = []
    for name in dict.fromkeys(wanted):
        match name:
            case JudgeName.MOONSHINE:
                hashes = {part: source.sha256(part) for part in ("voice_encoder", "recognizer")}
                made.append(Moonshine(source.recogniser(), hashes))
            case JudgeName.WHISPER:
                made.append(Whisper(threads or available_cores()))
            case JudgeName.DNSMOS:
                made.append(Quality())
            case JudgeName.SIMILARITY:
                if like is None:
                    raise InputError("similarity to whom? Give recordings with --like FOLDER")
                made.append(Likeness(_recordings_of(like, seed)))
    return made


def _recordings_of(folder: Path, seed: int) -> dict[str, Samples]:
    """Some of a speaker's recordings, by their ids."""
    from minmo.evaluation.clips import Choice, read_sets

    sets = read_sets([folder], Choice(limit=_LIKE_CLIPS, seed=seed))
    return {clip.id: samples for one in sets for clip, samples in one.read()}
