"""Speech tokens of recordings: what `minmo data tokens` has named, for the stages to learn from.

    ROOT/train.0000/                            a shard
    ROOT/.tokens/<tokenizer>/train.0000.npz     the speech tokens of its clips

Another speech tokenizer gives other tokens, so they lie in a folder that is named by the first
digits of its hash. Shar readers take every file of a shard's folder for a field, so they lie beside
it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from minmo.training.errors import TrainingError
from minmo.training.shar import shard_folders
from minmo.weights.errors import AbsentWeightsError
from minmo.weights.load import weights_folder
from minmo.weights.modules import module_sha256
from minmo.weights.spoken import TOKENIZER

TOKENS = ".tokens"
_DIGITS = 12

Tokens = npt.NDArray[np.int16]


class SpeechTokens(Mapping[str, Tokens]):
    """Speech tokens of clips by the clips' ids, `[tokens]` each, 25 for a second of the clip.

    The first token begins where the clip does: no silence is around it.

    Args:
        by_clip: the tokens.
        tokenizer_sha256: hash of the speech tokenizer that named them.
    """

    def __init__(self, by_clip: Mapping[str, Tokens], tokenizer_sha256: str) -> None:
        self._by_clip, self.tokenizer_sha256 = by_clip, tokenizer_sha256

    @classmethod
    def open(cls, folders: Sequence[Path], sets: Sequence[str], preset: str = "mini") -> Self:
        """Reads the tokens of all clips.

        Args:
            folders: of shards.
            sets: the names of the sets, each in one of the folders at least.
            preset: whose installed speech tokenizer is meant: a name, or the path of a TOML file.

        Raises:
            TrainingError: there is no speech tokenizer, or a shard has no tokens of it; names the
                command.
        """
        sha256 = tokenizer_sha256(preset)
        by_clip: dict[str, Tokens] = {}
        for root, shard in shards_of(folders, sets):
            path = tokens_file(root, shard.name, sha256)
            if not are_named(root, shard, sha256):
                raise _missing(root, shard.name, sets, sha256, preset)
            for clip, tokens in read_tokens(path):
                if not np.array_equal(by_clip.setdefault(clip, tokens), tokens):
                    raise TrainingError(
                        f"two clips with other speech tokens are called {clip}, the second one in "
                        f"{shard}; leave one of the folders out"
                    )
        return cls(by_clip, sha256)

    def __getitem__(self, clip: str) -> Tokens:
        return self._by_clip[clip]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_clip)

    def __len__(self) -> int:
        return len(self._by_clip)


def tokenizer_sha256(preset: str) -> str:
    """The hash of the speech tokenizer that is installed.

    Raises:
        TrainingError: there is none; names the commands that make one.
        WeightsError: it is damaged.
    """
    try:
        folder = weights_folder(preset, TOKENIZER)
    except AbsentWeightsError as error:
        raise TrainingError(
            f"preset {preset!r} has no speech tokenizer, which names speech tokens: train one with "
            f"`minmo train speech-tokenizer --preset {preset} --data FOLDER --out RUN` and "
            "`minmo train export RUN`"
        ) from error
    return module_sha256(preset, TOKENIZER, folder)


def shards_of(folders: Sequence[Path], sets: Sequence[str]) -> list[tuple[Path, Path]]:
    """Root and folder of every shard of the sets.

    Raises:
        TrainingError: there is no such folder, or none of them has one of the sets.
    """
    roots = [Path(folder).expanduser() for folder in folders]
    found: list[tuple[Path, Path]] = []
    for name in sets:
        shards = [(root, shard) for root in roots for shard in shard_folders(root, name)]
        if not shards:
            raise TrainingError(
                f"no clips of the set {name!r} in {', '.join(map(str, roots)) or 'no folder'}: "
                f"expected folders {name}.0000 and so on"
            )
        found += shards
    return found


def tokens_file(root: Path, shard: str, sha256: str) -> Path:
    """Where the speech tokens of a shard's clips are; the file need not exist."""
    return root / TOKENS / sha256[:_DIGITS] / f"{shard}.npz"


def are_named(root: Path, shard: Path, sha256: str) -> bool:
    """Say whether the clips of a shard, as they are now, have tokens of a tokenizer."""
    try:
        with np.load(tokens_file(root, shard.name, sha256)) as file:
            return bool(file["tokenizer"] == sha256 and file["shard"] == digest_of(shard))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def digest_of(shard: Path) -> str:
    """A digest of what a shard holds: its cuts, and the sizes of its archives."""
    digest = hashlib.sha256()
    for path in sorted(shard.glob("cuts*.jsonl.gz")):
        digest.update(path.read_bytes())
    for path in sorted(shard.glob("recording*.tar")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def read_tokens(path: Path) -> Iterator[tuple[str, Tokens]]:
    """The clips of a file, and the speech tokens of each.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        with np.load(path) as file:
            clips, tokens, ends = file["clips"].tolist(), file["tokens"], file["ends"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"{path} is damaged ({error}); delete it and run `minmo data tokens` again"
        ) from error
    yield from zip(clips, np.split(tokens, ends)[:-1], strict=True)


def write_tokens(
    root: Path, shard: Path, sha256: str, digest: str, tokens: Mapping[str, Tokens]
) -> None:
    """Writes the speech tokens of a shard's clips; the file appears whole or not at all.

    Args:
        root: of all shards.
        shard: its folder.
        sha256: hash of the tokenizer.
        digest: `digest_of` the shard, from before its clips were read.
        tokens: of each clip.

    Raises:
        TrainingError: it cannot be written.
    """
    path = tokens_file(root, shard.name, sha256)
    unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    rows = list(tokens.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            np.savez_compressed(
                unfinished,
                tokenizer=sha256,
                shard=digest,
                clips=np.array(list(tokens), dtype=np.str_),
                tokens=np.concatenate([np.zeros(0, dtype=np.int16), *rows]),
                ends=np.cumsum([len(row) for row in rows], dtype=np.int64),
            )
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror or error}; free some room, or allow writing "
            "there"
        ) from error


def _missing(
    root: Path, shard: str, sets: Sequence[str], sha256: str, preset: str
) -> TrainingError:
    there = sorted(
        folder.name
        for folder in (root / TOKENS).glob("*")
        if folder.name != sha256[:_DIGITS] and (folder / f"{shard}.npz").exists()
    )
    if tokens_file(root, shard, sha256).exists():
        why = f"the speech tokens of {root / shard} are damaged, or of other clips"
    elif there:
        why = (
            f"the speech tokens of {root / shard} are of another tokenizer ({', '.join(there)}) "
            f"than the one that is installed ({sha256[:_DIGITS]})"
        )
    else:
        why = f"the clips of {root / shard} have no speech tokens yet"
    return TrainingError(
        f"{why}: run `minmo data tokens {root} --sets {','.join(sets)} --preset {preset}`"
    )
