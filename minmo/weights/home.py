"""Where MinMo keeps what it downloads and prepares: `MINMO_HOME`, `~/.cache/minmo` by default."""

import os
from pathlib import Path

SHARED_FOLDER = {"recognizer": "voice_encoder"}
"""Modules that may lie in the folder of another, as the other half of a published checkpoint."""


ALIGNED = "aligned"
"""Beside the folders of a preset's modules: those that were trained together to listen."""

VOICE = "voice"
"""Beside the folders of a preset's modules: those that were trained together to speak."""

SPEAKERS = "speakers"
"""Beside the folders of a preset's modules: a file for each voice that it can speak with."""


def home() -> Path:
    """Return MinMo's cache folder: `MINMO_HOME` where it is set, else `~/.cache/minmo`."""
    return Path(os.environ.get("MINMO_HOME") or "~/.cache/minmo").expanduser().absolute()


def downloads() -> Path:
    """Return the folder of package archives, whole or in part."""
    return home() / "downloads"


def module_folder(preset: str, module: str) -> Path:
    """Return the folder of one module's prepared weights; it need not exist."""
    return home() / "weights" / preset / module


def aligned_folder(preset: str) -> Path:
    """Return the folder of the modules that a preset's own training taught to listen."""
    return home() / "weights" / preset / ALIGNED


def voice_folder(preset: str) -> Path:
    """Return the folder of the modules that a preset's own training taught to speak."""
    return home() / "weights" / preset / VOICE


def speakers_folder(preset: str) -> Path:
    """Return the folder of the speakers whose voices a preset has; it need not exist."""
    return home() / "weights" / preset / SPEAKERS


def triton_folder() -> Path:
    """Return the folder of the unpacked Triton server; it need not exist."""
    return home() / "triton"


def tools() -> Path:
    """Return the folder of tools that preparation itself needs (npm, where there is none)."""
    return home() / "tools"
