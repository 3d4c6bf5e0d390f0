"""Sets of clips, and results that are kept."""

import json
from pathlib import Path

import numpy as np
import pytest

from minmo.audio.pcm import AudioError, write_file
from minmo.evaluation.clips import Choice, read_sets
from minmo.evaluation.errors import EvaluationError
from minmo.evaluation.results import Results, without_nan
from minmo.evaluation.variations import faster, pair_ids, pairs, quieter
from tests.listening import DATA
from tests.unit.evaluation_modules import noise

ANSWERS = ["Pearl Harbor", "Hawaii"]


def write_shard(folder: Path, ids: list[str]) -> None:
    """A shard as the product makes them: one supervision, FLAC in a tar."""
    lhotse = pytest.importorskip("lhotse")
    from lhotse.shar import SharWriter

    folder.mkdir(parents=True)
    with SharWriter(str(folder), fields={"recording": "flac"}, shard_size=None) as writer:
        for number, name in enumerate(ids):
            path = folder.parent / f"{name}.flac"
            write_file(path, noise(8000 + number, seed=number), 16_000)
            recording = lhotse.Recording.from_bytes(path.read_bytes(), name)
            cut = recording.to_cut()
            cut.id = name
            custom = {"kind": "question" if number % 2 else "turn", "source": "trivia"}
            if number % 2:
                custom["answers"] = ANSWERS
            text = f"Clip {name}?"
            cut.supervisions = [
                lhotse.SupervisionSegment(
                    name, name, 0, recording.duration, text=text, custom=custom
                )
            ]
            writer.write(cut)
            path.unlink()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    write_shard(folder / "test.0000", ["a", "b", "c"])
    write_shard(folder / "test.0001", ["d", "e"])
    write_shard(folder / "valid.0000", ["v"])
    (folder / ".tmp-test.0002").mkdir()
    (folder / ".tmp-test.0002" / "cuts.jsonl.gz").touch()
    return folder


def test_shards_with_one_name_are_one_set(root: Path) -> None:
    test, valid = read_sets([root], Choice())
    assert (test.name, valid.name) == ("test", "valid")
    assert [clip.id for clip in test.clips] == ["a", "b", "c", "d", "e"]
    clip = test.clips[1]
    assert (clip.text, clip.kind, clip.source) == ("Clip b?", "question", "trivia")
    assert clip.answers == tuple(ANSWERS)
    heard = {clip.id: samples for clip, samples in test.read()}
    assert [len(samples) for samples in heard.values()] == [8000, 8001, 8002, 8000, 8001]
    np.testing.assert_allclose(heard["b"], noise(8001, seed=1), atol=1e-4)
    assert heard["b"].dtype == np.float32


def test_some_of_a_set_may_be_read(root: Path) -> None:
    (test,) = read_sets([root / "test.0001", root / "test.0000"], Choice())
    assert [clip.id for clip, _ in test.read(frozenset({"c", "d"}))] == ["d", "c"]
    assert list(test.read(frozenset())) == []


def test_clips_are_chosen_by_set_kind_source_answers_and_at_random(root: Path) -> None:
    def ids(**choice: object) -> list[list[str]]:
        sets = read_sets([root], Choice(**choice))  # type: ignore[arg-type]
        return [[clip.id for clip in one.clips] for one in sets]

    assert ids(kinds=frozenset({"question"})) == [["b", "e"]]
    assert ids(with_answers=True) == [["b", "e"]]
    assert ids(sets=frozenset({"valid"})) == [["v"]]
    few, more = ids(limit=2)[0], ids(limit=4)[0]
    assert len(few) == 2 and set(few) < set(more)
    assert {tuple(ids(limit=2, seed=seed)[0]) for seed in range(9)} != {tuple(few)}
    with pytest.raises(EvaluationError, match="none has kind song and right answers"):
        ids(kinds=frozenset({"song"}), with_answers=True)


