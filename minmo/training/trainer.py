"""The training loop: any stage, any number of processes, and it can be cut anywhere.

A run is a function of its configuration and its clips: each step has a seed of its own, and the
order of batches can go on from any place, so a run that was cut and goes on takes the steps that
it would have taken (where its schedule is by steps; the clock is never the same twice).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minmo.training import checkpoint
from minmo.training.batches import (
    Batch,
    Order,
    Position,
    Source,
    read_sources,
    read_valid,
    stream,
    valid_batches,
)
from minmo.training.checkpoint import RunState
from minmo.training.config import TrainingConfig
from minmo.training.curves import Curve
from minmo.training.ema import Mean
from minmo.training.errors import TrainingError
from minmo.training.initial import initial_weights
from minmo.training.optimizer import make_optimizer, trained_parameters
from minmo.training.run_folder import Resume, claim
from minmo.training.schedule import factor, progress
from minmo.training.shar import Clip
from minmo.training.signals import StopSignals
from minmo.training.stage import Stage, Trainee, Weights
from minmo.training.watch import Watch
from minmo.training.window import Window

CURVES = "curves"
# As accelerate calls them.
_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: the last one.
        figures: measured last, if it was.
        best: the best figure, or None.
        signal: number of the signal that ended it, or 0.
    """

    step: int
    figures: Mapping[str, float]
    best: float | None
    signal: int = 0


class _Clips(NamedTuple):
    """What is learned from, and what is measured on."""

    sources: list[Source]
    valid: list[Clip]


