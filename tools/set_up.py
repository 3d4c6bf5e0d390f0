"""Make `.venv` and install MinMo into it: `python3 tools/set_up.py [--dev] [-- PIP_ARGUMENT...]`.

Uses the standard library alone. Run by `make`, which knows when there is something to do.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".installed"
DEV_STAMP = VENV / ".installed-dev"
PUBLISHED = ROOT / "tests" / "published.txt"

OLDEST, NEWEST = (3, 11), (3, 13)
_SHOWN = ("Collecting ", "Downloading ", "Building ", "Preparing ", "Installing ")
_TAIL_LINES = 25
_WIDTH = 78


class SetUpError(Exception):
    """Something is missing on this machine; the text says what, and what brings it."""


def check_machine() -> None:
    """Check what no package can bring. Raises SetUpError."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise SetUpError(
            f"this is Python {sys.version.split()[0]}: MinMo needs 3.{OLDEST[1]} to "
            f"3.{NEWEST[1]}; name one with `make PYTHON=python3.11 ...`"
        )
    installed = any(VENV.glob("lib/python*/site-packages/ttspico.py"))
    if installed:
        return
    # The Pico voice comes as source code.
    if not (shutil.which("cc") or shutil.which("gcc")):
        raise SetUpError(
            "there is no C compiler, which the Pico voice is built with; on Debian and Ubuntu: "
            "apt-get install gcc"
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise SetUpError(
            "Python's headers are missing, which the Pico voice is built with; on Debian and "
            f"Ubuntu: apt-get install python3.{sys.version_info[1]}-dev"
        )


def make_environment() -> None:
    """Make `.venv` if there is none of this Python's version. Raises SetUpError."""
    library = VENV / "lib" / f"python3.{sys.version_info[1]}"
    if (VENV / "bin" / "pip").exists() and library.is_dir():
        return
    print("environment: making .venv", flush=True)
    try:
        venv.create(VENV, clear=True, with_pip=True, symlinks=True)
    except subprocess.CalledProcessError:
        raise SetUpError(
            "Python cannot make a virtual environment with pip; on Debian and Ubuntu: apt-get "
            f"install python3.{sys.version_info[1]}-venv"
        ) from None


def install(*pip_arguments: str) -> None:
    """Run `pip install`, showing on a terminal what it is at. Raises SetUpError."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", *pip_arguments]
    began = time.monotonic()
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            tail.append(line)
            show(line.strip(), time.monotonic() - began)
    show("", 0)
    if pip.returncode != 0:
        raise SetUpError("pip could not install MinMo's packages:\n" + "".join(tail))


def show(line: str, seconds: float) -> None:
    """Show one line of pip's in place, on a terminal; an empty one wipes it."""
    if not sys.stdout.isatty() or (line and not line.startswith(_SHOWN)):
        return
    text = f"  {seconds:3.0f} s  {line}"[:_WIDTH] if line else ""
    print(f"\r{text:<{_WIDTH}}", end="" if line else "\r", flush=True)


def main() -> int:
    """Set up; return the exit status."""
    parser = argparse.ArgumentParser(description="Make .venv and install MinMo into it.")
    parser.add_argument("--dev", action="store_true", help="with what tests and checks need")
    parser.add_argument("pip_arguments", nargs="*", help="handed to pip, after --")
    options = parser.parse_args()
    try:
        check_machine()
        make_environment()
        print("packages: installing (a few minutes the first time)", flush=True)
        began = time.monotonic()
        install(*options.pip_arguments, "-e", ".[dev]" if options.dev else ".")
        if options.dev:
            install(*options.pip_arguments, "--no-deps", "-r", str(PUBLISHED))
        print(f"packages: installed in {time.monotonic() - began:.0f} s", flush=True)
    except SetUpError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    STAMP.touch()
    if options.dev:
        DEV_STAMP.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