def test_recordings_with_a_table_are_a_set() -> None:
    (found,) = read_sets([DATA], Choice())
    assert (found.name, len(found.clips)) == ("data", 6)
    clip, samples = next(iter(found.read()))
    assert clip.text == "you don't mean that you thought me so silly"
    assert 16_000 < len(samples) < 16_000 * 10


def test_a_table_may_name_ids_and_right_answers(tmp_path: Path) -> None:
    (tmp_path / "quiz").mkdir()
    write_file(tmp_path / "quiz" / "one.wav", noise(24_000), 24_000)
    (tmp_path / "quiz.csv").write_text("id,text,answers\none,Who?,Ann | Bob\n")
    (found,) = read_sets([tmp_path], Choice())
    ((clip, samples),) = found.read()
    assert (clip.answers, len(samples)) == (("Ann", "Bob"), 16_000)


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="there is no folder"):
        read_sets([tmp_path / "none"], Choice())
    with pytest.raises(EvaluationError, match="holds no clips"):
        read_sets([tmp_path], Choice())
    table = tmp_path / "clips.csv"
    table.write_text("id,words\none,Who?\n")
    with pytest.raises(EvaluationError, match="has the columns id, words; it needs text"):
        read_sets([tmp_path], Choice())
    table.write_text("id,text\none,Who?\n")
    with pytest.raises(EvaluationError, match="names 'one', and there is no such recording"):
        read_sets([tmp_path], Choice())
    (tmp_path / "one.wav").write_text("no audio")
    with pytest.raises(AudioError, match="cannot be read as audio"):
        list(read_sets([tmp_path], Choice())[0].read())
    (tmp_path / "test.0000").mkdir()
    (tmp_path / "test.0000" / "cuts.jsonl.gz").write_text("no archive")
    with pytest.raises(EvaluationError, match="make the shard again"):
        read_sets([tmp_path / "test.0000"], Choice())


def test_results_outlive_a_run_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "asr" / "aligned.jsonl"
    with Results(path, {"llm": "abc"}) as results:
        results.add("a", text="one")
        results.add("b", text="tw\u00f6")
    path.write_bytes(path.read_bytes() + b'{"clip": "c", "te')
    with Results(path, {"llm": "abc"}) as results:
        assert results.keys() == {"a", "b"}
        assert results["b"] == {"text": "tw\u00f6"}
        results.add("c", text="three")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"made_with": {"llm": "abc"}}
    assert [line["clip"] for line in lines[1:]] == ["a", "b", "c"]


def test_results_of_other_weights_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "aligned.jsonl"
    with Results(path, {"llm": "abc", "head": "1"}):
        pass
    with pytest.raises(EvaluationError, match="was made with another llm; give another --out"):
        Results(path, {"llm": "def", "head": "1"})
    path.write_text("hello\n")
    with pytest.raises(EvaluationError, match=r"line 1 of .* is no result"):
        Results(path, {"llm": "abc"})


def test_json_has_no_nan() -> None:
    assert without_nan({"a": [float("nan"), 1.0], "b": "x"}) == {"a": [None, 1.0], "b": "x"}


def test_pairs_are_recordings_of_one_text_or_one_recording_changed(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write_file(tmp_path / f"{name}.wav", noise(16_000, seed=len(name)), 16_000)
    (tmp_path / "t.csv").write_text("id,text\none,Who's there?\ntwo,Me.\nthree,who's there\n")
    (found,) = read_sets([tmp_path], Choice())
    names = pair_ids(found, 1)
    assert names == ["spoken again/three", "faster/one", "quieter/one"]
    made = {pair.id: pair for pair in pairs(found, frozenset(names))}
    assert set(made) == set(names)
    again = made["spoken again/three"]
    assert again.clip.id == "one" and not np.allclose(again.first, again.second)
    assert len(made["faster/one"].second) == len(faster(again.first)) == 14_545
    np.testing.assert_allclose(quieter(again.first), again.first * 0.2512, rtol=1e-3)
