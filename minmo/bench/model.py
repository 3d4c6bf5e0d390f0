"""The paper's latency model (equation 1, table 21): what lies between a question and its answer.

    python -m minmo.bench.model --preset mini --device cpu --random-weights

First audio takes the LLM's first five tokens, 15 speech tokens of the voice token LM, and one chunk
of token2wav. Each is measured in its engine, alone and with other sessions that ask at the same
moment, beside the time that reading its weights takes. Latency does not depend on the weights'
values: random ones of a preset's sizes tell as much as trained ones.

Contexts are short: the LLM holds 43 positions when it starts to answer, and the voice decoder reads
no prefix of the query. A long conversation costs what reading its keys and values costs besides.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import platform
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from minmo import pictures
from minmo.bench.components import FIRST_TOKEN, FIVE_TOKENS, SPEECH_TOKENS, TOKEN2WAV
from minmo.bench.components import PAPER_MS as TABLE_21_MS
from minmo.bench.llm import memory_bandwidth, weight_bytes
from minmo.bench.voice import VoiceReport
from minmo.bench.voice import measure as measure_voice
from minmo.engine.engine import Engine, EngineOptions
from minmo.engine.operations import (
    Close,
    Event,
    Failed,
    Generate,
    Operation,
    Prefill,
    TokenDrawn,
    is_last,
)
from minmo.engine.threads import apart
from minmo.engine.voice_decoder import scheduler
from minmo.engine.voice_decoder.engine import EngineOptions as VoiceEngineOptions
from minmo.engine.voice_decoder.engine import VoiceEngine
from minmo.engine.voice_decoder.modules import VoiceModules
from minmo.model.llm import Llm
from minmo.model.speaker import Speaker, random_speaker
from minmo.model.spelling import LONGEST_SPELLING
from minmo.presets import Preset, load_preset
from minmo.weights.modules import load_module, random_module

Device = Literal["cpu", "cuda"]

PROMPT = 40
"""Positions of a conversation before the last embeddings."""
EMBEDDINGS = 3
"""Speech embeddings of the last step, 144 ms."""
FIRST_TOKENS = 5
TEXT_TOKENS = 20
"""Of an utterance."""
SPEECH_PER_TEXT = 6
"""Untrained weights never end an utterance: it gets so many speech tokens for each of its text."""
_DEADLINE_SECONDS = 300.0
_LLM_CONTEXT = 64
"""Positions of a session: the prompt, the embeddings, the first tokens, and some to spare."""
_VOICE_CONTEXT = 256
"""Positions of an utterance: its text, the longest speech that it may get, and some to spare."""

_PARTS = (FIVE_TOKENS, SPEECH_TOKENS, TOKEN2WAV)
PAPER_MS = {
    **{stage: TABLE_21_MS[stage] for stage in (FIRST_TOKEN, *_PARTS)},
    "sum": sum(TABLE_21_MS[stage] for stage in _PARTS),
}
"""On an L20 GPU, for one session; the full-duplex predictor is not among it."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """A stage of the latency model.

    Attributes:
        stage: its name.
        paper_ms: on an L20 GPU, one session.
        floor_ms: the time to read its weights as often as the stage has to.
        measured_ms: for each number of sessions the median of several runs, each run's slowest
            session.
    """

    stage: str
    paper_ms: float
    floor_ms: float
    measured_ms: dict[int, float]


@dataclass(frozen=True)
class ModelReport:
    """What was measured.

    Attributes:
        preset: whose sizes.
        device: `cpu` or `cuda`.
        device_name: as its maker calls it.
        threads: that computed, on a CPU.
        random_weights: whether the weights were untrained.
        bandwidth_gb_s: reading the device's memory, in 10^9 bytes a second.
        rows: the stages, and their sum.
        real_time_factor: of the whole voice decoder, for each number of sessions: time over the
            audio time of one session. Below 1 all of them are heard without a gap.
    """

    preset: str
    device: str
    device_name: str
    threads: int
    random_weights: bool
    bandwidth_gb_s: float
    rows: list[Row] = field(default_factory=list)
    real_time_factor: dict[int, float] = field(default_factory=dict)

    @property
    def sessions(self) -> list[int]:
        """Numbers of sessions that were measured."""
        return list(self.real_time_factor)

    @property
    def sessions_in_real_time(self) -> int:
        """The most sessions, of those measured, that are heard without a gap; 0 for none."""
        return max((n for n, factor in self.real_time_factor.items() if factor < 1), default=0)

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {**asdict(self), "sessions_in_real_time": self.sessions_in_real_time}


def check(preset_name: str, device: Device = "cpu", plot: Path | None = None) -> None:
    """Says before anything is loaded what cannot be measured, or drawn afterwards.

    Args:
        preset_name: a built-in preset, or the path of one.
        device: where to compute.
        plot: file to draw the figures into.

    Raises:
        ValueError: there is no such device, a context of the preset is too short, or the plot
            cannot be drawn.
        PresetError: there is no such preset.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda' and PyTorch finds none here; use 'cpu'")
    preset = load_preset(preset_name)
    needed = {"llm": _LLM_CONTEXT, "voice_token_lm": _VOICE_CONTEXT}
    for module, positions in needed.items():
        there = getattr(preset, module).max_context
        if there < positions:
            raise ValueError(
                f"preset {preset.name!r} has {module}.max_context = {there}; the benchmark needs "
                f"at least {positions} positions"
            )
    if plot is not None:
        pictures.check(plot)


