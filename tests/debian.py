"""Programs that tests need and Debian packages: taken from PATH, or from the package.

Tests run in several processes, and apt serves one of them at a time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from minmo.weights import home

_SECONDS = 300


def program(names: Sequence[str], package: str) -> Path | None:
    """Where one of some programs is; Debian's package is installed if none is and this is root."""
    found = _in_path(names)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with _apt_for_us_alone():
            # Another process may have been faster.
            if _in_path(names) is None:
                _apt("update")
                _apt("install", "-y", "--no-install-recommends", package)
        found = _in_path(names)
    return found


def unpacked(package: str) -> Path | None:
    """A folder with the files of Debian's package, unpacked once and not installed, so that no
    server starts; None where there is no apt.
    """
    folder = home.home() / "tools" / package
    if folder.is_dir():
        return folder
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    with _apt_for_us_alone():
        if not folder.is_dir():
            made = folder.with_name(f".{package}.{os.getpid()}")
            made.mkdir(parents=True)
            try:
                if os.geteuid() == 0:
                    _apt("update")
                _apt("download", package, folder=made)
                for file in made.glob(f"{package}_*.deb"):
                    _run(["dpkg-deb", "-x", str(file), "unpacked"], made)
                    (made / "unpacked").rename(folder)
            finally:
                shutil.rmtree(made)
    return folder if folder.is_dir() else None


def _in_path(names: Sequence[str]) -> Path | None:
    places = (shutil.which(name) for name in names)
    return next((Path(place) for place in places if place), None)


@contextmanager
def _apt_for_us_alone() -> Iterator[None]:
    home.home().mkdir(parents=True, exist_ok=True)
    with FileLock(home.home() / "apt.lock", timeout=4 * _SECONDS):
        yield


def _apt(*arguments: str, folder: Path | None = None) -> None:
    _run(["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *arguments], folder)


def _run(command: list[str], folder: Path | None) -> None:
    subprocess.run(
        command,
        cwd=folder,
        check=False,
        capture_output=True,
        timeout=_SECONDS,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
