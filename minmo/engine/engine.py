"""The engine: one thread that owns the model and works off what callers submit."""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from dataclasses import dataclass

import numpy as np
import torch

from minmo.engine.cache import SessionTable
from minmo.engine.operations import (
    Cancel,
    Close,
    Event,
    Failed,
    Generate,
    IsCancelled,
    Matrix,
    OnEvent,
    Operation,
    Prefill,
    Probe,
    Reason,
    is_last,
)
from minmo.engine.runner import Runner, TurnPredictor
from minmo.engine.scheduler import Limits, Scheduler, Work
from minmo.engine.threads import apart
from minmo.model.llm import Llm, LlmCache

log = logging.getLogger(__name__)

_EXPIRY_CHECK_SECONDS = 1.0


@dataclass(frozen=True)
class EngineOptions:
    """How much an engine takes on.

    Attributes:
        stop_tokens: which end the model's turn.
        slots: branches at once.
        context: positions of a branch.
        max_tokens: of one generation.
        max_pending: operations that wait or run; further ones are refused.
        idle_seconds: a session that is unused for so long is dropped.
        piece: positions of one piece of a prefill.
        budget: positions of prefills that one step reads while nobody generates.
        shared_budget: the same while somebody does.
        history: hidden states of a branch that the predictor sees.
        batched: whether generations are read in recorded steps of fixed shapes
            (`minmo.engine.decoding`); None where that is faster, on a GPU.
    """

    stop_tokens: frozenset[int]
    slots: int = 16
    context: int = 2048
    max_tokens: int = 1024
    max_pending: int = 256
    idle_seconds: float = 600.0
    piece: int = 32
    budget: int = 128
    shared_budget: int = 32
    history: int = 65
    batched: bool | None = None


@dataclass(frozen=True)
class Snapshot:
    """Figures of an engine. Those from `steps` on only grow.

    Attributes:
        slots_in_use: branches that are held.
        waiting: operations that wait.
        running: operations that run.
        steps: of the model.
        step_seconds: time of all steps together.
        sequences: that took part in them, summed up over the steps.
        tokens: drawn.
        positions: read in prefills.
        probes: answered.
    """

    slots_in_use: int = 0
    waiting: int = 0
    running: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    sequences: int = 0
    tokens: int = 0
    positions: int = 0
    probes: int = 0


@dataclass(eq=False)
class _Counts:
    steps: int = 0
    step_seconds: float = 0.0
    sequences: int = 0
    tokens: int = 0
    positions: int = 0
    probes: int = 0


