"""The speakers of a preset: a file for each voice that it can speak with."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minmo.weights import home
from minmo.weights.errors import WeightsError
from minmo.weights.spoken import speaking_set

DEFAULT = "default"
"""The speaker of this name comes first, and so speaks where nobody was asked for."""
SUFFIX = ".safetensors"
_LONGEST_BYTES = 100


@dataclass(frozen=True)
class SpeakerFile:
    """A speaker that is there.

    Attributes:
        name: what callers ask for.
        path: the file.
        licence: SPDX identifier; empty where nobody has said.
        source: what the file was made from; empty where nobody has said.
    """

    name: str
    path: Path
    licence: str
    source: str


def speaker_files(preset: str) -> list[Path]:
    """Return the files of a preset's speakers: the default first, the others by their names.

    They are those of the voice set where there is one: other voices know other speakers.

    Args:
        preset: the name under which its weights are kept.
    """
    root = speaking_set(preset)
    folder = home.speakers_folder(preset) if root is None else root / home.SPEAKERS
    found = folder.glob(f"[!.]*{SUFFIX}")
    return sorted(found, key=lambda path: (path.stem != DEFAULT, path.stem))


def speaker_file(preset: str, name: str) -> Path:
    """Return the file of a speaker; it need not exist.

    Raises:
        WeightsError: the name cannot be that of a file; says what can.
    """
    rest = name.replace("-", "").replace("_", "").replace(".", "")
    if not rest.isalnum() or name.startswith(".") or len(name.encode()) > _LONGEST_BYTES:
        raise WeightsError(
            f"a speaker cannot be called {name[:_LONGEST_BYTES]!r}: give letters, digits, '-', "
            f"'_' and '.', not first, {_LONGEST_BYTES} bytes at most"
        )
    return home.speakers_folder(preset) / f"{name}{SUFFIX}"


def speakers(preset: str) -> Iterator[SpeakerFile]:
    """Yield a preset's speakers, as their files' headers tell.

    Args:
        preset: the name under which its weights are kept.

    Raises:
        WeightsError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    for path in speaker_files(preset):
        try:
            with safe_open(path, "np") as file:
                header = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"cannot read the speaker's file {path}: {error}; delete it or bring it again"
            ) from error
        name = header.get("name", path.stem)
        yield SpeakerFile(name, path, header.get("licence", ""), header.get("source", ""))
