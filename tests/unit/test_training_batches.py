"""Batches: an order that is shuffled, shared, and can go on anywhere; audio as it was asked for."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minmo.training.batches import (
    Batch,
    Order,
    Planned,
    Position,
    Source,
    assemble,
    read_sources,
    read_valid,
    stream,
    valid_batches,
)
from minmo.training.config import AugmentationConfig, DataConfig
from minmo.training.errors import TrainingError
from minmo.training.shar import Clip, read_audio, read_set
from tests.unit.tiny_training import TEXTS, write_shard

CONFIG = DataConfig(seconds=8.0, pool=3, silence=(0.0, 0.2))


def clips(count: int, name: str = "clip") -> list[Clip]:
    """Clips without audio, of 0.5 to 2.4 seconds."""
    return [
        Clip(f"{name}-{number}", "text", "", 0.5 + number % 20 / 10, "", 0, 0)
        for number in range(count)
    ]


def order(config: DataConfig = CONFIG, seed: int = 1, ranks: int = 1) -> Order:
    return Order([Source(clips(50), 1.0)], config, seed, ranks)


def ids(planned: Planned) -> list[str]:
    return [f"{clip.id} {epoch}" for clip, epoch in planned.clips]


def first(
    order: Order, count: int, position: Position | None = None, rank: int = 0
) -> list[Planned]:
    return list(itertools.islice(order.plan(position or order.start, rank), count))


def test_the_order_follows_from_the_seed() -> None:
    one, same, other = (order(seed=seed) for seed in (1, 1, 2))
    assert [ids(a) for a in first(one, 40)] == [ids(a) for a in first(same, 40)]
    assert [ids(a) for a in first(one, 40)] != [ids(a) for a in first(other, 40)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_goes_on_from_everywhere(ranks: int) -> None:
    whole = first(order(ranks=ranks), 30, rank=ranks - 1)
    for cut in range(29):
        stored = json.dumps(whole[cut].next.to_json())
        position = Position.from_json(json.loads(stored))
        rest = first(order(ranks=ranks), 29 - cut, position, rank=ranks - 1)
        assert [ids(a) for a in rest] == [ids(a) for a in whole[cut + 1 :]]


def test_each_epoch_has_each_clip_once_and_in_another_order() -> None:
    heard = [pair for planned in first(order(), 60) for pair in planned.clips]
    epochs = Counter(epoch for _, epoch in heard)
    assert epochs[0] == epochs[1] == 50
    seen = [[clip.id for clip, epoch in heard if epoch == number] for number in (0, 1)]
    assert set(seen[0]) == set(seen[1])
    assert len(set(seen[0])) == 50
    assert seen[0] != seen[1]


def test_batches_are_as_long_as_was_asked_with_their_padding() -> None:
    planned = first(order(), 60)
    for batch in planned:
        seconds = [clip.seconds + 0.2 for clip, _ in batch.clips]
        assert len(seconds) * max(seconds) <= 8.0 + 1e-6
    mean = sum(sum(clip.seconds + 0.2 for clip, _ in batch.clips) for batch in planned) / 60
    assert mean > 0.7 * 8.0


def test_a_clip_longer_than_a_batch_is_a_batch() -> None:
    long = [replace(clip, seconds=9.0) for clip in clips(3)]
    planned = first(Order([Source(long, 1.0)], CONFIG, 0), 5)
    assert [len(batch.clips) for batch in planned] == [1] * 5


def test_folders_are_mixed_by_weight() -> None:
    sources = [Source(clips(1000, "a"), 3.0), Source(clips(20, "b"), 1.0)]
    drawn = Counter(
        clip.id[0] for batch in first(Order(sources, CONFIG, 0), 200) for clip, _ in batch.clips
    )
    assert drawn["b"] / drawn.total() == pytest.approx(0.25, abs=0.04)


def test_processes_share_the_batches() -> None:
    parts = [first(order(ranks=3), 20, rank=rank) for rank in range(3)]
    assert [one.next for one in parts[0]] == [one.next for one in parts[2]]
    heard = Counter(name for part in parts for planned in part for name in ids(planned))
    assert heard.most_common(1)[0][1] <= 2
    assert sum(count > 1 for count in heard.values()) < 0.1 * len(heard)


def test_other_clips_have_another_fingerprint_and_start_anew() -> None:
    before, after = order(), Order([Source(clips(60), 1.0)], CONFIG, 1)
    assert before.fingerprint == order().fingerprint != after.fingerprint
    position = after.after_a_change(first(before, 20)[-1].next)
    heard = [pair for planned in first(after, 40, position) for pair in planned.clips]
    assert min(epoch for _, epoch in heard) > 0
    assert len({clip.id for clip, epoch in heard}) == 60


def test_nothing_that_fits_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"data.shortest=5 .*data.longest=20"):
        order(replace(CONFIG, shortest=5.0))


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    write_shard(tmp_path, "train.0000", 7)
    write_shard(tmp_path, "train.0001", 3)
    write_shard(tmp_path, "valid.0000", 5)
    return replace(CONFIG, folders={str(tmp_path): 1.0}, workers=0)


def test_shards_are_read_in_order(data: DataConfig) -> None:
    (source,) = read_sources(data)
    assert [clip.id for clip in source.clips][6:8] == ["train-0000-0006", "train-0001-0000"]
    clip = source.clips[1]
    assert (clip.text, clip.speaker, clip.custom) == (TEXTS[1], "s", {"kind": "sentence"})
    samples = read_audio(clip)
    assert len(samples) == round(16_000 * clip.seconds)
    assert 0.29 < samples.max() < 0.31
    assert len(read_valid(replace(data, valid_clips=4))) == 4


def test_a_batch_is_padded_and_has_silence_around_its_clips(data: DataConfig) -> None:
    (source,) = read_sources(data)
    planned = Planned(tuple((clip, 0) for clip in source.clips), Position(0, 0, ()))
    batch = assemble(planned, data, None, seed=1)
    assert batch.samples.shape == (10, int(batch.lengths.max()))
    assert batch.texts[:5] == TEXTS
    for row, length, clip in zip(batch.samples, batch.lengths.tolist(), source.clips, strict=True):
        assert not row[length:].any()
        around = length - round(16_000 * clip.seconds)
        assert 0 <= around <= 0.4 * 16_000
        start = int(row.nonzero()[0]) - 1
        samples = torch.from_numpy(read_audio(clip))
        assert torch.equal(row[start : start + len(samples)], samples)
    other = assemble(replace(planned, clips=((source.clips[0], 1),)), data, None, seed=1)
    assert int(other.lengths[0]) != int(batch.lengths[0])


def test_clean_audio_is_at_the_same_times(data: DataConfig) -> None:
    (source,) = read_sources(data)
    planned = Planned(tuple((clip, 0) for clip in source.clips[:3]), Position(0, 0, ()))
    config = AugmentationConfig(clean=0.0, noise=1.0, speed=1.0)
    batch = assemble(planned, data, config, seed=1, clean=True)
    assert batch.clean is not None
    assert batch.clean.shape == batch.samples.shape
    assert not torch.equal(batch.clean, batch.samples)
    ends = [int(row.nonzero()[-1]) for row in batch.clean]
    assert all(end < length for end, length in zip(ends, batch.lengths.tolist(), strict=True))


def test_workers_give_what_one_process_gives(data: DataConfig) -> None:
    config = AugmentationConfig()

    def take(workers: int) -> list[Batch]:
        settings = replace(data, workers=workers)
        order = Order(read_sources(settings), settings, 5)
        batches = stream(order, order.start, settings, config, 5)
        return list(itertools.islice(batches, 6))

    for alone, helped in zip(take(0), take(2), strict=True):
        assert torch.equal(alone.samples, helped.samples)
        assert alone.next == helped.next
        assert [clip.id for clip in alone.clips] == [clip.id for clip in helped.clips]


def test_what_is_measured_on_is_the_same_each_time(data: DataConfig) -> None:
    chosen = read_valid(data)
    once, again = (list(valid_batches(chosen, data, 1)) for _ in range(2))
    assert sum(len(batch.clips) for batch in once) == 5
    assert all(torch.equal(a.samples, b.samples) for a, b in zip(once, again, strict=True))


def test_a_damaged_clip_is_said_in_one_line(data: DataConfig, tmp_path: Path) -> None:
    path = tmp_path / "train.0000" / "recording.tar"
    (clip, *_) = read_set(tmp_path, "train")
    content = bytearray(path.read_bytes())
    content[clip.offset : clip.offset + clip.size] = bytes(clip.size)
    path.write_bytes(bytes(content))
    for workers in (0, 1):
        settings = replace(data, workers=workers)
        order = Order(read_sources(settings), settings, 5)
        with pytest.raises(TrainingError, match=r"^clip train-0000-0000 in .* cannot be read"):
            list(itertools.islice(stream(order, order.start, settings, None, 5), 20))


def test_damaged_and_missing_shards_are_refused(data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no clips of the set 'real'"):
        read_sources(replace(data, train={"train": 1.0, "real": 0.1}))
    with pytest.raises(TrainingError, match="there is no folder"):
        read_sources(replace(data, folders={"/nowhere": 1.0}))
    with pytest.raises(TrainingError, match="no data: give folders with --data"):
        read_sources(DataConfig())
    cuts = tmp_path / "train.0001" / "cuts.jsonl.gz"
    cuts.write_bytes(cuts.read_bytes()[:40])
    with pytest.raises(TrainingError, match=r"is damaged .*delete .*train.0001 and make it again"):
        read_sources(data)
