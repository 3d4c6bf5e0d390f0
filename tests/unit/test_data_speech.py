"""Speech made of texts: seeded, whole shards or none, and on from where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from minmo.training.data import phonemes as phonemes_module
from minmo.training.data import synthesis
from minmo.training.data.errors import DataError
from minmo.training.data.jsonl import write_lines
from minmo.training.data.phonemes import beside, phonemes_of, read_texts
from minmo.training.data.shards import is_made, sole_writer
from minmo.training.data.summary import summarise
from minmo.training.data.synthesis import Job, jobs_of, make_shard, make_shards
from minmo.training.data.voice import (
    Symbols,
    UnsayableError,
    Voice,
    parse_symbols,
    with_durations,
    with_noise_as_input,
)
from minmo.weights.errors import WeightsError
from tests.unit.tiny_speaker import SAMPLES_A_PHONEME, lines, network, phonemes, write_tiny_voice

lhotse = pytest.importorskip("lhotse")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_voice(tmp_path / "voice")


def job(count: int = 4, shard: str = "train.0000") -> Job:
    return Job(shard, tuple(lines(count)), tuple(map(tuple, phonemes(count))))


def test_an_utterance_depends_on_its_seed_alone(folder: Path) -> None:
    ids = [[1, *range(3, 40), 2]]
    voice = Voice(folder)
    first = voice.say(ids, 5, 1.0, seed=7).samples
    assert not np.array_equal(voice.say(ids, 5, 1.0, seed=8).samples, first)
    assert np.array_equal(voice.say(ids, 5, 1.0, seed=7).samples, first)
    assert np.array_equal(Voice(folder).say(ids, 5, 1.0, seed=7).samples, first)
    assert len(first) == pytest.approx(len(ids[0]) * SAMPLES_A_PHONEME * 16000 / 22050, abs=2)


def test_the_published_network_cannot_be_seeded_which_is_why_noise_is_given(folder: Path) -> None:
    session = onnxruntime.InferenceSession(network().SerializeToString())
    given = {
        "input": np.ones((1, 4), np.int64),
        "input_lengths": np.array([4]),
        "scales": np.ones(3, np.float32),
        "sid": np.array([0]),
    }
    onnxruntime.set_seed(1)
    first = session.run(None, given)[0]
    onnxruntime.set_seed(1)
    assert not np.array_equal(session.run(None, given)[0], first)


def test_sentences_are_parted_by_a_pause_and_nothing_clips(folder: Path) -> None:
    voice = Voice(folder)
    ids = [1, *range(3, 23), 2]
    said = voice.say([ids, ids], 0, 50.0, seed=0).samples
    alone = voice.say([ids], 0, 50.0, seed=0).samples
    assert len(said) - 2 * len(alone) == pytest.approx(0.12 * 16000, abs=3)
    assert np.abs(said).max() == pytest.approx(0.99)
    middle = said[len(alone) + 200 : len(alone) + 1700]
    assert np.abs(middle).max() < 0.01


def test_every_word_says_when_it_is_heard(folder: Path) -> None:
    symbols = Symbols.of(folder)
    said = Voice(folder).say([symbols.ids("ab c"), symbols.ids("d")], 0, 1.0, seed=0)
    sound = SAMPLES_A_PHONEME / 22050
    # ^ _ a _ b _ space _ c _ $, a pause, ^ _ d _ $
    second = 11 * sound + 0.12
    expected = [(2, 5), (8, 9), (second / sound + 2, second / sound + 3)]
    for word, (start, end) in zip(said.words, expected, strict=True):
        assert word == pytest.approx((start * sound, end * sound), abs=1e-6)


def test_a_network_that_hides_how_long_its_sounds_are_is_refused(tmp_path: Path) -> None:
    model = network()
    del model.graph.node[[node.op_type for node in model.graph.node].index("Ceil")]
    onnx.save_model(model, tmp_path / "voice.onnx")
    with pytest.raises(WeightsError, match="how long its sounds are"):
        with_durations(tmp_path / "voice.onnx")


@pytest.mark.parametrize("ids", [[], [[]], [[1, *[3] * 400, 2]]])
def test_what_cannot_be_said_is_refused(folder: Path, ids: list[list[int]]) -> None:
    with pytest.raises(UnsayableError):
        Voice(folder).say(ids, 0, 1.0, seed=0)


def test_another_network_is_refused_by_name() -> None:
    model = network()
    del model.graph.node[3]
    with pytest.raises(WeightsError, match="no node '/dp/RandomNormalLike'"):
        with_noise_as_input(model)


def test_phonemes_become_numbers_and_unknown_ones_are_counted() -> None:
    symbols = Symbols(parse_symbols("_ 0\n^ 1\n$ 2\n  3\na 4\n"))
    assert symbols.ids("a a?") == [1, 0, 4, 0, 3, 0, 4, 0, 2]
    assert symbols.unknown == {"?": 1}
    with pytest.raises(DataError, match=r"lack \['\$'\]"):
        parse_symbols("_ 0\n^ 1\n")


def test_a_shard_is_read_by_lhotse_with_all_that_is_known(folder: Path, tmp_path: Path) -> None:
    made = make_shard(tmp_path, job(3), Voice(folder), Symbols.of(folder))
    cuts = list(lhotse.CutSet.from_shar(in_dir=tmp_path / "train.0000"))
    assert [cut.id for cut in cuts] == ["train-000000", "train-000001", "train-000002"]
    said = cuts[1].supervisions[0]
    assert (said.text, said.speaker, said.language) == ("Text 1.", "libritts-1", "en")
    words = said.custom.pop("words")
    assert said.custom == {"kind": "question", "source": "quiz", "answers": ["answer 1"]}
    assert len(words) == 2 and 0 < words[0][0] < words[0][1] < words[1][0]
    assert cuts[1].sampling_rate == 16000
    audio = cuts[1].load_audio()
    assert audio.shape == (1, cuts[1].num_samples)
    assert 0.4 < audio.shape[1] / 16000 < 14
    assert (made.clips, made.skipped) == (3, {})
    assert made.seconds == pytest.approx(sum(cut.duration for cut in cuts))


def test_the_same_texts_make_the_same_audio(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_shard(tmp_path / name, job(2), Voice(folder), Symbols.of(folder))
    first, second = ((tmp_path / name / "train.0000") for name in ("one", "two"))
    loaded = [
        [cut.load_audio() for cut in lhotse.CutSet.from_shar(in_dir=path)]
        for path in (first, second)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*loaded, strict=True))


def test_what_is_too_short_or_unsayable_is_left_out_and_counted(
    folder: Path, tmp_path: Path
) -> None:
    said = (("abcd efgh",), ("a",), (), ("abcd efgh" * 50,), ("abcdefgh" * 12,) * 4)
    made = make_shard(
        tmp_path, Job("train.0000", tuple(lines(5)), said), Voice(folder), Symbols.of(folder)
    )
    assert made.clips == 1
    assert made.skipped == {"too short": 1, "cannot be said": 2, "too long": 1}
    assert summarise(tmp_path).skipped == made.skipped


def test_nothing_is_left_of_a_shard_that_was_stopped(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "speech"

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shard(root, job(), Voice(folder), Symbols.of(folder), stop)
    assert list(root.iterdir()) == []


def test_sets_are_cut_into_shards_and_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "CLIPS", 4)
    everything = [*lines(5, "test"), *lines(3, "valid"), *lines(18)]
    jobs = jobs_of(everything, phonemes(26), limit=14)
    assert [(one.shard, len(one.lines)) for one in jobs] == [
        ("train.0000", 4),
        ("train.0001", 4),
        ("valid.0000", 3),
        ("test.0000", 4),
        ("test.0001", 1),
        ("train.0002", 4),
        ("train.0003", 2),
    ]
    assert all(line.split == one.shard.split(".")[0] for one in jobs for line in one.lines)


def test_workers_make_what_is_missing_or_has_changed(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "speech"
    for one in (job(3), job(2, "train.0001")):
        make_shard(root, one, Voice(folder, 24_000), Symbols.of(folder))
    before = (root / "train.0000/recording.tar").stat().st_mtime_ns
    told: list[synthesis.Progress] = []
    jobs = [job(3), job(4, "train.0001"), job(2, "train.0002")]
    made = make_shards(root, jobs, folder, 2, told.append, 24_000)
    assert [one.clips for one in made] == [4, 2]
    assert (told[-1].done, told[-1].total) == (6, 6)
    assert told[-1].seconds == pytest.approx(sum(one.seconds for one in made))
    assert (root / "train.0000/recording.tar").stat().st_mtime_ns == before
    assert make_shards(root, jobs, folder, 2, told.append, 24_000) == []
    assert summarise(root).totals()[0].clips == 9
    for cut in lhotse.CutSet.from_shar(in_dir=root / "train.0002"):
        assert cut.sampling_rate == 24_000
        assert cut.supervisions[0].custom["bandwidth_hz"] == 11_025
    with pytest.raises(DataError, match="holds speech at 24000 Hz, not 16000; give another --out"):
        make_shards(root, jobs, folder, 2, told.append)


def test_a_folder_of_others_or_of_another_process_is_left_alone(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a/train.0000").mkdir(parents=True)
    with pytest.raises(DataError, match="is there, but not from here; give another --out"):
        make_shards(tmp_path / "a", [job()], folder, 1, lambda _: None)
    with (
        sole_writer(tmp_path / "b"),
        pytest.raises(DataError, match="another process is writing"),
    ):
        make_shards(tmp_path / "b", [job()], folder, 1, lambda _: None)


SCRIPT = """
import sys
from pathlib import Path
from minmo.training.data import synthesis
from tests.unit.tiny_speaker import lines, phonemes