class Engine:
    """Batched, streaming inference for many sessions.

    Args:
        model: the LLM.
        options: how much to take on.
        predictor: what says who should speak, if there is one.

    Attributes:
        replica_id: new with every engine; a cache that another one held is lost.
        options: as given.
        model_config: sizes of the model.
        dtype: number type of weights and cache.
        predicts: whether there is a predictor.
    """

    def __init__(
        self, model: Llm, options: EngineOptions, predictor: TurnPredictor | None = None
    ) -> None:
        self.replica_id = uuid.uuid4().hex
        self.options = options
        self.model_config = model.config
        self.dtype = model.dtype
        cache = LlmCache(model.config, options.slots, options.context, model.dtype, model.device)
        # A last piece may overshoot the budget; every slot may want a token besides.
        max_rows = max(options.budget, options.shared_budget) + options.piece + options.slots
        batched = model.device.type == "cuda" if options.batched is None else options.batched

        @torch.inference_mode()
        def runner() -> Runner:
            return Runner(model, cache, max_rows, options.history, predictor, batched)

        self.predicts = predictor is not None
        self._runner = apart(runner)
        self._table = SessionTable(options.slots, options.idle_seconds)
        limits = Limits(
            context=options.context,
            max_tokens=options.max_tokens,
            piece=options.piece,
            budget=options.budget,
            shared_budget=options.shared_budget,
            stop_tokens=options.stop_tokens,
            history=options.history,
        )
        self._scheduler = Scheduler(self._table, self._runner, limits, time.monotonic)
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._pending = 0
        self._lock = threading.Lock()
        self._counts = _Counts()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="llm-engine", daemon=True)

    def start(self) -> None:
        """Warms the model up and starts to work."""
        self._thread.start()
        self._warm_up()

    def stop(self) -> None:
        """Fails what waits or runs, and ends the thread."""
        self._stopping = True
        self._inbox.put(None)
        self._thread.join()

    def submit(
        self, operation: Operation, on_event: OnEvent, is_cancelled: IsCancelled | None = None
    ) -> None:
        """Takes an operation from any thread; returns at once.

        Args:
            operation: what to do.
            on_event: gets its events, the last one included, on the engine's thread: it must be
                quick. What it raises cancels the operation.
            is_cancelled: asked between steps; once true, the operation ends.
        """
        if problem := self._problem_of(operation):
            on_event(problem)
            return
        with self._lock:
            self._pending += 1

        def tell(event: Event) -> None:
            if is_last(event):
                with self._lock:
                    self._pending -= 1
            on_event(event)

        work = Work(operation, tell, is_cancelled or _never, time.monotonic())
        self._inbox.put(work)

    def snapshot(self) -> Snapshot:
        """The figures now; from any thread."""
        counts, running = self._counts, self._scheduler.running
        return Snapshot(
            slots_in_use=self._table.slots_in_use,
            waiting=max(0, self._pending - running),
            running=running,
            steps=counts.steps,
            step_seconds=counts.step_seconds,
            sequences=counts.sequences,
            tokens=counts.tokens,
            positions=counts.positions,
            probes=counts.probes,
        )

    def _problem_of(self, operation: Operation) -> Failed | None:
        """What can be said against an operation without looking at the cache."""
        action = operation.action
        if isinstance(action, Prefill):
            width, vocabulary = self.model_config.width, self.model_config.vocabulary_size
            for number, part in enumerate(action.parts):
                if problem := _problem_of_part(part, width, vocabulary):
                    return Failed(Reason.BAD_CONTENT, f"part {number}: {problem}")
        if isinstance(action, Probe):
            if not self.predicts:
                return Failed(Reason.NO_PREDICTOR, "no full-duplex predictor is loaded")
            if problem := _problem_of_probe(action.embedding, self.model_config.width):
                return Failed(Reason.BAD_CONTENT, problem)
        # What frees must get through when all is full.
        if self._pending >= self.options.max_pending and not isinstance(action, Cancel | Close):
            message = f"{self._pending} operations wait or run, the limit; try again later"
            return Failed(Reason.BUSY, message)
        return None

    # --- the engine's thread

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._stopping:
                try:
                    self._take_submitted()
                    if self._scheduler.busy:
                        self._step()
                except Exception:
                    log.exception("a step failed as a whole")
                    self._scheduler.fail_all("the engine failed; see its log")
            self._scheduler.fail_all("the engine stops")

    def _take_submitted(self) -> None:
        """Hands over what came in; waits for it where there is nothing else to do."""
        timeout = None if self._scheduler.busy else _EXPIRY_CHECK_SECONDS
        try:
            work = self._inbox.get(block=timeout is not None, timeout=timeout)
            while work is not None:
                self._scheduler.submit(work)
                work = self._inbox.get_nowait()
        except queue.Empty:
            pass
        self._scheduler.expire()

    def _step(self) -> None:
        began = time.perf_counter()
        readings = self._scheduler.plan_readings()
        if readings:
            problems = self._runner.read(readings)
            self._scheduler.finish_readings(readings, problems)
        drawings = self._scheduler.plan_drawings()
        drawn = self._runner.draw(drawings)
        self._scheduler.finish_drawings(drawings, drawn)
        counts = self._counts
        counts.steps += 1
        counts.step_seconds += time.perf_counter() - began
        readers = {reading.work for reading in readings}
        counts.sequences += len(readers | {drawing.work for drawing in drawings})
        counts.tokens += len(drawings)
        counts.positions += sum(
            reading.count
            for reading in readings
            if isinstance(reading.work.operation.action, Prefill)
        )
        counts.probes += sum(
            isinstance(reading.work.operation.action, Probe) for reading in readings
        )

    def _warm_up(self) -> None:
        """Runs every kind of step once, so that the first caller doesn't pay for first times."""
        prompt = np.zeros(min(self.options.context // 2, self.options.piece + 1), dtype=np.int64)
        done = threading.Event()

        def after(event: Event) -> None:
            if is_last(event):
                done.set()

        def step(operation_id: str, action: Prefill | Generate | Close, branch: str) -> None:
            done.clear()
            self.submit(Operation(operation_id, "warm-up", branch, 0, action), after)
            done.wait()

        step("prefill", Prefill(0, (prompt,)), "main")
        step("generate", Generate(len(prompt), max_tokens=2), "main")
        step("close", Close(), "")
        self._counts = _Counts()


def _problem_of_part(part: np.ndarray, width: int, vocabulary: int) -> str:
    if part.ndim == 1:
        if len(part) and not (int(part.min()) >= 0 and int(part.max()) < vocabulary):
            return f"token ids must be 0 to {vocabulary - 1}, found {part.min()} to {part.max()}"
    elif part.shape[1] != width:
        return f"embeddings are {part.shape[1]} wide; the model's width is {width}"
    elif not np.isfinite(part).all():
        return "embeddings hold NaN or infinity"
    return ""


def _problem_of_probe(embedding: Matrix, width: int) -> str:
    if len(embedding) != 1:
        return f"a probe is 1 embedding, found {len(embedding)}"
    return _problem_of_part(embedding, width, 0)


def _never() -> bool:
    return False
