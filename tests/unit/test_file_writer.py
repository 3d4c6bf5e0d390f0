"""Audio that is written piece by piece."""

from pathlib import Path

import numpy as np
import pytest

from minmo.audio.pcm import AudioError, FileWriter, read_file
from tests.unit.evaluation_modules import noise


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_pieces_are_one_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"speech.{ending}"
    samples = noise(5000)
    with FileWriter(path, 24_000) as file:
        for start, end in ((0, 0), (0, 4000), (4000, 5000)):
            file.write(samples[start:end])
        assert not path.exists()
    found, rate = read_file(path)
    assert rate == 24_000
    np.testing.assert_allclose(found, samples, atol=2e-5)


def test_an_interrupted_file_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt), FileWriter(path, 16_000) as file:
        file.write(noise(100))
        raise KeyboardInterrupt
    assert [one.name for one in tmp_path.iterdir()] == ["speech.wav"]
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize(
    ("name", "rate", "message"),
    [("a.txt", 16_000, "must end in"), ("a.opus", 22_050, "Opus knows")],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, name: str, rate: int, message: str
) -> None:
    with pytest.raises(AudioError, match=message):
        FileWriter(tmp_path / name, rate)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="finite"), FileWriter(tmp_path / "a.wav", 16_000) as file:
        file.write(np.array([0.0, np.nan], np.float32))
    assert list(tmp_path.iterdir()) == []