if __name__ == "__main__":
    synthesis.CLIPS = 40
    jobs = synthesis.jobs_of(lines(4000), phonemes(4000))
    synthesis.make_shards(Path(sys.argv[1]), jobs, Path(sys.argv[2]), 2, lambda _: None)
"""


def test_after_a_kill_whole_shards_stay_and_the_workers_end(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "speech"
    (tmp_path / "run.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(root), str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while len(list(root.glob("train.*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) >= 2
    assert not any(alive(child) for child in children)
    whole = list(root.glob("train.*"))
    assert 2 <= len(whole) < 100
    with sole_writer(root):
        assert not list(root.glob(".unfinished*"))
    for path in whole:
        first = 40 * int(path.name[-4:])
        chosen = tuple(lines(4000)[first : first + 40])
        known = Job(path.name, chosen, (("abcd efgh",),) * 40)
        assert is_made(root, path.name, synthesis.NAME, known.digest())
        assert len(list(lhotse.CutSet.from_shar(in_dir=path))) == 40


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_phonemes_belong_to_the_texts_that_they_were_made_of(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    write_lines(path, (line.to_json() for line in lines(2)))
    said = read_texts(path)
    assert said == lines(2)
    assert phonemes_of(path, said) is None
    path.write_text(path.read_text() * 2)
    with pytest.raises(DataError, match="ids stand there twice"):
        read_texts(path)
    assert beside(Path("a/texts.jsonl.gz")) == Path("a/texts.phonemes.jsonl.gz")


@pytest.mark.parametrize("together", [500, 1])
def test_the_voice_reads_what_is_said_for_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    # More than one batch is worked on by several processes.
    monkeypatch.setattr(phonemes_module, "_BATCH", together)
    asked: list[str] = []

    class Phonemizer:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Phonemizer:
            return self

        def __exit__(self, *_: object) -> None: ...
        def ask(self, question: dict[str, list[str]]) -> dict[str, list[list[str]]]:
            asked.extend(question["texts"])
            return {"phonemes": [[text] for text in question["texts"]]}

    monkeypatch.setattr(phonemes_module, "Conversation", Phonemizer)
    monkeypatch.setattr(phonemes_module, "installed", lambda *_: tmp_path)
    written = ("Is it true?", "Dr. Lee paid $3.50 in 1984.")
    said = [replace(line, text=text) for line, text in zip(lines(2), written, strict=True)]
    path = tmp_path / "texts.jsonl"
    made = phonemes_module.make_phonemes(path, said, print, lambda done, total: None)
    assert asked[0] == "Is it true?"
    assert asked[1].startswith("Doctor Lee paid three dollars")
    assert asked[1].endswith("nineteen eighty four.")
    assert phonemes_of(path, said) == made == [[asked[0]], [asked[1]]]
    assert phonemes_of(path, said[::-1]) is None


def test_the_summary_tells_of_each_source_and_of_shared_speakers(
    folder: Path, tmp_path: Path
) -> None:
    voice, symbols = Voice(folder), Symbols.of(folder)
    make_shard(tmp_path, job(3), voice, symbols)
    test = Job("test.0000", tuple(lines(2, "test")), tuple(map(tuple, phonemes(2))))
    make_shard(tmp_path, test, voice, symbols)
    summary = summarise(tmp_path)
    assert [(share.split, share.clips) for share in summary.totals()] == [("test", 2), ("train", 3)]
    assert summary.shared_speakers() == ["libritts-0", "libritts-1"]
    told = json.loads(json.dumps(summary.to_json()))
    assert told["sources"][0] | {"hours": 0} == {
        "split": "test", "source": "quiz", "kind": "question", "clips": 2, "hours": 0,
        "speakers": 2,
    }  # fmt: skip
    with pytest.raises(DataError, match="has no shards"):
        summarise(tmp_path / "voice")
