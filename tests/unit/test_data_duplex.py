"""Scenes of simulated conversations: repeatable, split by speaker, and as their times say."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from minmo.cli.main import app
from minmo.model.duplex_labels import Turn, duplex_labels
from minmo.training.data import duplex_asides, phonemes
from minmo.training.data.duplex import make_scenes
from minmo.training.data.duplex_asides import TEXTS, aside_kind, asides
from minmo.training.data.duplex_clips import read_cast
from minmo.training.data.duplex_planning import SHARES, SILENCE_SECONDS, Planner
from minmo.training.data.duplex_rendering import render
from minmo.training.data.duplex_scenes import Scene, Sounding, scene_of
from minmo.training.data.errors import DataError
from minmo.training.data.lines import SPLITS
from minmo.training.errors import TrainingError
from minmo.training.shar import read_set
from tests.unit.tiny_conversations import (
    EDGE,
    QUIET,
    RATE,
    WORD,
    said,
    scene,
    write_clips,
    write_speech,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return write_speech(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def many(folders: tuple[Path, ...]) -> list[Scene]:
    planner = Planner(read_cast(folders, "train"), "train", folders[0].parent / "scenes", 0)
    return [planner.scene(number) for number in range(600)]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.gz")}


def test_the_same_seed_gives_the_same_scenes_and_a_longer_set_begins_with_them(
    folders: tuple[Path, ...], tmp_path: Path
) -> None:
    told: list[float] = []
    made = make_scenes(tmp_path / "a", folders, 0.1, 5, lambda done, total: told.append(done))
    make_scenes(tmp_path / "b", folders, 0.1, 5)
    make_scenes(tmp_path / "c", folders, 0.1, 6)
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b")
    assert first != contents(tmp_path / "c")
    assert told == sorted(told)
    assert [one.split for one in made] == list(SPLITS)
    assert [one.seconds >= 360 * share for one, share in zip(made, (1, 0.1, 0.1), strict=True)]
    few = [clip.id for clip in read_set(tmp_path / "a", "train")]
    assert len(few) == made[0].scenes == sum(made[0].kinds.values())
    make_scenes(tmp_path / "b", folders, 0.2, 5)
    more = [clip.id for clip in read_set(tmp_path / "b", "train")]
    assert more[: len(few)] == few
    assert len(more) > len(few)
    # Less again: what is not wanted any more goes.
    make_scenes(tmp_path / "b", folders, 0.1, 5)
    assert contents(tmp_path / "b") == first


def test_shards_of_an_earlier_and_longer_set_are_removed(
    folders: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minmo.training.data.duplex.CLIPS", 5)
    make_scenes(tmp_path, folders, 0.05, 0)
    assert (tmp_path / "train.0002").is_dir()
    make_scenes(tmp_path, folders, 0.001, 0)
    assert [path.name for path in sorted(tmp_path.glob("train.*"))] == ["train.0000"]


def test_no_speaker_is_in_two_sets(folders: tuple[Path, ...], tmp_path: Path) -> None:
    make_scenes(tmp_path, folders, 0.2, 0)
    speakers: dict[str, set[str]] = {}
    for split in SPLITS:
        scenes = [scene_of(clip.custom["scene"], "") for clip in read_set(tmp_path, split)]
        clips = {one.clip for scene in scenes for one in scene.said}
        speakers[split] = {clip.rsplit("-", 1)[0] for clip in clips if clip.count("-") == 2}
        assert {clip.split("-")[0] for clip in clips} == {split}
        assert {scene.speaker for scene in scenes} <= {f"{split}-{n}" for n in range(3)}
    assert not speakers["train"] & (speakers["valid"] | speakers["test"])


def test_every_kind_is_drawn_as_often_as_it_should_be(many: list[Scene]) -> None:
    counts = Counter(scene.kind for scene in many)
    assert counts.keys() == SHARES.keys()
    for kind, share in SHARES.items():
        assert abs(counts[kind] / len(many) - share) < 0.06
    for one in many:
        by_kind: dict[str, Any] = {
            "pause": any(not pause.complete for pause in one.pauses),
            "filler": len(one.pauses) == 2 and any("filler" in said.clip for said in one.said),
            "go-on": any(pause.complete for pause in one.pauses),
            "back-channel": bool(one.back_channels),
            "interruption": one.assistant[0].start <= one.user[0].start < one.assistant[0].end,
        }
        assert by_kind.get(one.kind, True), one


def test_silence_alone_does_not_tell_whose_turn_it_is(many: list[Scene]) -> None:
    """As long where a sentence is not complete as where the turn is over."""
    within = [
        one.pauses[-1].end - one.pauses[-1].start for one in many if one.kind in ("pause", "filler")
    ]
    ends = [one.assistant[-1].start - one.user[-1].end for one in many if one.kind == "turn"]
    ends = [silence for silence in ends if silence >= SILENCE_SECONDS[0]]
    for found in (within, ends):
        assert SILENCE_SECONDS[0] - 1e-3 <= min(found)
        assert max(found) <= SILENCE_SECONDS[1] + 1e-3
    assert abs(np.mean(within) - np.mean(ends)) < 0.2
    at_once = [one for one in many if one.assistant[-1].start - one.user[-1].end < 0.3]
    assert 0.1 < len(at_once) / len(many) < 0.35


def test_a_pause_is_cut_between_two_words_and_nothing_is_lost(
    folders: tuple[Path, ...], many: list[Scene]
) -> None:
    root = folders[0].parent / "scenes"
    paused = [one for one in many if one.kind == "pause" and not one.sounds]
    for noisy in paused[:8]:
        one = scene_of({**noisy.to_json(), "place": QUIET.__dict__}, "")
        loud = np.abs(render(one, root).user) > 0.005
        (pause,), (turn,) = one.pauses, one.user
        inside = slice(round((pause.start + 0.03) * RATE), round((pause.end - 0.03) * RATE))
        if any(not part.clip.startswith(one.speaker) for part in one.said[:-1]):
            continue  # somebody speaks in the background
        assert not loud[inside].any()
        resumed = inside.stop + int(loud[inside.stop :].argmax())
        assert resumed / RATE == pytest.approx(pause.end, abs=0.01)
        assert loud[round(turn.start * RATE) :][: int(0.05 * RATE)].any()
        behind = slice(round((turn.end + 0.03) * RATE), round((turn.end + 0.2) * RATE))
        before_end = slice(round((turn.end - 0.05) * RATE), round(turn.end * RATE))
        assert loud[before_end].any()
        assert not loud[behind].any()
        words = len(turn.text.split())
        sounding = loud[: behind.stop].sum() / RATE
        assert 0.8 < sounding / (words * WORD) <= 1.02


def test_an_interrupted_answer_stops_and_its_text_is_the_whole_one(many: list[Scene]) -> None:
    interrupted = [one for one in many if one.kind == "interruption"]
    for one in interrupted:
        answer, reply = one.assistant
        assert one.asked
        assert answer.end <= answer.seconds
        (voice,) = (s for s in one.said if s.channel == "assistant" and s.at == 0)
        assert voice.end == answer.end
        assert reply.start >= max(answer.end, one.user[0].end)
    cut = [one.assistant[0].end - one.user[0].start for one in interrupted]
    assert 0.5 < np.mean(cut) < 1.3


def test_labels_stand_where_the_times_say(many: list[Scene]) -> None:
    times = torch.arange(0, 2000) * 0.01
    for one in many[:100]:
        turns = [[Turn(t.start, t.end) for t in side] for side in (one.user, one.assistant)]
        labels = duplex_labels(times, *turns, torch.Generator().manual_seed(0)).labels
        (turn,), reply = one.user, one.assistant[-1]
        answer = times[labels[:, 0] == 1]
        assert float(answer.min()) == pytest.approx(turn.end, abs=0.011)
        assert float(answer.max()) == pytest.approx(reply.start, abs=0.011)
        assert bool(labels[:, 1].any()) == (one.kind == "interruption")


def test_a_scene_sounds_the_same_every_time_and_as_its_recipe_says(
    folders: tuple[Path, ...], many: list[Scene]
) -> None:
    root = folders[0].parent / "scenes"
    noisy = next(one for one in many if one.place.noise is not None and one.place.rt60 is not None)
    once, again = render(noisy, root), render(noisy, root)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    parts = (
        said("train-0-0", 1.0, 0.9),
        said("train-1-1", 0.0, 1.6, "assistant"),
    )
    sound = Sounding("music", 2.0, 0.5, -30.0, 1)
    plain = scene(3.0, said=parts, sounds=(sound,))
    heard = render(plain, root)
    assert len(heard.user) == len(heard.assistant) == 3 * RATE
    assert not heard.user[: round((1.0 + EDGE) * RATE)].any()
    assert not heard.assistant[round(1.6 * RATE) :].any()
    music = heard.user[2 * RATE : round(2.5 * RATE)]
    assert 20 * np.log10(np.sqrt(np.mean(music**2))) == pytest.approx(-30, abs=1)
    assert not heard.user[round(2.55 * RATE) :].any()
    echo = scene_of(
        {**plain.to_json(), "place": {**QUIET.__dict__, "echo": 20.0, "echo_delay": 0.2}}, ""
    )
    back = render(echo, root).user - heard.user
    assert not back[: round(0.2 * RATE)].any()
    after = back[round(0.3 * RATE) : round(1.2 * RATE)]
    voice = heard.assistant[round(0.1 * RATE) : round(1.0 * RATE)]
    softer = 10 * np.log10(np.mean(voice**2) / np.mean(after**2))
    # The loudspeaker leaves out what is low and high.
    assert 20 <= softer < 26
    assert np.array_equal(render(echo, root).assistant, heard.assistant)


def test_other_clips_than_the_scenes_were_made_of_are_refused(tmp_path: Path) -> None:
    folders = write_speech(tmp_path)
    make_scenes(tmp_path / "scenes", folders, 0.01, 0)
    clip = read_set(tmp_path / "scenes", "train")[0]
    found = scene_of(clip.custom["scene"], "")
    render(found, tmp_path / "scenes")
    shutil.rmtree(folders[0] / "valid.0000")
    shutil.move(folders[0] / "train.0000", tmp_path / "elsewhere")
    other = tmp_path / "copy" / "scenes"
    shutil.copytree(tmp_path / "scenes", other)
    write_clips(tmp_path / "copy" / "speech" / "train.0000", [("x", "y", "A cat.", {})])
    shutil.copytree(folders[1], tmp_path / "copy" / "asides")
    with pytest.raises(TrainingError, match=r"as it was when the scenes .* `minmo data duplex`"):
        render(found, other)


def test_what_scenes_cannot_do_without_is_asked_for(tmp_path: Path) -> None:
    (speech,) = write_speech(tmp_path, asides=False)
    with pytest.raises(DataError, match="a back-channel: make them with `minmo data asides`"):
        make_scenes(tmp_path / "scenes", [speech], 0.1, 0)
    with pytest.raises(DataError, match="holds clips: give another --out"):
        make_scenes(speech, [speech], 0.1, 0)
    with pytest.raises(DataError, match=r"train\.0000 holds clips, not scenes"):
        make_scenes(speech, [tmp_path / "other"], 0.1, 0)
    with pytest.raises(DataError, match="there is no folder"):
        make_scenes(tmp_path / "scenes", [tmp_path / "other"], 0.1, 0)
    write_clips(tmp_path / "few" / "train.0000", [("x", "y", "a cat sat, and", {})])
    with pytest.raises(DataError, match="train has whole sentences of 0 speakers"):
        make_scenes(tmp_path / "scenes", [tmp_path / "few"], 0.1, 0)
    assert not (tmp_path / "scenes").exists()


def test_asides_are_said_by_the_voices_of_each_set_alone() -> None:
    lines = list(asides(3, 0, voices=5))
    assert lines == list(asides(3, 0, voices=5))
    assert len({line.id for line in lines}) == len(lines) == 3 * 5 * 3 * len(TEXTS)
    voices = {split: {line.voice for line in lines if line.split == split} for split in SPLITS}
    assert not voices["train"] & voices["test"]
    for line in lines:
        kind = aside_kind(line.source)
        assert kind is not None
        assert line.text in TEXTS[kind]
    assert aside_kind("moby_dick") is aside_kind("filler") is aside_kind("asides-cough") is None


def cli(*arguments: str) -> tuple[int, str, Exception | None]:
    result = CliRunner().invoke(app, ["data", *arguments])
    error = result.exception if isinstance(result.exception, Exception) else None
    return result.exit_code, result.stdout, error


def test_the_commands_make_scenes_to_train_with_and_to_listen_to(
    folders: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scenes"
    places = [str(folder) for folder in folders]
    status, shown, error = cli(
        "duplex", *places, "--out", str(out), "--hours", "0.01", "--hear", "1", "--json"
    )
    assert (status, error) == (0, None)
    told = json.loads(shown)
    assert told["sets"]["train"]["scenes"] == len(read_set(out, "train"))
    assert len(list((out / ".heard").glob("*.wav"))) == 3
    status, shown, _ = cli("duplex", *places, "--out", str(out), "--hours", "0.01")
    assert status == 0
    assert f"in {out}" in shown
    _, _, error = cli("duplex", places[0], "--out", places[0])
    assert "give another --out" in str(error)

    made: list[int] = []
    monkeypatch.setattr(
        phonemes, "make_phonemes", lambda path, lines, say, shown: made.append(len(lines))
    )
    texts = tmp_path / "asides.jsonl.gz"
    status, shown, _ = cli("asides", "--out", str(texts), "--voices", "2", "--each", "1", "--json")
    assert status == 0
    assert json.loads(shown)["utterances"] == made[0] == 3 * 2 * 3
    with gzip.open(texts, "rt") as rows:
        assert all(duplex_asides.aside_kind(json.loads(row)["source"]) for row in rows)
