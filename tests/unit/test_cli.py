"""The command line: help at once, and one line that says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from minmo.stack.ports import PortReservation

ROOT = Path(__file__).parent.parent.parent
COMMANDS = [
    "",
    "serve",
    "talk",
    "say",
    "transcribe",
    "weights",
    "sessions",
    "sessions list",
    "sessions show",
    "sessions delete",
    "bench",
    "bench latency",
    "bench llm",
    "bench load",
]


def minmo(home: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "minmo.cli.main", *arguments],
        check=False,
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MINMO_HOME": str(home), "COLUMNS": "200"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(tmp_path: Path, command: str) -> None:
    done = minmo(tmp_path, *command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert f"Example: minmo {command}".strip() in done.stdout


def test_help_comes_at_once(tmp_path: Path) -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        minmo(tmp_path, "--help")
        times.append(time.perf_counter() - began)
    # 0.3 s on an idle machine: what this notices is a heavy import.
    assert min(times) < 1.0


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys, minmo.cli.main; "
        "print([name for name in ('torch', 'grpc', 'numpy', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(tmp_path / "noise.wav", noise, 16_000)
    (tmp_path / "text.wav").write_text("this is not sound")
    return tmp_path


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens."""
    reservation = PortReservation()
    yield reservation.address
    reservation.close()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("talk missing.wav --out a.wav", 2, "there is no file missing.wav"),
        ("talk text.wav --out a.wav", 2, "cannot be read as audio"),
        ("talk empty.wav --out a.wav", 2, "it has 0 samples"),
        ("talk silent.wav --out a.wav", 3, "nothing was said in silent.wav"),
        ("talk noise.wav --out a.mp3", 2, "its name must end in .wav, .flac, .ogg, .opus"),
        ("talk noise.wav --out no/a.wav", 2, "there is no folder"),
        ("talk noise.wav --out a.wav --report a.txt", 2, "its name must end in .json"),
        ("talk noise.wav --out a.wav --rate 1234", 2, "--rate is 1234 Hz: it must be one of 8000"),
        ("talk noise.wav --out a.wav --address NOBODY", 1, "the server says UNAVAILABLE"),
        ("transcribe missing.wav", 2, "there is no file missing.wav"),
        ("transcribe noise.wav --address NOBODY", 1, "the server says UNAVAILABLE"),
        ("say - --out a.wav", 2, "there is no text to say"),
        ("say hello --out a.wav --address NOBODY", 1, "the server says UNAVAILABLE"),
        ("sessions list", 1, "no server runs here: start one with `minmo serve`"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    sounds: Path, nobody: str, arguments: str, status: int, message: str
) -> None:
    done = minmo(sounds, *arguments.replace("NOBODY", nobody).split())
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.startswith("minmo: ")
    assert done.stderr.count("\n") == 1
    assert not (sounds / "a.wav").exists()


def test_debug_shows_where_an_error_came_from(sounds: Path) -> None:
    done = minmo(sounds, "--debug", "talk", "missing.wav", "--out", "a.wav")
    assert "Traceback" in done.stderr
    assert "RecordingError" in done.stderr


def test_an_unknown_option_is_wrong_usage(tmp_path: Path) -> None:
    done = minmo(tmp_path, "serve", "--prot", "7100")
    assert done.returncode == 2
    assert "--prot" in done.stderr
    assert "Traceback" not in done.stderr
