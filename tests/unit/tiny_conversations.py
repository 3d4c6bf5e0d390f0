"""Spoken clips of a few speakers, with words at known times, and scenes made of them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from minmo.audio.vad import SileroVad
from minmo.training.data.duplex_scenes import Place, Said, Scene, Spoken
from minmo.training.duplex_gate import Gate, silero_gate

RATE = 16_000
WORD, GAP, EDGE = 0.2, 0.05, 0.1
"""Seconds of a word, between two words, and before and behind all of them."""
QUIET = Place(None, "white", None, None, 0.0, 0)
TURNS = (
    "The cat sat on the mat.",
    "A cat and the mat sat.",
    "Can the cat sit on a mat?",
    "On the mat sat a cat and the other cat and a third one.",
)
ASIDES = {"back-channel": "Mm hm.", "filler": "Um.", "interruption": "Wait, wait."}
SPEAKERS = 3


def spans_of(text: str) -> list[list[float]]:
    """Where the words of a text are heard."""
    starts = [EDGE + number * (WORD + GAP) for number in range(len(text.split()))]
    return [[round(start, 3), round(start + WORD, 3)] for start in starts]


def sound_of(text: str, seed: int) -> npt.NDArray[np.float32]:
    """Bursts of noise where the words are."""
    spans = spans_of(text)
    sound = np.zeros(round((spans[-1][1] + EDGE) * RATE), np.float32)
    random = np.random.default_rng(seed)
    for start, end in spans:
        part = slice(round(start * RATE), round(end * RATE))
        sound[part] = 0.1 * random.standard_normal(part.stop - part.start)
    return sound


def write_clips(folder: Path, clips: list[tuple[str, str, str, dict[str, Any]]]) -> None:
    """Writes a shard of clips: of each its id, speaker, text and what else is known of it."""
    folder.mkdir(parents=True)
    with (
        tarfile.open(folder / "recording.tar", "w") as tar,
        gzip.open(folder / "cuts.jsonl.gz", "wt") as lines,
    ):
        for number, (key, speaker, text, custom) in enumerate(clips):
            sound, content = sound_of(text, number), io.BytesIO()
            soundfile.write(content, sound, RATE, format="FLAC", subtype="PCM_16")
            member = tarfile.TarInfo(f"{key}.flac")
            member.size = len(content.getvalue())
            content.seek(0)
            tar.addfile(member, content)
            said = {"text": text, "speaker": speaker, "custom": custom}
            cut = {"id": key, "duration": len(sound) / RATE, "supervisions": [said]}
            lines.write(json.dumps(cut) + "\n")


def write_speech(root: Path, asides: bool = True) -> tuple[Path, ...]:
    """Folders of whole utterances and of asides, in three sets of different speakers."""
    folders = (root / "speech", root / "asides") if asides else (root / "speech",)
    for split in ("train", "valid", "test"):
        names = [f"{split}-{number}" for number in range(SPEAKERS)]
        turns = [
            (f"{name}-{n}", name, text, {"kind": "turn", "source": "t", "words": spans_of(text)})
            for name in names
            for n, text in enumerate(TURNS)
        ]
        write_clips(root / "speech" / f"{split}.0000", turns)
        if asides:
            short = [
                (
                    f"{name}-{kind}",
                    name,
                    text,
                    {"source": f"asides-{kind}", "words": spans_of(text)},
                )
                for name in names
                for kind, text in ASIDES.items()
            ]
            write_clips(root / "asides" / f"{split}.0000", short)
    return folders


def loud_gate() -> Gate:
    """The real detector behind a model that takes everything loud for speech."""

    class Loud(SileroVad):
        def __init__(self) -> None:
            pass

        def stream(self) -> Callable[[npt.NDArray[np.float32]], float]:
            return lambda frame: float(np.sqrt(np.mean(np.square(frame))) > 0.003)

    return silero_gate(Loud(), 0.5)


def said(clip: str, at: float, end: float, channel: Any = "user", start: float = 0.0) -> Said:
    """A stretch of a clip of `write_speech`."""
    folder = "asides" if clip.split("-", 2)[2] in ASIDES else "speech"
    return Said(channel, f"../{folder}/train.0000", clip, start, end, at, -20.0)


def spoken(start: float, end: float, text: str, seconds: float | None = None) -> Spoken:
    """A turn."""
    return Spoken(start, end, text, end - start if seconds is None else seconds)


def scene(seconds: float, **parts: Any) -> Scene:
    """A scene in a quiet place, of the parts that are given."""
    given = {
        "kind": "turn",
        "speaker": "train-0",
        "seconds": seconds,
        "asked": "",
        "user": (),
        "assistant": (),
        "back_channels": (),
        "pauses": (),
        "said": (),
        "sounds": (),
        "place": QUIET,
    }
    return Scene(**(given | parts))
