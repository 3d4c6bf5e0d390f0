"""Clips that sound a little like voices: harmonics of a pitch, and noise up to the highest one."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from tests.unit.tiny_training import TEXTS

RATE = 24_000


def voice(hertz: float, seconds: float, rate: int = RATE, seed: int = 0) -> npt.NDArray[np.float32]:
    """Harmonics of a pitch that fall off, with some noise."""
    time = np.arange(int(seconds * rate)) / rate
    numbers = np.arange(1, int(0.45 * rate / hertz))
    waves = np.sin(2 * np.pi * hertz * numbers * time[:, None]) / numbers
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.15 * waves.sum(1) + 0.01 * noise).astype(np.float32)


def write_recordings(folder: Path, name: str, count: int, seconds: float = 0.4) -> Path:
    """Writes a Shar folder of such clips, of two speakers in turn; the second has the longer."""
    folder = folder / name
    folder.mkdir(parents=True)
    cuts = []
    with tarfile.open(folder / "recording.tar", "w") as tar:
        for number in range(count):
            key, second = f"{name}-{number:04d}", number % 2
            sound = voice((120, 210)[second], seconds * (1 + second), seed=number)
            content = io.BytesIO()
            soundfile.write(content, sound, RATE, format="FLAC", subtype="PCM_16")
            member = tarfile.TarInfo(f"{key}.flac")
            member.size = len(content.getvalue())
            content.seek(0)
            tar.addfile(member, content)
            said = {"text": TEXTS[number % 5], "speaker": ("ann", "bob")[second]}
            cuts.append({"id": key, "duration": len(sound) / RATE, "supervisions": [said]})
    with gzip.open(folder / "cuts.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(cut) + "\n" for cut in cuts)
    return folder