class _Losses(nn.Module):
    """Makes the losses the forward pass, which is what data-parallel training wraps."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        self.trainee = trainee

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.trainee.losses(batch)


def train(
    config: TrainingConfig, stage: Stage, run: Path, watch: Watch, *, resume: Resume = "auto"
) -> Outcome:
    """Trains until the schedule ends or a signal comes.

    Args:
        config: of the run.
        stage: what is trained.
        run: folder of checkpoints and curves.
        watch: shows what goes on.
        resume: `auto` goes on where the folder has a checkpoint, `must` refuses where it has none,
            `restart` removes what is there.

    Raises:
        TrainingError: the configuration, the data or the folder cannot be used, or the losses are
            no longer finite.
        WeightsError: weights are missing.
    """
    if not config.optimizer.learning_rates:
        raise TrainingError("optimizer.learning_rates names no module: nothing would be trained")
    if config.schedule.steps is None and config.schedule.minutes is None:
        raise TrainingError("the run would never end: give --minutes, or set schedule.steps")
    stage.check(config)
    clips = _Clips(read_sources(config.data), _valid_clips(config))
    with _threads(config):
        accelerator = _accelerator(config)
        try:
            if accelerator.is_main_process:
                claim(config, run, resume)
            accelerator.wait_for_everyone()
            with StopSignals() as signals:
                return _Run(config, stage, run, clips, watch, accelerator, signals).go()
        finally:
            accelerator.end_training()


class _Run:
    """One run, in one of its processes."""

    def __init__(
        self,
        config: TrainingConfig,
        stage: Stage,
        run: Path,
        clips: _Clips,
        watch: Watch,
        accelerator: Any,
        signals: StopSignals,
    ) -> None:
        self._config, self._run = config, run
        self._watch, self._accelerator, self._signals = watch, accelerator, signals
        self._valid = clips.valid
        self._order = Order(
            clips.sources, config.data, config.seed, ranks=accelerator.num_processes
        )
        found = checkpoint.latest(run)
        self._state = RunState() if found is None else checkpoint.read_state(found)
        weights: Weights = {}
        if found is not None:
            weights = checkpoint.read_weights(found)
        elif config.init is not None:
            weights = initial_weights(config.preset, Path(config.init).expanduser())
        torch.manual_seed(config.seed)
        self._model = stage.build(config, weights, clips.sources).to(accelerator.device)
        self._named = trained_parameters(self._model, config)
        self._parameters = list(self._named.values())
        self._optimizer, self._rates = make_optimizer(self._model, config)
        self._mean = Mean(self._parameters, config.optimizer.ema) if config.optimizer.ema else None
        losses = _Losses(self._model)
        self._losses, self._optimizer = accelerator.prepare(losses, self._optimizer)
        if found is not None:
            self._restore(found)
        self._position = self._start()
        self._began = time.monotonic() - self._state.seconds
        self._saved = self._validated = self._state.seconds
        self._curves: dict[str, Curve] = {}
        if self._main:
            self._curves = {
                name: Curve(run / CURVES / f"{name}.csv", self._state.step)
                for name in ("train", "valid")
            }
        self._window = Window()

    @property
    def _main(self) -> bool:
        return bool(self._accelerator.is_main_process)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def go(self) -> Outcome:
        """Takes steps until there is an end."""
        config, state = self._config, self._state
        if state.finished:
            self._watch.say(f"this run has ended at step {state.step}; --restart trains it again")
            return Outcome(state.step, state.figures, state.best)
        if state.step:
            self._watch.say(f"goes on from step {state.step}")
        batches = stream(
            self._order,
            self._position,
            config.data,
            config.augmentation,
            config.seed,
            rank=self._accelerator.process_index,
            clean=self._model.wants_clean,
        )
        self._model.train()
        done = progress(config.schedule, state.step, self._seconds)
        stopped = 0
        while done < 1 and not stopped:
            done, stopped = self._step(batches, factor(config.schedule, done))
            self._look(done)
        self._end(finished=done >= 1)
        return Outcome(self._state.step, self._state.figures, self._state.best, stopped)

    def _step(self, batches: Iterator[Batch], rate: float) -> tuple[float, int]:
        """One step of the optimizer; returns how far the run is and a signal that came."""
        config, accelerator = self._config, self._accelerator
        for group, base in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = base * rate
        # What a step draws does not depend on what was drawn before: a run can go on anywhere.
        torch.manual_seed(_step_seed(config.seed, self._state.step, accelerator.process_index))
        clips, hours = 0, 0.0
        loss_sum, norm = 0.0, math.nan
        for _ in range(config.optimizer.accumulate):
            batch = next(batches)
            if batch.next is not None:
                self._position = batch.next
            clips, hours = clips + len(batch.clips), hours + batch.seconds / 3600
            with accelerator.accumulate(self._losses):
                parts = self._losses(batch.to(accelerator.device))
                accelerator.backward(parts["loss"])
                if accelerator.sync_gradients:
                    clip = config.optimizer.clip
                    norm = float(accelerator.clip_grad_norm_(self._parameters, clip))
            loss_sum += float(parts["loss"].detach())
            self._window.add(parts)
        bad = not (math.isfinite(loss_sum) and math.isfinite(norm))
        done = progress(config.schedule, self._state.step + 1, self._seconds)
        bad, done, stopped = self._agree(bad, done)
        # Loss scaling learns from steps that overflow, and skips them itself.
        if not bad or accelerator.scaler is not None:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._mean is not None and not bad:
            self._mean.update()
        self._count(bad, clips * accelerator.num_processes, hours * accelerator.num_processes)
        self._window.end_step(norm, rate, clips, skipped=bad)
        return done, stopped

    def _agree(self, bad: bool, done: float) -> tuple[bool, float, int]:
        """What all processes hold true: the worst, the furthest, any signal."""
        stopped = self._signals.received
        if self._accelerator.num_processes == 1:
            return bad, done, stopped
        told = torch.tensor(
            [float(bad), done, float(stopped)],
            device=self._accelerator.device,
            dtype=torch.float64 if self._accelerator.device.type != "mps" else torch.float32,
        )
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        values = told.tolist()
        return bool(values[0]), values[1], int(values[2])

    def _count(self, bad: bool, clips: int, hours: float) -> None:
        state, most = self._state, self._config.optimizer.max_skipped
        row = state.skipped_in_row + 1 if bad else 0
        self._state = replace(
            state,
            step=state.step + 1,
            clips=state.clips + clips,
            hours=state.hours + hours,
            skipped=state.skipped + int(bad),
            skipped_in_row=row,
            figures={},
        )
        if row >= most:
            raise TrainingError(
                f"the loss or its gradient was not finite {row} steps in a row, up to step "
                f"{state.step + 1}; lower optimizer.learning_rates or look at the data: the last "
                f"checkpoint in {self._run} is from before"
            )

    def _look(self, done: float) -> None:
        """After a step: curves, what is shown, and what else is due."""
        if not self._main:
            return
        step, seconds, watch = self._state.step, self._seconds, self._config.watch
        if self._watch.due:
            left = seconds * (1 - done) / done if done else 0.0
            self._watch.step(step, done, left, self._window.latest())
        if step % watch.log_steps == 0:
            self._log()
        valid = _due(step, seconds - self._validated, watch.valid_steps, watch.valid_minutes)
        if valid and done < 1:
            self._validate()
        if _due(step, seconds - self._saved, watch.save_steps, watch.save_minutes) and done < 1:
            self._save()

    def _end(self, *, finished: bool) -> None:
        if not self._main:
            return
        self._state = replace(self._state, finished=finished)
        if finished:
            self._validate()
        path = self._save()
        self._watch.say(f"step {self._state.step}: checkpoint {path}")

    def _log(self) -> None:
        row = self._window.take()
        if row:
            state = self._state
            at = {"minutes": self._seconds / 60, "clips": float(state.clips), "hours": state.hours}
            self._curves["train"].add(state.step, {**at, **row, "skipped": float(state.skipped)})

    def _validate(self) -> None:
        if not self._valid:
            return
        config, began = self._config, time.monotonic()
        batches = valid_batches(
            self._valid, config.data, config.seed, clean=self._model.wants_clean
        )
        device = self._accelerator.device
        with self._averaged(), self._accelerator.autocast(), torch.no_grad():
            self._model.eval()
            figures = self._model.evaluate(batch.to(device) for batch in batches)
            self._model.train()
            self._state = replace(self._state, figures=figures)
            self._curves["valid"].add(self._state.step, {"minutes": self._seconds / 60, **figures})
            value = figures[self._model.best]
            if math.isfinite(value) and (self._state.best is None or value < self._state.best):
                self._state = replace(self._state, best=value)
                model = self._tensors()
                checkpoint.write_checkpoint(self._run, "best", self._now(), model, keep=1)
        self._validated = self._seconds
        shown = "  ".join(f"{name} {figure:.4g}" for name, figure in figures.items())
        took = time.monotonic() - began
        self._watch.say(f"step {self._state.step}: valid  {shown}  ({took:.1f} s)")

    def _save(self) -> Path:
        self._log()
        optimizer = {"optimizer": self._optimizer.state_dict()}
        if self._accelerator.scaler is not None:
            optimizer["scaler"] = self._accelerator.scaler.state_dict()
        means = None
        if self._mean is not None:
            means = dict(zip(self._named, self._mean.values, strict=True))
        path = checkpoint.write_checkpoint(
            self._run,
            "step",
            self._now(),
            self._tensors(),
            ema=means,
            optimizer=optimizer,
            keep=self._config.watch.keep,
        )
        self._saved = self._seconds
        return path

    def _now(self) -> RunState:
        return replace(
            self._state,
            seconds=self._seconds,
            position=self._position.to_json(),
            fingerprint=self._order.fingerprint,
            ema_updates=0 if self._mean is None else self._mean.updates,
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{module}.{name}": tensor
            for module, kept in self._model.kept().items()
            for name, tensor in kept.state_dict().items()
        }

    def _averaged(self) -> Any:
        return nullcontext() if self._mean is None else self._mean.in_place()

    def _restore(self, found: Path) -> None:
        saved = checkpoint.read_optimizer(found)
        self._optimizer.load_state_dict(saved["optimizer"])
        self._check_sizes(found)
        if self._accelerator.scaler is not None and "scaler" in saved:
            self._accelerator.scaler.load_state_dict(saved["scaler"])
        means = checkpoint.read_means(found)
        if self._mean is not None and means is not None:
            self._mean.restore([means[name] for name in self._named], self._state.ema_updates)

    def _check_sizes(self, found: Path) -> None:
        """Refuses a checkpoint of other sizes, as where clips of more speakers have come."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                kept = self._optimizer.state.get(parameter, {})
                mean = kept.get("exp_avg", kept.get("momentum_buffer"))
                if mean is not None and mean.shape != parameter.shape:
                    raise TrainingError(
                        f"checkpoint {found} is of other sizes, or of fewer speakers; begin a new "
                        f"run with --init {self._run}"
                    )

    def _start(self) -> Position:
        state = self._state
        if state.position is None:
            return self._order.start
        position = Position.from_json(state.position)
        if state.fingerprint == self._order.fingerprint:
            return position
        self._watch.say("the clips are others than at the last checkpoint: they are shuffled anew")
        return self._order.after_a_change(position)


@contextmanager
def _threads(config: TrainingConfig) -> Iterator[None]:
    """The threads of the run, which leave the process as it was."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or cores or 1)
    # Numbers next to zero take a processor a hundred times longer.
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def _accelerator(config: TrainingConfig) -> Any:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise TrainingError("training needs accelerate: pip install 'minmo[train]'") from error
    # It is the process's, and its precision that of the first run: a voice has several, one by one.
    AcceleratorState._reset_state()
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    return Accelerator(
        mixed_precision=_PRECISIONS[config.precision],
        gradient_accumulation_steps=config.optimizer.accumulate,
        kwargs_handlers=[parallel],
    )


def _valid_clips(config: TrainingConfig) -> list[Clip]:
    """Clips to measure on; none where nothing is to be measured."""
    watch = config.watch
    never = watch.valid_steps is None and watch.valid_minutes is None
    return [] if never else read_valid(config.data)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + rank


def _due(step: int, seconds: float, steps: int | None, minutes: float | None) -> bool:
    by_steps = steps is not None and step % steps == 0
    return by_steps or (minutes is not None and seconds >= 60 * minutes)
