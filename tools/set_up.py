"""Make `.venv` and install MinMo into it: `python3 tools/set_up.py [--dev] [-- PIP_ARGUMENT...]`.

With `--clients` it makes `.venv-clients` instead: the clients that others published, which the
tests talk with. They ask for other versions of what MinMo uses, so they live apart.

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
CLIENTS_VENV = ROOT / ".venv-clients"
CLIENTS_STAMP = CLIENTS_VENV / ".installed"
CLIENTS = ROOT / "tests" / "system" / "clients" / "requirements.txt"

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


def make_environment(folder: Path) -> None:
    """Make an environment if there is none of this Python's version. Raises SetUpError."""
    library = folder / "lib" / f"python3.{sys.version_info[1]}"
    if (folder / "bin" / "pip").exists() and library.is_dir():
        return
    print(f"environment: making {folder.name}", flush=True)
    try:
        venv.create(folder, clear=True, with_pip=True, symlinks=True)
    except subprocess.CalledProcessError:
        raise SetUpError(
            "Python cannot make a virtual environment with pip; on Debian and Ubuntu: apt-get "
            f"install python3.{sys.version_info[1]}-venv"
        ) from None


def install(folder: Path, *pip_arguments: str) -> None:
    """Run an environment's `pip install`, showing on a terminal what it is at.

    Raises:
        SetUpError: pip failed; the text has the end of what it said.
    """
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--progress-bar", "off"]
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


def set_up(pip_arguments: list[str], *, dev: bool) -> None:
    """Make `.venv` and install MinMo into it. Raises SetUpError."""
    make_environment(VENV)
    print("packages: installing (a few minutes the first time)", flush=True)
    began = time.monotonic()
    install(VENV, *pip_arguments, "-e", ".[dev]" if dev else ".")
    if dev:
        install(VENV, *pip_arguments, "--no-deps", "-r", str(PUBLISHED))
    print(f"packages: installed in {time.monotonic() - began:.0f} s", flush=True)
    STAMP.touch()
    if dev:
        DEV_STAMP.touch()


def set_up_clients(pip_arguments: list[str]) -> None:
    """Make `.venv-clients` and install the clients into it. Raises SetUpError."""
    make_environment(CLIENTS_VENV)
    print(
        "clients: installing those of OpenAI, LiveKit and Pipecat into .venv-clients, which the "
        "tests talk with (about a minute, once)",
        flush=True,
    )
    began = time.monotonic()
    install(CLIENTS_VENV, *pip_arguments, "--no-deps", "--no-compile", "-r", str(CLIENTS))
    print(f"clients: installed in {time.monotonic() - began:.0f} s", flush=True)
    CLIENTS_STAMP.touch()


def main() -> int:
    """Set up; return the exit status."""
    parser = argparse.ArgumentParser(description="Make .venv and install MinMo into it.")
    parser.add_argument("--dev", action="store_true", help="with what tests and checks need")
    parser.add_argument(
        "--clients", action="store_true", help="only .venv-clients, for the tests with clients"
    )
    parser.add_argument("pip_arguments", nargs="*", help="handed to pip, after --")
    options = parser.parse_args()
    try:
        check_machine()
        if options.clients:
            set_up_clients(options.pip_arguments)
        else:
            set_up(options.pip_arguments, dev=options.dev)
    except SetUpError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
