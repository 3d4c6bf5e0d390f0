"""Recordings of any kind become shards; those that cannot be used are left out and counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from minmo.audio.pcm import AudioError
from minmo.training.data import asterisk
from minmo.training.data.agreement import LABELS, Agreement, apart
from minmo.training.data.errors import DataError
from minmo.training.data.recordings import Columns, Import, Recorded, find_recordings
from minmo.training.data.shards import Made

lhotse = pytest.importorskip("lhotse")


def tone(seconds: float, rate_hz: int, channels: int = 1) -> np.ndarray:
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate_hz)) / rate_hz)
    return np.repeat(samples[:, None], channels, axis=1).astype(np.float32)


def brought(root: Path, found: list[Recorded], transcribe: object = None) -> list[Made]:
    return Import(root, "mine", found, transcribe).run(lambda done, total: None)  # type: ignore[arg-type]


def test_any_rate_and_stereo_become_16_khz_mono(tmp_path: Path) -> None:
    left_only = tone(1.0, 44100, 2) * np.array([1, 0], np.float32)
    soundfile.write(tmp_path / "stereo.wav", left_only, 44100)
    soundfile.write(tmp_path / "narrow.flac", tone(1.0, 8000), 8000)
    (tmp_path / "list.csv").write_text(
        'id,text,speaker\nstereo,"Hello, there.",anna\nnarrow.flac,Good day.,\n'
    )
    found = find_recordings(tmp_path / "list.csv", Columns(), "test")
    brought(tmp_path / "out", found)
    cuts = list(lhotse.CutSet.from_shar(in_dir=tmp_path / "out/test.0000"))
    assert [cut.id for cut in cuts] == ["mine-narrow", "mine-stereo"]
    assert [(cut.sampling_rate, cut.num_samples, cut.num_channels) for cut in cuts] == [
        (16000, 16000, 1)
    ] * 2
    said = cuts[1].supervisions[0]
    assert (said.text, said.speaker) == ("Hello, there.", "mine-anna")
    assert said.custom == {"kind": "sentence", "source": "mine"}
    assert cuts[0].supervisions[0].speaker == "mine"
    # Half of what the one channel had, for the mean of both.
    assert np.abs(cuts[1].load_audio()[0, 4000:12000]).max() == pytest.approx(0.25, abs=0.01)
    spectrum = np.abs(np.fft.rfft(cuts[1].load_audio()[0]))
    assert spectrum.argmax() == 440


def test_what_is_no_speech_is_left_out_and_counted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "short.wav", tone(0.2, 16000), 16000)
    soundfile.write(tmp_path / "long.wav", tone(31, 16000), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, "FLOAT")
    (tmp_path / "broken.flac").write_bytes(b"no sound at all")
    soundfile.write(tmp_path / "good.wav", tone(1, 16000), 16000)
    soundfile.write(tmp_path / "silent.wav", tone(1, 16000) * 0, 16000)
    names = ("empty", "short", "long", "nan", "broken", "good")
    rows = "".join(f"{name},some words\n" for name in names)
    (tmp_path / "metadata.csv").write_text(f"id,text\n{rows}silent,\n")
    (made,) = brought(tmp_path / "out", find_recordings(tmp_path, Columns(), "train"))
    assert made.clips == 1
    assert made.skipped == {
        "too short": 2,
        "too long": 1,
        "cannot be read": 2,
        "no transcript": 1,
    }


def test_a_folder_is_transcribed_where_recognisers_agree(tmp_path: Path) -> None:
    for name in ("12-a", "12-b", "34-c"):
        soundfile.write(tmp_path / f"{name}.ogg", tone(1, 24000), 24000)
    heard = {"text": iter(["What time is it?", "", "I do not know that."])}

    class Moonshine:
        def transcribe(self, samples: np.ndarray) -> str:
            assert samples.shape == (16000,)
            return next(heard["text"])

    class Whisper:
        def ask(self, question: dict[str, str]) -> dict[str, str]:
            assert len(question["pcm"]) > 40_000
            return {"text": "what time is it"}

    found = find_recordings(tmp_path, Columns(), "train")
    assert {one.speaker for one in found} == {"12", "34"}
    both = Agreement(Moonshine(), Whisper())  # type: ignore[arg-type]
    work = Import(tmp_path / "out", "mine", found, both, about=LABELS)
    (made,) = work.run(lambda done, total: None)
    assert (made.clips, made.skipped) == (1, {"transcripts disagree": 2})
    (cut,) = lhotse.CutSet.from_shar(in_dir=tmp_path / "out/train.0000")
    assert cut.supervisions[0].text == "What time is it?"
    assert cut.supervisions[0].custom["labels"] == LABELS
    assert work.run(lambda done, total: None) == []


def test_a_rate_is_chosen_and_a_folder_keeps_it(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "wide.wav", tone(1.0, 48000), 48000)
    soundfile.write(tmp_path / "narrow.wav", tone(1.0, 16000), 16000)
    (tmp_path / "list.csv").write_text("id,text\nwide,Hello.\nnarrow,Good day.\n")
    found = find_recordings(tmp_path / "list.csv", Columns(), "train")
    (made,) = Import(tmp_path / "out", "mine", found, rate_hz=24000).run(lambda done, total: None)
    assert made.rate_hz == 24000
    narrow, wide = lhotse.CutSet.from_shar(in_dir=tmp_path / "out/train.0000")
    assert [(cut.sampling_rate, cut.num_samples) for cut in (narrow, wide)] == [(24000, 24000)] * 2
    # What was never recorded is told, so that nothing learns from it.
    assert narrow.supervisions[0].custom["bandwidth_hz"] == 8000
    assert "bandwidth_hz" not in wide.supervisions[0].custom
    assert np.abs(np.fft.rfft(narrow.load_audio()[0])).argmax() == 440
    for split in ("train", "test"):
        at_16_khz = find_recordings(tmp_path / "list.csv", Columns(), split)
        with pytest.raises(DataError, match="holds speech at 24000 Hz, not 16000; give another"):
            brought(tmp_path / "out", at_16_khz)


def test_shards_from_before_rates_are_known_again(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(1, 16000), 16000)
    found = [Recorded("x", tmp_path / "x.wav", "Hello.", "train", "")]
    brought(tmp_path / "out", found)
    path = tmp_path / "out/.made/train.0000.json"
    told = json.loads(path.read_text())
    assert told.pop("rate_hz") == 16000
    path.write_text(json.dumps(told))
    assert brought(tmp_path / "out", found) == []


def test_texts_are_found_as_ljspeech_and_others_keep_them(tmp_path: Path) -> None:
    for name in ("LJ-1", "LJ-2", "LJ-3"):
        soundfile.write(tmp_path / f"{name}.wav", tone(1, 16000), 16000)
    table = tmp_path / "metadata.csv"
    table.write_text('LJ-1|He said "1984".|He said nineteen eighty-four.\nLJ-2|Yes, Dr. Lee.|\n')
    found = find_recordings(tmp_path, Columns(), "train")
    assert [(one.id, one.text) for one in found] == [
        ("LJ-1", 'He said "1984".'),
        ("LJ-2", "Yes, Dr. Lee."),
    ]
    table.write_text("id|text|split\nLJ-3|No, thanks.|test\n")
    (headed,) = find_recordings(tmp_path, Columns(), "train")
    assert (headed.id, headed.text, headed.split) == ("LJ-3", "No, thanks.", "test")
    table.unlink()
    (tmp_path / "LJ-1.txt").write_text("\ufeffGood  day.\n", "utf-8")
    (tmp_path / "LJ-2.txt").write_text("\n")
    assert [one.text for one in find_recordings(tmp_path, Columns(), "train")] == [
        "Good day.",
        None,
        None,
    ]
    (tmp_path / "LJ-3.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"LJ-3\.txt is no text in UTF-8"):
        find_recordings(tmp_path, Columns(), "train")


def test_what_is_heard_otherwise_than_its_text_is_left_out(tmp_path: Path) -> None:
    heard = {"a": ("Where is the cat", "x"), "b": ("noise", "where is the cat"), "c": ("no", "yes")}
    rows = "".join(f"{name},Where is the cat?\n" for name in heard)
    for name in heard:
        soundfile.write(tmp_path / f"{name}.wav", tone(1, 24000), 24000)
    (tmp_path / "metadata.csv").write_text(f"id,text\n{rows}")
    answers = iter(heard.values())

    class Moonshine:
        def transcribe(self, samples: np.ndarray) -> str:
            assert samples.shape == (16000,)
            self.now = next(answers)
            return self.now[0]

    class Whisper:
        def ask(self, question: dict[str, str]) -> dict[str, str]:
            return {"text": moonshine.now[1]}

    moonshine = Moonshine()
    both = Agreement(moonshine, Whisper())  # type: ignore[arg-type]
    found = find_recordings(tmp_path, Columns(), "train")
    work = Import(tmp_path / "out", "mine", found, hears=both.hears)
    (made,) = work.run(lambda done, total: None)
    assert (made.clips, made.skipped) == (2, {"says something else": 1})
    assert work.run(lambda done, total: None) == []


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("What time is it?", "what time is it", 0),
        ("It's ten o'clock.", "its ten oclock", 0),
        ("one two three four", "one two four", 0.25),
        ("one two", "one two three four", 0.5),
        ("a b c", "x y z", 1),
        ("", "word", 1),
        ("", "", 0),
    ],
)
def test_distance_counts_words(one: str, other: str, distance: float) -> None:
    assert apart(one, other) == apart(other, one) == distance


def test_splits_have_their_usual_names(tmp_path: Path) -> None:
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", tone(1, 16000), 16000)
    table = tmp_path / "list.csv"
    table.write_text("name,said,set\na,One.,validation\nb,Two.,TEST\nc,Three.,\n")
    columns = Columns("name", "said", "set")
    found = find_recordings(table, columns, "train")
    assert [(one.id, one.text, one.split) for one in found] == [
        ("a", "One.", "valid"),
        ("b", "Two.", "test"),
        ("c", "Three.", "train"),
    ]
    table.write_text("name,said,set\na,One.,eval\n")
    with pytest.raises(DataError, match="'a' is in the split 'eval'; it must be one of train"):
        find_recordings(table, columns, "train")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("name,text\nx,hello\n")
    with pytest.raises(DataError, match="no column 'id'; it has name, text"):
        find_recordings(table, Columns(), "train")
    with pytest.raises(DataError, match="no recording 'x' in"):
        find_recordings(table, Columns("name"), "train")
    with pytest.raises(DataError, match="no file or folder"):
        find_recordings(tmp_path / "none.csv", Columns(), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no recordings"):
        find_recordings(tmp_path / "empty", Columns(), "train")
    soundfile.write(tmp_path / "x.wav", tone(1, 16000), 16000)
    table.write_text("id,text\nx,hello\nx,again\n")
    with pytest.raises(DataError, match="'x' stands there 2 times"):
        find_recordings(table, Columns(), "train")


def test_one_folder_holds_the_recordings_of_one_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(1, 16000), 16000)
    found = [Recorded("x", tmp_path / "x.wav", "Hello.", "train", "")]
    brought(tmp_path / "out", found)
    with pytest.raises(DataError, match="holds 'mine', not 'other'"):
        Import(tmp_path / "out", "other", found).run(lambda done, total: None)


def test_prompts_without_words_are_left_out(tmp_path: Path) -> None:
    listed = "; a remark\n\nvm-bye: Good bye.\nbeep: [a beep]\nletters/at: at [@]\n"
    listed += "silence/1: (1 second of silence)\njoin: <beep>\n"
    assert asterisk.transcripts(listed) == {"vm-bye": "Good bye.", "letters/at": "at"}
    sounds = tmp_path / "usr/share/asterisk/sounds/en_US_f_Someone"
    (sounds / "letters").mkdir(parents=True)
    for name in ("vm-bye", "beep", "letters/at", "unlisted"):
        (sounds / f"{name}.g722").write_bytes(b"")
    (tmp_path / "core-sounds-en.txt").write_text(listed)
    found = asterisk.prompts_of(tmp_path)
    assert [(one.id, one.text, one.split) for one in found] == [
        ("letters-at", "at", "test"),
        ("vm-bye", "Good bye.", "test"),
    ]


def test_without_apt_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(DataError, match="there is no apt-get here"),
        asterisk.unpacked_prompts(lambda _: None),
    ):
        pass


def test_a_prompt_without_sound_is_no_recording(tmp_path: Path) -> None:
    class Decoder:
        def ask(self, question: dict[str, str]) -> dict[str, str]:
            return {"pcm": "AAABAA==" if question["path"].endswith("a.g722") else ""}

    read = asterisk.PromptReader(Decoder())  # type: ignore[arg-type]
    samples, rate_hz = read(tmp_path / "a.g722")
    assert (samples.tolist(), rate_hz) == ([0, 1 / 32768], 16000)
    with pytest.raises(AudioError):
        read(tmp_path / "b.g722")
