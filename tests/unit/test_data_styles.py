"""Styles are asked for in many wordings, and what is asked for is heard."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from minmo.training.data import instructed
from minmo.training.data.errors import DataError
from minmo.training.data.instructed import Restyling
from minmo.training.data.jsonl import write_lines
from minmo.training.data.lines import SPLITS, Instructed, Line, Style
from minmo.training.data.phonemes import read_texts
from minmo.training.data.restyling import restyle
from minmo.training.data.shards import Clip, Made, write_shard
from minmo.training.data.styles import STYLES, instruct, with_styles, wordings
from minmo.training.data.synthesis import Job, make_shard
from minmo.training.data.voice import Symbols, Voice
from minmo.training.shar import read_audio, read_set
from tests.unit.tiny_recordings import RATE
from tests.unit.tiny_speaker import lines, write_tiny_voice
from tests.unit.tiny_syllables import Sound, syllables


def pitch(sound: Sound) -> float:
    """The strongest period between 70 and 400 Hz, in Hz."""
    loudest = int(np.convolve(sound**2, np.ones(2400), "same").argmax())
    part = sound[max(loudest - 2400, 0) : loudest + 2400].astype(np.float64)
    periods = np.correlate(part, part, "full")[len(part) :]
    first = RATE // 400
    return RATE / (first + 1 + int(periods[first : RATE // 70].argmax()))


def decibels(sound: Sound) -> float:
    return 10 * float(np.log10(np.mean(sound.astype(np.float64) ** 2)))


@pytest.mark.parametrize("name", sorted(STYLES))
def test_a_style_is_heard_and_nothing_else_changes(name: str) -> None:
    style, usual = STYLES[name], 0.4 * syllables(2.0, hertz=160)
    sound = restyle(usual, RATE, style)
    assert len(sound) / len(usual) == pytest.approx(1 / style.rate, rel=0.05)
    assert pitch(sound) / pitch(usual) == pytest.approx(2 ** (style.pitch / 12), rel=0.02)
    assert decibels(sound) - decibels(usual) == pytest.approx(style.loudness, abs=1.0)
    assert np.abs(sound).max() < 1


def test_what_is_loud_already_gets_louder_without_being_clipped() -> None:
    usual = syllables(2.0)
    usual *= np.float32(0.95 / np.abs(usual).max())
    sound = restyle(usual, RATE, STYLES["loud"])
    assert len(sound) == len(usual)
    assert np.abs(sound).max() < 1
    assert decibels(sound) - decibels(usual) > 1


def test_who_speaks_up_lifts_high_frequencies() -> None:
    usual = 0.2 * syllables(2.0)

    def treble(sound: Sound) -> float:
        power = np.abs(np.fft.rfft(sound)) ** 2
        high = int(4000 * len(sound) / RATE)
        return 10 * float(np.log10(power[high:].sum() / power[:high].sum()))

    assert treble(restyle(usual, RATE, STYLES["loud"])) > treble(usual) + 1
    assert treble(restyle(usual, RATE, STYLES["soft"])) < treble(usual) - 1


def test_as_usual_is_the_same_sound() -> None:
    usual = syllables(0.5)
    assert restyle(usual, RATE, Style()) is usual


def test_no_set_hears_the_wordings_of_another() -> None:
    asked = {split: {one for name in STYLES for one in wordings(name, split)} for split in SPLITS}
    assert len(asked["train"]) > 500
    assert not asked["train"] & asked["valid"]
    assert not asked["train"] & asked["test"]
    assert not asked["valid"] & asked["test"]
    assert "Say it slowly." in asked["train"]
    assert all(one[0].isupper() and one[-1] in ".?" for split in SPLITS for one in asked[split])


def test_the_user_says_the_instruction_and_the_text() -> None:
    seen = {instruct("slow", "Good day.", "train", random.Random(seed)) for seed in range(500)}
    assert len({one.instruct for one in seen}) > 20
    for one in seen:
        assert one.query.startswith(one.instruct[:-1])
        assert one.query.endswith(" Good day.")
        assert one.style == STYLES["slow"]
    assert Instructed("Slowly.", "Slowly: Good day.", STYLES["slow"]) in seen


def test_lines_come_again_in_styles_by_seed() -> None:
    given = lines(40)
    once = list(with_styles(given, 1.5, seed=0))
    assert once == list(with_styles(given, 1.5, seed=0))
    assert [line.instructed for line in once] != [
        line.instructed for line in with_styles(given, 1.5, seed=1)
    ]
    usual = [line for line in once if line.instructed is None]
    assert usual == given
    assert 40 * 1.2 < len(once) - len(usual) < 40 * 1.8
    assert len({line.id for line in once}) == len(once)
    assert list(with_styles(given, 0, seed=0)) == given


def test_styles_survive_a_file_and_change_what_a_shard_is_made_of(tmp_path: Path) -> None:
    made = list(with_styles(lines(3), 1, seed=0))
    write_lines(tmp_path / "texts.jsonl", (line.to_json() for line in made))
    assert read_texts(tmp_path / "texts.jsonl") == made
    said = ("abcd efgh",)
    (plain, asked) = made[:2]
    jobs = [Job("train.0000", (line,), (said,)) for line in made[:2]]
    assert jobs[0].digest() != jobs[1].digest()
    # Shards from before there were styles are still what their texts make.
    assert "instructed" not in repr(plain)
    assert "style" in asked.to_json()


def test_a_synthetic_voice_speaks_as_it_is_asked(tmp_path: Path) -> None:
    folder = write_tiny_voice(tmp_path / "voice")
    (usual,) = lines(1)
    slow = Instructed("Slowly.", "Slowly: Text 0.", Style(rate=0.5))
    low = Instructed("Low.", "Low: Text 0.", Style(pitch=-12))
    said = [usual, Line(**{**vars(usual), "id": "slow", "instructed": slow})]
    said.append(Line(**{**vars(usual), "id": "low", "instructed": low}))
    job = Job("train.0000", tuple(said), (("abcd efgh" * 2,),) * 3)
    made = make_shard(tmp_path / "out", job, Voice(folder, RATE), Symbols.of(folder))
    assert (made.clips, made.rate_hz) == (3, RATE)
    clips = {clip.id: clip for clip in read_set(tmp_path / "out", "train")}
    sounds = {name: read_audio(clip, RATE) for name, clip in clips.items()}
    # The tiny voice is as loud as it is slow, and never longer.
    assert sounds["slow"].std() / sounds[usual.id].std() == pytest.approx(2, rel=0.05)
    assert clips["slow"].custom["instruct"] == "Slowly."
    assert clips["slow"].custom["query"] == "Slowly: Text 0."
    assert clips["slow"].custom["style"] == {"rate": 0.5, "pitch": 0.0, "loudness": 0.0}
    # The voice's own 22,050 Hz, an octave lower.
    assert clips[usual.id].custom["bandwidth_hz"] == 11_025
    assert clips["low"].custom["bandwidth_hz"] == pytest.approx(5_512.5)


def write_usual(root: Path, count: int = 6, rate_hz: int = 16_000) -> Path:
    """Shards of clips as they are, in train and in test."""
    for split in ("train", "test"):
        clips = [
            Clip(f"{split}-{n}", 0.3 * syllables(1.0, rate=rate_hz), f"Text {n}.", "ann",
                 {"kind": "sentence", "words": [[0, 1]]})
            for n in range(count)
        ]  # fmt: skip
        made = Made("usual", "digest", 0, 0.0)
        write_shard(root, f"{split}.0000", clips, lambda *_, made=made: made, rate_hz)
    return root


def test_clips_are_said_again_as_somebody_asks(tmp_path: Path) -> None:
    usual = write_usual(tmp_path / "usual")
    work = Restyling(tmp_path / "out", "asked", [usual], times=2, rate_hz=RATE)
    made = work.run(lambda done, total: None)
    assert [(one.clips, one.rate_hz) for one in made] == [(12, RATE), (12, RATE)]
    clips = read_set(tmp_path / "out", "train")
    for clip in clips:
        original, _, name = clip.id.partition("-")[2].partition("-")
        style = clip.custom["style"]
        assert Style(**style) == STYLES[name]
        assert (clip.text, clip.speaker) == (f"Text {original}.", "ann")
        assert clip.seconds == pytest.approx(1 / style["rate"], rel=0.05)
        assert clip.custom["bandwidth_hz"] == pytest.approx(8_000 * 2 ** (style["pitch"] / 12))
        assert "words" not in clip.custom
        assert clip.custom["instruct"] in wordings(name, "train")
    asked = {clip.custom["instruct"] for clip in read_set(tmp_path / "out", "test")}
    assert asked <= {one for name in STYLES for one in wordings(name, "test")}
    assert work.run(lambda done, total: None) == []


def test_what_cannot_be_said_again_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = write_usual(tmp_path / "usual", 2)

    def run(root: Path, *folders: Path, rate_hz: int = RATE, times: float = 1) -> list[Made]:
        return Restyling(root, "asked", folders, times, rate_hz).run(lambda done, total: None)

    with pytest.raises(DataError, match="holds the clips as they are; give another --out"):
        run(usual, usual)
    with pytest.raises(DataError, match="there is no folder"):
        run(tmp_path / "out", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is nothing to say again in"):
        run(tmp_path / "out", tmp_path / "empty")
    run(tmp_path / "out", usual)
    with pytest.raises(DataError, match="holds speech at 24000 Hz, not 16000; give another"):
        run(tmp_path / "out", usual, rate_hz=16_000)
    monkeypatch.setattr(instructed, "_LONGEST_SECONDS", 0.1)
    made = run(tmp_path / "short", usual)
    assert [(one.clips, one.skipped) for one in made] == [(0, {"too long": 2})] * 2
    # What was asked for once is not asked for again.
    with pytest.raises(DataError, match="nothing to say again"):
        run(tmp_path / "again", tmp_path / "out")
