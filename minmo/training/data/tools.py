"""Programs that data is made with and that are no part of MinMo, each in an environment of its own.

They are asked through pipes, one JSON object a line each way, and share nothing with this process:
neither their licences nor the versions of what they need touch MinMo.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from minmo.training.data.errors import DataError
from minmo.weights import home
from minmo.weights.prepare import alone
from minmo.weights.progress import NoProgress

_INSTALL_SECONDS = 900.0
_SCRIPTS = Path(__file__).parent / "tool_scripts"
_LAST_LINES = 4


@dataclass(frozen=True)
class Tool:
    """A program in an environment of its own.

    Attributes:
        name: of its folder.
        requirements: what pip installs, with versions.
        script: in `tool_scripts`, run by the environment's Python.
        purpose: what it is for, and its licence, as told to who waits for it.
    """

    name: str
    requirements: tuple[str, ...]
    script: str
    purpose: str

    @property
    def folder(self) -> Path:
        """Of its environment; another version has another one."""
        versions = "-".join(requirement.replace("==", "-") for requirement in self.requirements)
        return home.home() / "speech-tools" / versions


PHONEMES = Tool(
    "piper",
    ("piper-tts==1.8.0",),
    "phonemes.py",
    "text to phonemes (piper-tts, GPL-3.0, run as a program of its own)",
)
WHISPER = Tool(
    "whisper",
    ("faster-whisper==1.2.1",),
    "whisper.py",
    "a second recogniser (faster-whisper, MIT)",
)
DECODER = Tool("av", ("av==18.1.0",), "decode.py", "decoding of G.722 (PyAV, BSD, with FFmpeg)")


def installed(tool: Tool, say: Callable[[str], None]) -> Path:
    """Returns the Python of a tool's environment; makes it where there is none.

    Args:
        tool: that is needed.
        say: hears what is done.

    Raises:
        DataError: pip is missing or cannot install it.
    """
    python = tool.folder / "bin/python"
    if python.exists():
        return python
    with alone(NoProgress()):
        if not python.exists():
            say(f"installing {' and '.join(tool.requirements)} for {tool.purpose} in {tool.folder}")
            _install(tool)
    return python


def _install(tool: Tool) -> None:
    if find_spec("pip") is None:
        raise DataError(
            f"the environment of {sys.executable} has no pip, which installs {tool.requirements[0]}"
            "; add it with `uv pip install pip` or `python -m ensurepip`"
        )
    unfinished = tool.folder.with_name(f".{tool.folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    venv.EnvBuilder(with_pip=False, symlinks=True).create(unfinished)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    target = ["--python", str(unfinished / "bin/python")]
    try:
        done = subprocess.run(
            [*pip, *target, "install", "-q", *tool.requirements],
            check=False,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"pip has not installed {tool.requirements[0]} in {_INSTALL_SECONDS:.0f} s; is this "
            "machine online? Run it again"
        ) from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line and "WARNING" not in line]
        raise DataError(
            f"pip cannot install {tool.requirements[0]} ({tool.purpose}); is this machine online?\n"
            + "\n".join(said[-_LAST_LINES:])
        )
    unfinished.rename(tool.folder)


class Conversation:
    """A running tool that answers one question after the other; use it as a context manager.

    Args:
        tool: what runs, for messages.
        python: of its environment.
        arguments: of its script.
    """

    def __init__(self, tool: Tool, python: Path, *arguments: str) -> None:
        self._tool = tool
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            # Isolated: the environment and this folder's modules are none of its business.
            [str(python), "-I", str(_SCRIPTS / tool.script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            # Ctrl-C is for the command, which then ends the tool.
            start_new_session=True,
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            DataError: the tool has died, or says what is no answer.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            raise DataError(
                f"{self._tool.requirements[0]} failed: {self._last_words()}; to install it again, "
                f"delete {self._tool.folder}"
            ) from None
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except OSError:
                # It died with a question in the pipe.
                self._process.kill()
        if kind is not None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _last_words(self) -> str:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return " / ".join(lines[-_LAST_LINES:]) or f"status {self._process.returncode}"
