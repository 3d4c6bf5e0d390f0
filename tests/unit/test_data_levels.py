"""Recordings are trimmed, levelled and refused by what is heard in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from minmo.training.data.levels import (
    KEPT_SECONDS,
    SPEECH_DBFS,
    amplified,
    flaw_of,
    speech_dbfs,
    trimmed,
)
from minmo.training.data.recordings import Columns, Import, find_recordings
from minmo.training.shar import read_audio, read_set
from tests.unit.tiny_recordings import RATE
from tests.unit.tiny_syllables import Sound, room, syllables


def test_silence_goes_but_for_a_little_on_each_side() -> None:
    clip = np.concatenate((room(1.0), syllables(1.0), room(0.6)))
    left = trimmed(clip, RATE)
    assert len(left) / RATE == pytest.approx(1.0 + 2 * KEPT_SECONDS, abs=0.06)
    assert np.abs(left).max() == np.abs(clip).max()


def test_a_click_is_no_speech() -> None:
    clip = np.concatenate((room(1.0), syllables(1.0), room(0.6)))
    clip[int(0.3 * RATE) : int(0.3 * RATE) + 50] = 0.5
    assert len(trimmed(clip, RATE)) / RATE == pytest.approx(1.1, abs=0.06)


@pytest.mark.parametrize("clip", [np.zeros(0, np.float32), np.zeros(RATE, np.float32), room(1.0)])
def test_where_nothing_stands_out_nothing_is_cut(clip: Sound) -> None:
    assert np.array_equal(trimmed(clip, RATE), clip)


@pytest.mark.parametrize(
    ("clip", "flaw"),
    [
        (np.concatenate((room(0.3), syllables(1.0))), ""),
        (np.clip(np.concatenate((room(0.3), 20 * syllables(1.0))), -1, 1), "clipped"),
        (np.concatenate((room(0.5, -22), syllables(1.0) + room(1.0, -22))), "too noisy"),
        (np.zeros(RATE, np.float32), "silent"),
        (np.zeros(0, np.float32), "silent"),
    ],
)
def test_what_is_spoilt_is_told(clip: Sound, flaw: str) -> None:
    assert flaw_of(clip, RATE) == flaw


def test_speech_is_measured_without_its_pauses() -> None:
    alone = speech_dbfs(syllables(1.0), RATE)
    among_pauses = np.concatenate((room(2.0), syllables(1.0), room(2.0)))
    assert speech_dbfs(among_pauses, RATE) == pytest.approx(alone, abs=0.5)
    assert speech_dbfs(amplified(among_pauses, -6), RATE) == pytest.approx(alone - 6, abs=0.5)


def test_amplifying_never_clips() -> None:
    clip = syllables(1.0)
    assert np.abs(amplified(clip, 60)).max() == pytest.approx(0.99)
    assert not amplified(np.zeros(10, np.float32), 60).any()


def test_speakers_come_to_one_level_and_keep_their_accents(tmp_path: Path) -> None:
    given = {"a1": ("ann", 0.05), "a2": ("ann", 0.05), "a3": ("ann", 0.1), "b1": ("bob", 0.6)}
    rows = ["id,text,speaker,split"]
    for name, (speaker, factor) in given.items():
        clip = np.concatenate((room(0.5, -80), factor * syllables(1.0), room(0.5, -80)))
        soundfile.write(tmp_path / f"{name}.wav", clip, RATE)
        rows.append(f"{name},A text.,{speaker},train")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    found = find_recordings(tmp_path, Columns(), "train")
    out = tmp_path / "out"
    work = Import(out, "mine", found, rate_hz=RATE, clean=True)
    (made,) = work.run(lambda done, total: None)
    assert (made.clips, made.rate_hz) == (4, RATE)
    sounds = {clip.id: read_audio(clip, RATE) for clip in read_set(out, "train")}
    levels = {name: speech_dbfs(sound, RATE) for name, sound in sounds.items()}
    assert levels["mine-a1"] == pytest.approx(SPEECH_DBFS, abs=0.7)
    assert levels["mine-b1"] == pytest.approx(SPEECH_DBFS, abs=0.7)
    assert levels["mine-a3"] - levels["mine-a1"] == pytest.approx(6, abs=0.7)
    assert all(len(sound) < 1.3 * RATE for sound in sounds.values())
    assert work.run(lambda done, total: None) == []
    plain = Import(out, "mine", found, rate_hz=RATE)
    assert [one.clips for one in plain.run(lambda done, total: None)] == [4]