def measure(
    preset_name: str,
    device: Device = "cpu",
    *,
    sessions: Sequence[int] = (1,),
    random_weights: bool = False,
    threads: int = 2,
    repeats: int = 5,
    progress: Progress = lambda _: None,
) -> ModelReport:
    """Measures the engines of a preset in this process.

    Args:
        preset_name: a built-in preset, or the path of one.
        device: where to compute.
        sessions: how many at the same time, one measurement each.
        random_weights: whether to measure with untrained weights.
        threads: that compute, on a CPU.
        repeats: runs of each measurement.
        progress: is told what is measured next.

    Raises:
        ValueError: it cannot be measured (`check`).
        SlotMemoryError: the device's memory does not hold so many sessions.
        PresetError: there is no such preset.
        WeightsError: trained weights were wanted and are not here.
        RuntimeError: an operation failed.
    """
    check(preset_name, device)
    torch.set_num_threads(threads)
    preset = load_preset(preset_name)
    bandwidth = apart(partial(memory_bandwidth, device))

    def load(name: str) -> nn.Module:
        progress(f"loading {name}")
        return apart(partial(_loaded, preset, name, device, random_weights))

    llm = cast("Llm", load("llm"))
    llm_bytes, embeddings = weight_bytes(llm), llm.embed_tokens.weight
    first, five = _measure_llm(llm, sessions, repeats, progress)
    del llm
    _free(device)
    # Letters are read once, before anybody speaks: any will do.
    letters = torch.zeros(len(embeddings), LONGEST_SPELLING, dtype=torch.uint8)
    modules = VoiceModules.load(load, lambda: embeddings, lambda: letters)
    voice = _measure_voice(modules, device, sessions, repeats, progress)
    tokens_bytes = modules.lm.config.speech_group * weight_bytes(modules.lm.trunk)
    stages = {
        FIRST_TOKEN: (llm_bytes, first),
        FIVE_TOKENS: (FIRST_TOKENS * llm_bytes, five),
        SPEECH_TOKENS: (tokens_bytes, voice.tokens_ms),
        TOKEN2WAV: (_chunk_bytes(modules), voice.chunk_ms),
    }
    rows = [
        Row(stage, PAPER_MS[stage], 1000 * read / bandwidth, measured)
        for stage, (read, measured) in stages.items()
    ]
    parts = rows[1:]
    total = {n: sum(row.measured_ms[n] for row in parts) for n in sessions}
    rows.append(Row("sum", PAPER_MS["sum"], sum(row.floor_ms for row in parts), total))
    return ModelReport(
        preset=preset.name,
        device=device,
        device_name=_device_name(device),
        threads=threads,
        random_weights=random_weights,
        bandwidth_gb_s=bandwidth / 1e9,
        rows=rows,
        real_time_factor=voice.real_time_factor,
    )


def _loaded(preset: Preset, name: str, device: Device, random_weights: bool) -> nn.Module:
    """A module as the services load it: in bfloat16 on a GPU, but for what makes the waveform."""
    reads = name in ("llm", "voice_token_lm", "output_projector")
    dtype = torch.bfloat16 if reads and device == "cuda" else torch.float32
    if random_weights:
        return random_module(preset, name, dtype=dtype, device=device, packed=True)
    return load_module(preset, name, dtype=dtype, device=device)


