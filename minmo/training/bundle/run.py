"""Runs a plan's steps on the machine of the bundle: `./run.sh [--minutes M]`.

What is done is written down, so that a run that was cut goes on when it is started again. It uses
the standard library alone, so that it can say what is wrong where a package is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import IO, Any

from minmo.training.bundle import results

PLAN = "plan.json"
WORK = "work"
STATE, FIGURES, LOG = f"{WORK}/state.json", f"{WORK}/figures.json", f"{WORK}/run.log"
DONE, LIMITED, CUT, FAILED = "done", "limited", "cut", "failed"
EXIT_FAILED, EXIT_TIME_UP, EXIT_INTERRUPTED = 1, 3, 130
_PART_BYTES = 15_000_000
# Of the minutes, for writing the results down; and what a step gets to save its state in.
_RESERVED_SHARE, _RESERVED_MOST_S = 0.1, 60.0
_GRACE_S = 30.0
_MOST_WORKERS = 16


class Log:
    """Lines with the time of day, to a file and to standard output."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()

    def line(self, who: str, text: str) -> None:
        """Adds a line."""
        line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {who}: {text}"
        with self._lock:
            self._file.write(line + "\n")
            print(line, flush=True)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Run:
    """A plan's steps, one after the other.

    Args:
        root: the unpacked bundle.
        minutes: after which a step is stopped, or None; a bit less, so that the results are
            written in time.
        results_folder: where the results go.
    """

    def __init__(self, root: Path, minutes: float | None, results_folder: Path) -> None:
        self._root, self._results = root, results_folder
        self._plan: dict[str, Any] = json.loads((root / PLAN).read_text())
        self._log = Log(root / LOG)
        state = root / STATE
        self._state: dict[str, dict[str, Any]] = (
            json.loads(state.read_text()) if state.exists() else {}
        )
        seconds = None if minutes is None else 60 * minutes
        reserved = 0.0 if seconds is None else min(_RESERVED_SHARE * seconds, _RESERVED_MOST_S)
        self._end = None if seconds is None else time.monotonic() + seconds - reserved
        self._interrupted = threading.Event()

    def __call__(self) -> int:
        """Runs what has not been done; returns the exit status."""
        previous = {
            number: signal.signal(number, self._interrupt)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            status = self._steps()
            self._write_results()
            return status
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._log.close()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted.set()

    def _steps(self) -> int:
        for step in self._plan["steps"]:
            name = step["name"]
            known = self._state.setdefault(name, {"status": CUT, "seconds": 0.0})
            if known["status"] in {DONE, LIMITED}:
                self._log.line("run", f"{name} is {known['status']}")
                continue
            if self._left() <= 0:
                return self._time_is_up()
            self._log.line("run", f"{name} begins")
            known["status"] = self._run_step(step, known)
            self._save()
            self._log.line("run", f"{name}: {known['status']} after {known['seconds']:.0f} s")
            if self._interrupted.is_set():
                return EXIT_INTERRUPTED
            if known["status"] == CUT:
                return self._time_is_up()
            if known["status"] == FAILED and not step.get("optional"):
                self._log.line("run", f"stopped at {name}; mend it, then start again to go on")
                return EXIT_FAILED
        self._log.line("run", "every step is done")
        return 0

    def _time_is_up(self) -> int:
        self._log.line("run", "the time is up; start again to go on")
        return EXIT_TIME_UP

    def _left(self) -> float:
        return float("inf") if self._end is None else self._end - time.monotonic()

    def _run_step(self, step: Mapping[str, Any], known: dict[str, Any]) -> str:
        name = step["name"]
        limit = step.get("cut_after_minutes")
        of_step = float("inf") if limit is None else 60 * limit - known["seconds"]
        is_limited = of_step <= self._left()
        seconds = min(of_step, self._left())
        shown = self._root / WORK / "figures" / f"{name}.json"
        shown.parent.mkdir(parents=True, exist_ok=True)
        began, before = time.monotonic(), known["seconds"]
        command = self._command(step["command"])
        with shown.open("wb") as figures:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=figures if step.get("json") else subprocess.PIPE,
                stderr=subprocess.PIPE if step.get("json") else subprocess.STDOUT,
                cwd=self._root,
                env=self._environment(),
                start_new_session=True,
            )
            lines = process.stderr if step.get("json") else process.stdout
            assert lines is not None
            pump = threading.Thread(target=self._pump, args=(name, lines))
            pump.start()
            stopped = self._wait(process, began + seconds)
            pump.join(timeout=_GRACE_S)
        known["seconds"] = before + time.monotonic() - began
        if stopped:
            return LIMITED if is_limited and not self._interrupted.is_set() else CUT
        return DONE if process.returncode == 0 else FAILED

    def _wait(self, process: subprocess.Popen[bytes], until: float) -> bool:
        """Waits for a step's end, which it makes where the time is up; says whether it did."""
        while process.poll() is None:
            if time.monotonic() >= until or self._interrupted.is_set():
                for number in (signal.SIGINT, signal.SIGKILL):
                    try:
                        os.killpg(process.pid, number)
                        process.wait(_GRACE_S)
                        break
                    except subprocess.TimeoutExpired:
                        continue
                    except ProcessLookupError:
                        break
                process.wait()
                return True
            time.sleep(0.05)
        return False

    def _pump(self, name: str, lines: IO[bytes]) -> None:
        for line in lines:
            # A progress bar overwrites its line.
            text = line.decode(errors="replace").rstrip().rpartition("\r")[2]
            if text:
                self._log.line(name, text)

    def _command(self, command: list[str]) -> list[str]:
        cores = len(os.sched_getaffinity(0))
        values = {
            "{root}": str(self._root),
            "{work}": str(self._root / WORK),
            "{cores}": str(cores),
            "{workers}": str(min(max(cores - 2, 1), _MOST_WORKERS)),
        }
        filled = list(command)
        for name, value in values.items():
            filled = [one.replace(name, value) for one in filled]
        if filled[0] == "minmo":
            filled[:1] = [sys.executable, "-m", "minmo.cli.main"]
        elif filled[0] == "python":
            filled[0] = sys.executable
        return filled

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "MINMO_HOME": str(self._root / "home"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "COLUMNS": "160",
        }

    def _save(self) -> None:
        _write(self._root / STATE, self._state)

    def _write_results(self) -> None:
        self._save()
        figures: dict[str, Any] = {}
        for step in self._plan["steps"]:
            name = step["name"]
            figures[name] = dict(self._state.get(name, {"status": "not begun"}))
            if step.get("json"):
                figures[name]["figures"] = _read(self._root / WORK / "figures" / f"{name}.json")
        _write(self._root / FIGURES, {"machine": machine(), "steps": figures})
        patterns = [FIGURES, LOG, *self._plan["results"], *self._unfinished()]
        parts = results.split(self._root, patterns, self._results, _PART_BYTES)
        size = sum(part.stat().st_size for part in parts) / 1e6
        self._log.line("run", f"results: {len(parts)} parts, {size:.1f} MB, in {self._results}")

    def _unfinished(self) -> list[str]:
        """What else to bring home of a run that has not come to its end."""
        begun = [step["name"] for step in self._plan["steps"] if step["name"] in self._state]
        done = [name for name in begun if self._state[name]["status"] in {DONE, LIMITED}]
        if len(done) == len(self._plan["steps"]):
            return []
        for name in reversed(begun):
            patterns = [one.replace("{step}", name) for one in self._plan.get("unfinished", ())]
            if any(path for one in patterns for path in self._root.glob(one)):
                return patterns
        return []


