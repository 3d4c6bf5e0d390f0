"""MinMo's own code as files of a bundle: the package as it is installed, generated parts too."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import minmo
from minmo.training.bundle.parts import Entry

FOLDER = "code"
_ENDINGS = frozenset({".py", ".toml", ".yaml", ".typed"})


def code() -> list[Entry]:
    """The package's files, in order of their paths."""
    root = Path(minmo.__file__).parent
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix in _ENDINGS and "__pycache__" not in path.parts and path.is_file()
    )
    entries = [Entry(f"{FOLDER}/minmo/{path.relative_to(root).as_posix()}", path) for path in paths]
    version = metadata.version("minmo")
    described = f"Metadata-Version: 2.1\nName: minmo\nVersion: {version}\n"
    # By which the code knows its own version.
    info = Entry(f"{FOLDER}/minmo-{version}.dist-info/METADATA", described.encode())
    return [info, *entries]
