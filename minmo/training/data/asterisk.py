"""Debian's telephone prompts: a person's voice with transcripts, for evaluation.

568 recordings of the Asterisk project at 16 kHz, CC BY-SA 3.0, out of two packages that apt
fetches; nothing is installed.
"""

from __future__ import annotations

import base64
import gzip
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minmo.audio.pcm import AudioError, Samples
from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.training.data.errors import DataError
from minmo.training.data.recordings import Recorded
from minmo.training.data.tools import Conversation

NAME = "asterisk"

_PACKAGES = ("asterisk-core-sounds-en-g722", "asterisk-core-sounds-en")
_PROGRAMS = ("apt-get", "dpkg-deb")
_DEADLINE_SECONDS = 300.0
_SPEAKER = "prompts"
# Of what is heard beside the words, or of the sign that a word stands for.
_REMARK = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")


@contextmanager
def unpacked_prompts(say: Callable[[str], None]) -> Iterator[Path]:
    """Gives a folder with the files of the packages, for as long as it is used.

    Args:
        say: hears what is done.

    Raises:
        DataError: this is no Debian, or apt cannot fetch them.
    """
    if missing := [program for program in _PROGRAMS if shutil.which(program) is None]:
        raise DataError(
            f"there is no {missing[0]} here, which fetches the prompts: run this on Debian or "
            "Ubuntu, and bring the shards"
        )
    with tempfile.TemporaryDirectory(prefix="minmo-prompts-") as name:
        folder = Path(name)
        say(f"fetching {' and '.join(_PACKAGES)}")
        # In a folder that apt's own user may enter, it fetches as that user.
        folder.chmod(0o755)
        _run(["apt-get", "download", "-q", *_PACKAGES], folder)
        for package in sorted(folder.glob("*.deb")):
            _run(["dpkg-deb", "-x", package.name, "files"], folder)
        yield folder / "files"


def prompts_of(files: Path) -> list[Recorded]:
    """The recordings with words among the packages' files.

    Raises:
        DataError: the files are not those of the packages.
    """
    lists = sorted(files.rglob("core-sounds-en.txt*"))
    if not lists:
        raise DataError("the packages hold no list of transcripts, core-sounds-en.txt")
    texts = transcripts(_read(lists[0]))
    found = []
    for path in sorted(files.rglob("*.g722")):
        name = _name_of(path)
        if text := texts.get(name):
            found.append(Recorded(name.replace("/", "-"), path, text, "test", _SPEAKER))
    return found


def transcripts(content: str) -> dict[str, str]:
    """What is said in which prompt, from lines of `name: text`; what is no word is left out."""
    found = {}
    for line in content.splitlines():
        name, separator, text = line.partition(":")
        text = " ".join(_REMARK.sub(" ", text).split())
        if separator and text and not line.startswith(";"):
            found[name.strip()] = text
    return found


class PromptReader:
    """Reads files of G.722 with a running decoder."""

    def __init__(self, decoder: Conversation) -> None:
        self._decoder = decoder

    def __call__(self, path: Path) -> tuple[Samples, int]:
        """`[samples]` of a file, and their rate in Hz.

        Raises:
            AudioError: there is no sound in it.
        """
        pcm = base64.b64decode(self._decoder.ask({"path": str(path)})["pcm"])
        if not pcm:
            raise AudioError("file", path, "it must be G.722")
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768)
        return samples, LISTENING_RATE_HZ


def _name_of(path: Path) -> str:
    """A prompt's name in the list: its path below the folder of the language."""
    parts = path.with_suffix("").parts
    languages = [number for number, part in enumerate(parts) if part.startswith("en")]
    return "/".join(parts[languages[-1] + 1 :] if languages else parts[-1:])


def _read(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"`{' '.join(command)}` took longer than {_DEADLINE_SECONDS:.0f} s; is this machine "
            "online?"
        ) from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise DataError(
            f"`{' '.join(command)}` failed: {said[-1] if said else done.returncode}; is this "
            "machine online, and has `apt-get update` been run?"
        )