def machine() -> dict[str, Any]:
    """What the run was made on."""
    try:
        torch = import_module("torch")
        gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        version = torch.__version__
    except ImportError as error:
        gpus, version = [], f"none ({error})"
    return {
        "python": sys.version.split()[0],
        "torch": str(version),
        "gpus": gpus,
        "cores": len(os.sched_getaffinity(0)),
    }


def check(root: Path) -> int:
    """Says what this machine is and whether every package of the bundle can be imported."""
    for key, value in machine().items():
        print(f"{key}: {value}")
    wrong = 0
    for name in json.loads((root / "about.json").read_text())["imports"]:
        try:
            version = getattr(import_module(name), "__version__", "")
            print(f"{name} {version}".rstrip())
        except Exception as error:
            wrong += 1
            print(f"{name} cannot be imported: {type(error).__name__}: {error}")
    return EXIT_FAILED if wrong else 0


def _write(path: Path, content: object) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="./run.sh", description="Makes speech, trains on it and measures what came of it."
    )
    parser.add_argument("root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--results", type=Path, help="folder of the results; ./results by default")
    parser.add_argument("--again", action="append", default=[], metavar="STEP", help="do it again")
    parser.add_argument("--check", action="store_true", help="only look at this machine")
    options = parser.parse_args(arguments)
    root: Path = options.root
    if options.check:
        return check(root)
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes:g}; it must be above 0")
    for step in options.again:
        _forget(root, step)
    folder = options.results.absolute() if options.results else root / "results"
    return Run(root, options.minutes, folder)()


def _forget(root: Path, step: str) -> None:
    state = _read(root / STATE) or {}
    state.pop(step, None)
    if (root / WORK).is_dir():
        _write(root / STATE, state)


if __name__ == "__main__":
    sys.exit(main())