def _free(device: Device) -> None:
    """Gives memory back: an engine and its recorded steps hold each other."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _chunk_bytes(modules: VoiceModules) -> int:
    """What one chunk of token2wav reads: the estimator once for every step of the solver."""
    flow = modules.flow
    whole = _bytes(flow) + _bytes(modules.vocoder)
    return whole + (flow.config.solver_steps - 1) * _bytes(flow.estimator)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _device_name(device: Device) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else _processor_name()


def _processor_name() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            names = (
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            )
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


# --- the LLM


def _measure_llm(
    llm: Llm, sessions: Sequence[int], repeats: int, progress: Progress
) -> tuple[dict[int, float], dict[int, float]]:
    """Milliseconds from the last embeddings to the first and to the fifth token."""
    # Without stop tokens every session gets as many as the others.
    options = EngineOptions(frozenset(), slots=max(sessions), context=_LLM_CONTEXT)
    engine = Engine(llm, options)
    engine.start()
    first, five = {}, {}
    try:
        for count in (1, *sessions):
            progress(f"LLM, {count} at once")
            runs = [_first_tokens(engine, count) for _ in range(repeats)]
            first[count], five[count] = (
                statistics.median(slowest) for slowest in zip(*runs, strict=True)
            )
    finally:
        engine.stop()
    return first, five


def _first_tokens(engine: Engine, count: int) -> tuple[float, float]:
    """When the slowest of `count` sessions has its first token, and its fifth."""
    numbers = np.random.default_rng(0)
    width = engine.model_config.width
    prompt = numbers.integers(3, engine.model_config.vocabulary_size, PROMPT)
    last = numbers.standard_normal((EMBEDDINGS, width)).astype(np.float32)
    names = [f"bench-{number}" for number in range(count)]
    _Answers(engine, count).wait_for({name: [Prefill(0, (prompt,))] for name in names})
    answers = _Answers(engine, count)
    generate = Generate(PROMPT + EMBEDDINGS, FIRST_TOKENS)
    began = time.perf_counter()
    answers.wait_for({name: [Prefill(PROMPT, (last,)), generate] for name in names})
    for name in names:
        engine.submit(Operation("close", name, "", 0, Close()), lambda _: None)
    times = [1000 * (max(answers.drawn[index]) - began) for index in (0, FIRST_TOKENS - 1)]
    return times[0], times[1]


class _Answers:
    """Waits for operations, and notes when tokens came."""

    def __init__(self, engine: Engine, sessions: int) -> None:
        self._engine = engine
        self._left = sessions
        self._done = threading.Event()
        self._failures: list[Failed] = []
        self.drawn: dict[int, list[float]] = defaultdict(list)

    def wait_for(self, actions: Mapping[str, Sequence[Prefill | Generate]]) -> None:
        for name, wanted in actions.items():
            for number, action in enumerate(wanted):
                operation_id = f"{type(action).__name__}-{action.position}"
                is_final = number == len(wanted) - 1
                self._engine.submit(
                    Operation(operation_id, name, "main", 0, action),
                    partial(self._note, is_final),
                )
        if not self._done.wait(_DEADLINE_SECONDS):
            raise RuntimeError(f"the engine gave no answer within {_DEADLINE_SECONDS:.0f} s")
        if self._failures:
            raise RuntimeError(f"the engine failed: {self._failures[0].message}")

    def _note(self, is_final: bool, event: Event) -> None:
        # Called by the engine's one thread.
        if isinstance(event, TokenDrawn):
            self.drawn[event.index].append(time.perf_counter())
        if isinstance(event, Failed):
            self._failures.append(event)
        if isinstance(event, Failed) or (is_final and is_last(event)):
            self._left -= 1
            if self._left <= 0:
                self._done.set()


# --- the voice decoder


@dataclass(frozen=True)
class _VoiceFigures:
    tokens_ms: dict[int, float] = field(default_factory=dict)
    chunk_ms: dict[int, float] = field(default_factory=dict)
    real_time_factor: dict[int, float] = field(default_factory=dict)


def _measure_voice(
    modules: VoiceModules,
    device: Device,
    sessions: Sequence[int],
    repeats: int,
    progress: Progress,
) -> _VoiceFigures:
    speaker = random_speaker(modules.flow.config.speaker_width)
    figures = _VoiceFigures()
    for count in sessions:
        progress(f"voice decoder, {count} at once")
        # An engine for each: a slot takes up to 1 GB of a GPU.
        runs = _voice_runs(modules, speaker, count, repeats)
        _free(device)
        tokens = statistics.median(run.first_tokens_ms for run in runs)
        chunk = statistics.median(run.first_chunk_ms for run in runs)
        figures.tokens_ms[count] = tokens
        figures.chunk_ms[count] = chunk - tokens
        factor = statistics.median(run.real_time_factor for run in runs)
        figures.real_time_factor[count] = factor * count
    return figures


def _voice_runs(
    modules: VoiceModules, speaker: Speaker, count: int, repeats: int
) -> list[VoiceReport]:
    options = VoiceEngineOptions(
        slots=count,
        context=_VOICE_CONTEXT,
        max_waiting=0,
        # Untrained weights never end an utterance: this is about as long as speech is.
        max_speech_per_vector=SPEECH_PER_TEXT,
        max_ahead_seconds=_DEADLINE_SECONDS,
    )
    engine = VoiceEngine(modules, options)
    engine.start()
    try:
        with _unending_speech_is_expected():
            measure_voice(engine, speaker, count, TEXT_TOKENS)
            return [measure_voice(engine, speaker, count, TEXT_TOKENS) for _ in range(repeats)]
    finally:
        engine.stop()


@contextmanager
def _unending_speech_is_expected() -> Iterator[None]:
    """Keeps the engine's warnings of speech that finds no end out of the figures."""
    logger = logging.getLogger(scheduler.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# --- for people


def lines(report: ModelReport) -> list[str]:
    """The report as a table in Markdown."""
    weights = "random weights" if report.random_weights else "trained weights"
    threads = f", {report.threads} threads" if report.device == "cpu" else ""
    head = [
        "stage",
        "paper, L20",
        "floor",
        *(f"{n} session{'s' * (n > 1)}" for n in report.sessions),
    ]
    table = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in report.rows:
        cells = [f"{row.paper_ms:.0f} ms", f"{row.floor_ms:.1f} ms"]
        table.append(
            [row.stage, *cells, *(f"{row.measured_ms[n]:.0f} ms" for n in report.sessions)]
        )
    factors = (f"{report.real_time_factor[n]:.2f}" for n in report.sessions)
    table.append(["real-time factor of the voice decoder", "", "", *factors])
    return [
        f"{report.preset}, {weights}, {report.device_name}{threads}, "
        f"memory read at {report.bandwidth_gb_s:.0f} GB/s",
        "",
        *(f"| {' | '.join(cells)} |" for cells in table),
        "",
        f"The LLM's context is {PROMPT + EMBEDDINGS} positions; the voice decoder reads no prefix "
        "of the query.",
    ]


def plot(report: ModelReport, path: Path) -> None:
    """Draws the stages over the number of sessions, as SVG or PNG by the name of the file.

    `check` says beforehand whether that is possible.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    times, factors = figure.subplots(1, 2, width_ratios=(3, 2))
    parts = report.rows[1:-1]
    places = range(len(report.sessions))
    below = np.zeros(len(report.sessions))
    for row in parts:
        heights = np.array([row.measured_ms[n] for n in report.sessions])
        times.bar(places, heights, bottom=below, label=row.stage)
        below += heights
    floor = report.rows[-1].floor_ms
    times.axhline(floor, color="black", linestyle=":", label=f"floor, {floor:.0f} ms")
    times.set(xlabel="sessions at once", ylabel="ms, slowest session", title="to first audio")
    times.legend(fontsize="small")
    factors.plot(places, [report.real_time_factor[n] for n in report.sessions], marker="o")
    factors.axhline(1, color="black", linestyle=":")
    factors.set(xlabel="sessions at once", title="voice decoder, real-time factor", ylim=(0, None))
    for axes in (times, factors):
        axes.set_xticks(list(places), [str(n) for n in report.sessions])
    figure.suptitle(f"{report.preset}, {report.device_name}")
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What lies between a question and its answer.")
    parser.add_argument("--preset", default="mini", help="whose sizes; a name or a path")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1], help="at the same time")
    parser.add_argument("--random-weights", action="store_true", help="untrained weights will do")
    parser.add_argument("--threads", type=int, default=2, help="that compute, on a CPU")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each measurement")
    parser.add_argument("--plot", type=Path, help="file to draw the figures into")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        check(given.preset, given.device, given.plot)
    except ValueError as error:
        parser.error(str(error))
    report = measure(
        given.preset,
        given.device,
        sessions=given.sessions,
        random_weights=given.random_weights,
        threads=given.threads,
        repeats=given.repeats,
    )
    if given.plot:
        plot(report, given.plot)
    print(json.dumps(report.to_json()) if given.json else "\n".join(lines(report)))


if __name__ == "__main__":
    main()
