"""Simulated conversations for the full-duplex predictor: scenes, in shards.

    ROOT/train.0000/cuts.jsonl.gz      one cut a scene, with its recipe and no recording

Scenes are made of spoken clips that lie elsewhere, whose shards they name; the sets keep the
speakers that they have there. Scene and shard depend on the clips and the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minmo.training.data.duplex_clips import read_cast
from minmo.training.data.duplex_planning import Planner
from minmo.training.data.duplex_scenes import Scene
from minmo.training.data.errors import DataError
from minmo.training.data.jsonl import write_lines
from minmo.training.data.lines import SPLITS, Split
from minmo.training.data.shards import CLIPS
from minmo.training.shar import SCENE

SOURCE = "duplex"
# Of the hours of train, for each of the other sets; and what is enough to measure on.
_MEASURED_SHARE, _MEASURED_HOURS = 0.1, 1.0
_CUTS = "cuts.jsonl.gz"


@dataclass(frozen=True)
class MadeScenes:
    """What was made of a set.

    Attributes:
        split: the set.
        scenes: in it.
        seconds: of conversation.
        kinds: how many there are of each kind.
    """

    split: str
    scenes: int
    seconds: float
    kinds: dict[str, int]


def make_scenes(
    root: Path,
    folders: Sequence[Path],
    hours: float,
    seed: int,
    told: Callable[[float, float], None] = lambda done, total: None,
) -> list[MadeScenes]:
    """Draws the scenes of all sets and writes their shards, each whole or not at all.

    Args:
        root: of the shards; those of an earlier call that are not wanted any more are removed.
        folders: of shards of spoken clips, asides among them.
        hours: of conversation in train; valid and test have a tenth of it each, an hour at most.
        seed: of everything that is drawn.
        told: hears how many seconds of how many are done.

    Raises:
        DataError: the folder holds something else, or clips are missing.
    """
    root = root.resolve()
    folders = [folder.resolve() for folder in folders]
    if root in folders:
        raise DataError(f"{root} holds clips: give another --out for the scenes made of them")
    _check_own(root)
    measured = min(_MEASURED_SHARE * hours, _MEASURED_HOURS)
    wanted = {split: 3600 * (hours if split == "train" else measured) for split in SPLITS}
    planners = {split: Planner(read_cast(folders, split), split, root, seed) for split in SPLITS}
    total, before, made = sum(wanted.values()), 0.0, list[MadeScenes]()
    for split in SPLITS:
        scenes = _drawn(planners[split], wanted[split])
        end = before + wanted[split]
        made.append(_write(root, split, scenes, _part(before, end, total, told)))
        before = end
    return made


def _part(
    start: float, end: float, total: float, told: Callable[[float, float], None]
) -> Callable[[float], None]:
    """Hears how many seconds of a set are done, and tells how many of all."""
    return lambda done: told(min(start + done, end), total)


def _drawn(planner: Planner, seconds: float) -> Iterator[tuple[int, Scene]]:
    """Scenes with their numbers, until there are so many seconds of them."""
    number, done = 0, 0.0
    while done < seconds:
        scene = planner.scene(number)
        yield number, scene
        number, done = number + 1, done + scene.seconds


def _write(
    root: Path,
    split: Split,
    scenes: Iterator[tuple[int, Scene]],
    told: Callable[[float], None],
) -> MadeScenes:
    kinds: dict[str, int] = {}
    count, seconds, shard = 0, 0.0, 0
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal shard
        if rows:
            write_lines(root / f"{split}.{shard:04d}" / _CUTS, rows)
            shard += 1
            rows.clear()

    for number, scene in scenes:
        rows.append(_cut(split, number, scene))
        kinds[scene.kind] = kinds.get(scene.kind, 0) + 1
        count, seconds = count + 1, seconds + scene.seconds
        told(seconds)
        if len(rows) == CLIPS:
            flush()
    flush()
    for folder in root.glob(f"{split}.[0-9]*"):
        if int(folder.name.rpartition(".")[2]) >= shard:
            shutil.rmtree(folder)
    return MadeScenes(split, count, seconds, dict(sorted(kinds.items())))


def _cut(split: Split, number: int, scene: Scene) -> dict[str, Any]:
    """A scene as lhotse's Shar format has a cut; its id tells it from any other scene."""
    table = scene.to_json()
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{split}-{number:06d}-{digest}"
    said = {
        "id": name,
        "recording_id": name,
        "start": 0,
        "duration": scene.seconds,
        "channel": 0,
        "text": " ".join(turn.text for turn in scene.user),
        "language": "en",
        "speaker": scene.speaker,
        "custom": {"kind": scene.kind, "source": SOURCE, SCENE: table},
    }
    return {
        "id": name,
        "start": 0,
        "duration": scene.seconds,
        "channel": 0,
        "supervisions": [said],
        "type": "MonoCut",
    }


def _check_own(root: Path) -> None:
    """Refuses a folder whose shards are no scenes.

    Raises:
        DataError: says which.
    """
    if not root.is_dir():
        return
    for split in SPLITS:
        for folder in root.glob(f"{split}.[0-9]*"):
            if {one.name for one in folder.iterdir()} - {_CUTS, f".part-{_CUTS}"}:
                raise DataError(f"{folder} holds clips, not scenes; give another --out")
