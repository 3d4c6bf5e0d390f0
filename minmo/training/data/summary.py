"""What a folder of shards holds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minmo.training.data.errors import DataError
from minmo.training.data.shards import made_of


@dataclass
class Share:
    """A source's part of a set.

    Attributes:
        split: the set.
        source: where the texts come from.
        kind: what they are.
        clips: utterances.
        seconds: of audio.
        speakers: who speaks.
    """

    split: str
    source: str
    kind: str
    clips: int = 0
    seconds: float = 0.0
    speakers: set[str] = field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "split": self.split,
            "source": self.source,
            "kind": self.kind,
            "clips": self.clips,
            "hours": round(self.seconds / 3600, 4),
            "speakers": len(self.speakers),
        }


@dataclass(frozen=True)
class Summary:
    """What a folder holds.

    Attributes:
        shards: folders.
        shares: for each set and source.
        skipped: what was left out when they were made, by reason.
    """

    shards: int
    shares: list[Share]
    skipped: dict[str, int]

    def totals(self) -> list[Share]:
        """For each set, over all sources."""
        totals: dict[str, Share] = {}
        for share in self.shares:
            total = totals.setdefault(share.split, Share(share.split, "all", ""))
            total.clips += share.clips
            total.seconds += share.seconds
            total.speakers |= share.speakers
        return list(totals.values())

    def shared_speakers(self) -> list[str]:
        """Speakers of train who are in another set too."""
        train = {who for share in self.totals() if share.split == "train" for who in share.speakers}
        others = {
            who for share in self.totals() if share.split != "train" for who in share.speakers
        }
        return sorted(train & others)

    def to_json(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "shards": self.shards,
            "sets": [share.to_json() for share in self.totals()],
            "sources": [share.to_json() for share in self.shares],
            "skipped": self.skipped,
            "speakers_of_train_in_other_sets": len(self.shared_speakers()),
        }


def summarise(root: Path) -> Summary:
    """Counts what is in the shards of a folder.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    shards = sorted(root.glob("[!.]*.[0-9]*/cuts.*jsonl.gz"))
    if not shards:
        raise DataError(f"{root} has no shards, as in {root / 'train.0000'}")
    shares: dict[tuple[str, str, str], Share] = {}
    skipped: dict[str, int] = {}
    for manifest in shards:
        shard = manifest.parent.name
        split = shard.partition(".")[0]
        for cut in _cuts(manifest):
            said = cut["supervisions"][0]
            custom = said.get("custom") or {}
            key = (split, str(custom.get("source", "")), str(custom.get("kind", "")))
            share = shares.setdefault(key, Share(*key))
            share.clips += 1
            share.seconds += float(cut["duration"])
            share.speakers.add(str(said.get("speaker", "")))
        made = made_of(root, shard)
        for reason, times in (made.skipped if made else {}).items():
            skipped[reason] = skipped.get(reason, 0) + times
    return Summary(len(shards), [shares[key] for key in sorted(shares)], skipped)


def _cuts(manifest: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(manifest, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{manifest} cannot be read: {error}; delete its folder") from error
