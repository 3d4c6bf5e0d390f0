"""The training loop: what is repeatable is repeated, what was cut goes on."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from minmo.training import checkpoint
from minmo.training.config import TrainingConfig
from minmo.training.curves import Curve, read_curve
from minmo.training.ema import Mean
from minmo.training.errors import TrainingError
from minmo.training.initial import initial_weights
from minmo.training.trainer import Outcome, train
from tests.unit.tiny_training import ToyStage, ToyTrainee, silent, toy_config, write_shard


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    write_shard(folder, "train.0000", 20)
    write_shard(folder, "valid.0000", 5)
    return folder


def run(
    config: TrainingConfig, folder: Path, stage: ToyStage | None = None, resume: Any = "auto"
) -> Outcome:
    return train(config, stage or ToyStage(), folder, silent(), resume=resume)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_curve(folder / "curves" / "train.csv")]


def weights(folder: Path) -> torch.Tensor:
    path = checkpoint.latest(folder)
    assert path is not None
    return checkpoint.read_weights(path)["net"]["0.weight"]


def interrupt(call: int, number: int = signal.SIGTERM) -> ToyStage:
    """A stage that is told to stop while it computes its n-th batch."""

    def hook(now: int) -> None:
        if now == call:
            os.kill(os.getpid(), number)

    return ToyStage(hook)


def test_a_seed_gives_the_same_run_and_another_seed_another(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        outcome = run(toy_config(data, seed=seed), tmp_path / name)
        assert outcome.step == 12
    assert len(losses(tmp_path / "a")) == 12
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize(("number", "accumulate"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_run_that_was_cut_takes_the_steps_that_it_would_have_taken(
    data: Path, tmp_path: Path, number: int, accumulate: int
) -> None:
    config = toy_config(
        data,
        optimizer__ema=0.9,
        optimizer__accumulate=accumulate,
        watch__valid_steps=3,
        augmentation__clean=0.0,
    )
    run(config, tmp_path / "whole")
    before = signal.getsignal(number)
    outcome = run(config, tmp_path / "cut", interrupt(4 * accumulate, number))
    assert (outcome.step, outcome.signal) == (5, number)
    assert signal.getsignal(number) == before
    assert run(config, tmp_path / "cut", interrupt(2 * accumulate)).step == 8
    outcome = run(config, tmp_path / "cut", resume="must")
    assert (outcome.step, outcome.signal) == (12, 0)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert torch.equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    means = [checkpoint.trained_weights(tmp_path / name) for name in ("cut", "whole")]
    assert torch.equal(means[0]["net"]["0.weight"], means[1]["net"]["0.weight"])
    assert not torch.equal(means[0]["net"]["0.weight"], weights(tmp_path / "cut"))


def test_a_signal_to_the_whole_group_ends_a_run_with_a_checkpoint(
    data: Path, tmp_path: Path
) -> None:
    def hook(now: int) -> None:
        if now == 4:
            for worker in multiprocessing.active_children():
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGTERM)
                # Without end if it lives, which is what it should do.
                worker.join(0.2)
                assert worker.is_alive()
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = run(toy_config(data, data__workers=1), tmp_path, ToyStage(hook))
    assert (outcome.step, outcome.signal) == (5, signal.SIGTERM)
    assert checkpoint.latest(tmp_path) is not None


def test_a_run_does_not_go_on_with_weights_of_another_size(data: Path, tmp_path: Path) -> None:
    class Grown(ToyStage):
        def build(self, *arguments: Any) -> ToyTrainee:
            built = super().build(*arguments)
            built.net[0] = nn.Linear(3, 9)
            return built

    assert run(toy_config(data), tmp_path, interrupt(4)).signal
    with pytest.raises(TrainingError, match=r"of fewer speakers; begin a new run with --init"):
        run(toy_config(data), tmp_path, Grown())


def test_it_learns_and_moves_only_what_has_a_learning_rate(data: Path, tmp_path: Path) -> None:
    stage = ToyStage()
    config = toy_config(
        data,
        schedule__steps=40,
        schedule__warmup=0.0,
        watch__valid_steps=1,
        augmentation__clean=1.0,
        augmentation__speed=0.0,
        data__silence=[0.0, 0.0],
        optimizer__learning_rates={"net": 0.03},
    )
    run(config, tmp_path, stage)
    errors = [row["error"] for row in read_curve(tmp_path / "curves" / "valid.csv")]
    assert errors[-1] < 0.5 * errors[0]
    assert stage.built is not None
    assert not any(one.requires_grad for one in stage.built.other.parameters())
    torch.manual_seed(3)
    assert torch.equal(
        stage.built.other.weight, ToyStage().build(toy_config(data), {}, []).other.weight
    )


def test_the_best_is_kept_and_later_runs_begin_with_it(data: Path, tmp_path: Path) -> None:
    # After the third measurement it is driven away from what was right.
    config = toy_config(
        data,
        schedule__steps=40,
        schedule__decay="constant",
        schedule__warmup=0.0,
        watch__valid_steps=10,
    )
    stage = ToyStage(lambda call: -1.0 if call >= 20 else 1.0)
    outcome = run(config, tmp_path, stage)
    measured = {row["step"]: row["error"] for row in read_curve(tmp_path / "curves" / "valid.csv")}
    assert list(measured) == [10, 20, 30, 40]
    best = min(measured, key=lambda step: measured[step])
    assert best < 40
    assert outcome.best == pytest.approx(measured[best])
    folder = checkpoint.best(tmp_path)
    assert folder is not None
    assert folder.name == f"best-{int(best):08d}"
    begun = initial_weights("mini", tmp_path)
    assert torch.equal(begun["net"]["0.weight"], checkpoint.read_weights(folder)["net"]["0.weight"])


def test_only_the_last_checkpoints_are_kept_and_none_is_half_written(
    data: Path, tmp_path: Path
) -> None:
    run(toy_config(data, watch__save_steps=2), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000012"]
    files = sorted(path.name for path in (tmp_path / "checkpoints" / names[1]).iterdir())
    assert files == ["model.safetensors", "optimizer.pt", "state.json"]


def test_a_checkpoint_that_was_being_written_does_not_count(data: Path, tmp_path: Path) -> None:
    run(toy_config(data), tmp_path)
    (tmp_path / "checkpoints" / ".new-step-00000099").mkdir()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.name == "step-00000012"


def test_a_damaged_checkpoint_is_refused_with_what_to_do(data: Path, tmp_path: Path) -> None:
    run(toy_config(data), tmp_path, interrupt(3))
    found = checkpoint.latest(tmp_path)
    assert found is not None
    for name in ("model.safetensors", "optimizer.pt", "state.json"):
        whole = (found / name).read_bytes()
        (found / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(TrainingError, match=r"is damaged .*delete it, and the run goes on"):
            run(toy_config(data), tmp_path)
        (found / name).write_bytes(whole)
    assert run(toy_config(data), tmp_path).step == 12


def test_another_configuration_is_refused_unless_the_run_begins_anew(
    data: Path, tmp_path: Path
) -> None:
    run(toy_config(data), tmp_path)
    assert run(toy_config(data, watch__keep=5), tmp_path).step == 12
    changed = toy_config(data, optimizer__clip=0.5, schedule__steps=3)
    with pytest.raises(TrainingError, match=r"optimizer.clip: 1.0 -> 0.5; schedule.steps: 12 -> 3"):
        run(changed, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert run(changed, tmp_path, resume="restart").step == 3
    assert len(losses(tmp_path)) == 3
    assert (tmp_path / "notes.txt").exists()


def test_there_must_be_something_to_go_on_from(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint to go on from"):
        run(toy_config(data), tmp_path, resume="must")


def test_more_clips_than_before_are_shuffled_anew(tmp_path: Path) -> None:
    data, out = tmp_path / "speech", tmp_path / "run"
    write_shard(data, "train.0000", 10)
    run(toy_config(data), out, interrupt(3))
    write_shard(data, "train.0001", 10)
    assert run(toy_config(data), out).step == 12
    assert len(losses(out)) == 12


def test_steps_that_are_not_finite_are_skipped_and_counted(data: Path, tmp_path: Path) -> None:
    stage = ToyStage(lambda call: math.nan if call in (2, 3, 7) else None)
    assert run(toy_config(data), tmp_path, stage).step == 12
    rows = read_curve(tmp_path / "curves" / "train.csv")
    assert [row["skipped"] for row in rows][:9] == [0, 0, 1, 2, 2, 2, 2, 3, 3]
    assert weights(tmp_path).isfinite().all()
    state = json.loads((tmp_path / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert (state["skipped"], state["skipped_in_row"], state["finished"]) == (3, 0, True)


def test_too_many_in_a_row_end_the_run(data: Path, tmp_path: Path) -> None:
    stage = ToyStage(lambda call: math.inf if call >= 4 else None)
    with pytest.raises(TrainingError, match="not finite 3 steps in a row, up to step 7"):
        run(toy_config(data, optimizer__max_skipped=3, watch__save_steps=4), tmp_path, stage)
    assert weights(tmp_path).isfinite().all()


def test_minutes_end_a_run_and_bring_the_learning_rate_down(data: Path, tmp_path: Path) -> None:
    config = toy_config(
        data,
        schedule__steps=None,
        schedule__minutes=0.01,
        schedule__decay="linear",
        schedule__warmup=0.0,
    )
    began = time.monotonic()
    run(config, tmp_path, ToyStage(lambda call: time.sleep(0.02)))
    assert 0.6 <= time.monotonic() - began < 6
    rates = [row["learning_rate_factor"] for row in read_curve(tmp_path / "curves" / "train.csv")]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.8
    assert rates[-1] < 0.2


def test_what_would_train_nothing_or_never_end_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="names no module"):
        run(toy_config(data, optimizer__learning_rates={}), tmp_path)
    with pytest.raises(TrainingError, match=r"'nett', which this stage does not train; .*net"):
        run(toy_config(data, optimizer__learning_rates={"nett": 0.1}), tmp_path)
    with pytest.raises(TrainingError, match="would never end"):
        run(toy_config(data, schedule__steps=None), tmp_path)
    with pytest.raises(TrainingError, match="has no weights"):
        run(toy_config(data, init=str(tmp_path)), tmp_path)


def test_matrices_decay_and_biases_do_not(data: Path, tmp_path: Path) -> None:
    run(toy_config(data), tmp_path)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    groups = checkpoint.read_optimizer(found)["optimizer"]["param_groups"]
    assert [(len(one["params"]), one["weight_decay"]) for one in groups] == [(2, 0.01), (2, 0.0)]


def test_a_mean_follows_slowly_and_gives_the_weights_back() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    mean = Mean([parameter], 0.5)
    with torch.no_grad():
        parameter.fill_(1.0)
    mean.update()
    assert float(mean.values[0]) == pytest.approx(10 / 11)
    for _ in range(30):
        mean.update()
    assert float(mean.values[0]) == pytest.approx(1)
    with torch.no_grad():
        parameter.fill_(3.0)
    with mean.in_place():
        assert float(parameter.detach()) == pytest.approx(1)
    assert float(parameter.detach()) == 3


def test_a_curve_goes_on_from_a_step_and_takes_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "curves" / "train.csv"
    curve = Curve(path, 0)
    for step in (1, 2, 3):
        curve.add(step, {"loss": step / 3})
    with path.open("a") as file:
        file.write("4")
    curve = Curve(path, 2)
    curve.add(3, {"loss": 0.5, "other": 1e-9})
    assert path.read_text().splitlines() == [
        "step,loss,other",
        "1,0.3333333,",
        "2,0.6666667,",
        "3,0.5,1e-09",
    ]
    assert read_curve(path)[0] == {"step": 1, "loss": 0.3333333}
