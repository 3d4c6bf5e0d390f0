"""`minmo eval duplex`: who speaks now, as several systems decide it."""

from __future__ import annotations

import random
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minmo.cli.evaluating import (
    Markdown,
    PresetOption,
    Seed,
    Threads,
    evaluating,
    print_report,
    shown,
)
from minmo.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from minmo.evaluation.duplex_deciders import Decider, FullDuplex, Trial, TurnEnd
    from minmo.training.duplex_hearing import Hearing, Loaded
    from minmo.training.shar import Clip


class DuplexSystem(StrEnum):
    """Who decides."""

    PREDICTOR = "predictor"
    ALONE = "alone"
    SILENCE = "silence"
    SMART_TURN = "smart-turn"


def duplex(
    folder: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, help="Scenes, as `minmo data duplex` makes them."
        ),
    ],
    name: Annotated[str, typer.Option("--set", help="Set of the folder.")] = "test",
    preset: PresetOption = "mini",
    predictor: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="As `minmo train export` writes it; by default the one that is served.",
        ),
    ] = None,
    systems: Annotated[
        list[DuplexSystem] | None,
        typer.Option(
            "--system",
            help="predictor: the full-duplex predictor. alone: the same, which may answer while "
            "voice activity hears speech. silence: a timer. smart-turn: Smart Turn v3.2, which is "
            "fetched (12 MB, BSD-2-Clause). Repeatable; by default all but smart-turn that are "
            "here.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many scenes, drawn at random.")
    ] = None,
    seed: Seed = 0,
    curves: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", dir_okay=False, help="Write every setting of every knob as CSV."
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", dir_okay=False, help="Draw them: .svg or .png."),
    ] = None,
    states: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="For what the LLM makes of scenes, read once; by default .states beside them.",
        ),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Decide who speaks, in simulated conversations: how rightly, how soon, beside a timer.

    Example: minmo eval duplex ~/scenes --limit 300 --curves curves.csv --picture curves.svg
    """
    from minmo.cli.errors import InputError
    from minmo.training.errors import TrainingError

    with evaluating(threads):
        try:
            _check_files(curves, picture)
            from minmo.evaluation import duplex as suite

            deciders, hearing = _built(preset, systems, predictor, states, threads or 1)
            clips = _chosen(folder.expanduser(), name, limit, seed)
            report = shown(
                as_json,
                lambda progress: suite.measure(
                    _trials(clips, hearing),
                    deciders,
                    step_seconds=hearing.step_seconds,
                    total=len(clips),
                    ours=next((one.name for one in deciders if _is_ours(one)), None),
                    seed=seed,
                    progress=progress,
                ),
            )
        except TrainingError as error:
            raise InputError(str(error)) from error
    if curves is not None:
        suite.write_curves(report, curves)
    if picture is not None:
        from minmo.evaluation.duplex_picture import draw

        draw(report, picture)
    print_report(report, as_json, markdown)


def _check_files(curves: Path | None, picture: Path | None) -> None:
    """Says before anything is heard what cannot be written."""
    from minmo import pictures
    from minmo.cli.errors import InputError

    if curves is not None and not curves.absolute().parent.is_dir():
        raise InputError(f"--curves is {curves}; there is no folder {curves.absolute().parent}")
    if picture is not None:
        try:
            pictures.check(picture)
        except ValueError as error:
            raise InputError(f"--picture: {error}") from error


def _built(
    preset: str,
    systems: Sequence[DuplexSystem] | None,
    folder: Path | None,
    states: Path | None,
    threads: int,
) -> tuple[list[Decider], Hearing]:
    """The systems, the predictor first, and what hears for them."""
    from minmo.cli.errors import InputError
    from minmo.evaluation.duplex_deciders import EndpointModel, SilenceTimer
    from minmo.presets import load_preset
    from minmo.training.duplex_hearing import Hearing, load_predictor, options_of
    from minmo.weights.duplex import DUPLEX_MODULE

    load_preset(preset)  # A wrong name is said at once.
    predicting = {DuplexSystem.PREDICTOR, DuplexSystem.ALONE}
    loaded = None
    if systems is None or predicting & set(systems):
        loaded = load_predictor(preset, folder and folder.expanduser() / DUPLEX_MODULE)
    if loaded is None and systems is not None and predicting & set(systems):
        raise InputError(
            f"preset {preset!r} has no full-duplex predictor: give one with --predictor, or "
            "choose other systems with --system"
        )
    usual = {DuplexSystem.SILENCE, *(predicting if loaded else ())}
    made: list[Decider] = []
    for system in DuplexSystem:
        if system not in (systems or usual):
            continue
        if system is DuplexSystem.SILENCE:
            made.append(SilenceTimer())
        elif system is DuplexSystem.SMART_TURN:
            made.append(EndpointModel("Smart Turn v3.2", _smart_turn(threads)))
        else:
            assert loaded is not None
            made.append(_full_duplex(loaded, into_speech=system is DuplexSystem.ALONE))
    return made, Hearing(preset, options_of(preset, states), loaded and loaded.module)


def _full_duplex(loaded: Loaded, *, into_speech: bool) -> FullDuplex:
    from minmo.evaluation.duplex_deciders import FullDuplex, Setting

    settings = [
        Setting(f"eagerness {one.eagerness:g}", one.assistant_turn, one.user_turn)
        for one in loaded.points
    ]
    return FullDuplex(settings, into_speech=into_speech)


def _is_ours(decider: Decider) -> bool:
    from minmo.evaluation.duplex_deciders import FullDuplex

    return isinstance(decider, FullDuplex)


def _smart_turn(threads: int) -> TurnEnd:
    """Fetches the model where it is not here."""
    from minmo.evaluation.smart_turn import SmartTurn
    from minmo.training.data.packages import SMART_TURN, folder_of
    from minmo.weights import shown_on

    with shown_on(sys.stderr) as progress:
        folder = folder_of(SMART_TURN, progress)
    return SmartTurn(folder / "smart_turn.onnx", threads)


def _chosen(folder: Path, name: str, limit: int | None, seed: int) -> list[Clip]:
    """Scenes of a set; a larger limit draws the same ones and more."""
    from minmo.training.shar import read_set

    clips = read_set(folder, name)
    if limit is not None:
        clips = random.Random(seed).sample(clips, len(clips))[:limit]
    return clips


def _trials(clips: Sequence[Clip], hearing: Hearing) -> Iterator[Trial]:
    """Hears the scenes, one after the other."""
    from minmo.evaluation.duplex_deciders import Trial, Voice
    from minmo.training.shar import SAMPLE_RATE

    for clip in clips:
        heard = hearing.hear(clip)
        voices = [Voice(*(at / SAMPLE_RATE for at in one)) for one in heard.stretches]
        yield Trial(clip.id, heard.scene, heard.user, voices, heard.predicted)
