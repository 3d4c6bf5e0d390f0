"""What is checked before the work begins, so that it is not done in vain."""

from __future__ import annotations

import os
from pathlib import Path

from minmo.cli.errors import InputError

AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus")


def check_rate(rate_hz: int) -> None:
    """Raises InputError if the server does not know the rate."""
    from minmo.audio.pcm import SAMPLE_RATES_HZ

    if rate_hz not in SAMPLE_RATES_HZ:
        rates = ", ".join(str(rate) for rate in SAMPLE_RATES_HZ)
        raise InputError(f"--rate is {rate_hz} Hz: it must be one of {rates}")


def check_picture(path: Path) -> None:
    """Raises InputError if no picture can be written to `path`."""
    from minmo import pictures

    check_output(path, pictures.ENDINGS)
    try:
        pictures.check(path)
    except ValueError as error:
        raise InputError(str(error)) from error


def check_output(path: Path, endings: tuple[str, ...] = AUDIO_ENDINGS) -> None:
    """Raises InputError if `path` cannot be written, or its ending is not known."""
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"{path}: its name must end in {', '.join(endings)}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{path}: there is no folder {folder}; make it first")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"{path} cannot be written")
