"""What PCM is accepted, and what samples become of it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from minmo.audio.pcm import SAMPLE_RATES_HZ, AudioError, PcmFormat, read_file, to_s16, write_file
from minmo.v1 import common_pb2

S16 = common_pb2.AUDIO_ENCODING_PCM_S16LE
F32 = common_pb2.AUDIO_ENCODING_PCM_F32LE


@pytest.mark.parametrize("rate", SAMPLE_RATES_HZ)
def test_every_rate_of_the_contract_is_accepted(rate: int) -> None:
    message = common_pb2.AudioFormat(encoding=F32, sample_rate_hz=rate, channels=2)
    assert PcmFormat.from_proto(message).to_proto() == message


@pytest.mark.parametrize(
    ("message", "field", "allowed"),
    [
        (common_pb2.AudioFormat(sample_rate_hz=16000, channels=1), "encoding", "S16LE or"),
        (common_pb2.AudioFormat(encoding=S16, channels=1), "sample_rate_hz", "8000, 11025"),
        (
            common_pb2.AudioFormat(encoding=S16, sample_rate_hz=44101, channels=1),
            "sample_rate_hz",
            "44100",
        ),
        (common_pb2.AudioFormat(encoding=S16, sample_rate_hz=16000), "channels", "1 to 2"),
        (
            common_pb2.AudioFormat(encoding=S16, sample_rate_hz=16000, channels=6),
            "channels",
            "1 to 2",
        ),
    ],
)
def test_a_bad_format_is_refused_with_field_and_limit(
    message: common_pb2.AudioFormat, field: str, allowed: str
) -> None:
    with pytest.raises(AudioError, match=f"{field} is") as raised:
        PcmFormat.from_proto(message)
    assert raised.value.field == field
    assert allowed in raised.value.allowed


def test_an_encoding_of_a_later_version_is_refused_by_number() -> None:
    message = common_pb2.AudioFormat(encoding=17, sample_rate_hz=16000, channels=1)  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="encoding is 17"):
        PcmFormat.from_proto(message)


def test_bytes_that_end_within_a_sample_are_refused() -> None:
    with pytest.raises(AudioError, match="3 bytes long: it must be a multiple of 2 bytes"):
        PcmFormat(16000).decode(b"\0\0\0")
    with pytest.raises(AudioError, match="multiple of 8 bytes"):
        PcmFormat(16000, 2, F32).decode(bytes(12))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_refused(bad: float) -> None:
    data = np.array([0, 0.5, bad], "<f4").tobytes()
    with pytest.raises(AudioError, match="at value 2: every sample must be a finite number"):
        PcmFormat(16000, 1, F32).decode(data)


def test_floats_out_of_range_are_clipped() -> None:
    data = np.array([3e38, -7, 0.25], "<f4").tobytes()
    assert PcmFormat(16000, 1, F32).decode(data).tolist() == [1, -1, 0.25]


def test_two_channels_are_averaged() -> None:
    data = np.array([[16384, 0], [-32768, -32768]], "<i2").tobytes()
    assert PcmFormat(48000, 2).decode(data).tolist() == [0.25, -1]


def test_no_bytes_are_no_samples() -> None:
    assert PcmFormat(16000, 2).decode(b"").shape == (0,)


def test_loud_floats_clip_instead_of_wrapping_around() -> None:
    assert to_s16(np.array([1.5, 1, -1, -1.5, 0], np.float32)).tolist() == [
        32767,
        32767,
        -32768,
        -32768,
        0,
    ]


def test_encoding_refuses_what_no_sample_can_be() -> None:
    with pytest.raises(AudioError, match="nan at 1"):
        PcmFormat(16000).encode(np.array([0, np.nan], np.float32))


@given(st.lists(st.integers(-32768, 32767), max_size=50), st.integers(1, 2))
def test_sixteen_bits_survive_the_way_there_and_back(values: list[int], channels: int) -> None:
    data = np.repeat(np.array(values, "<i2"), channels).tobytes()
    pcm = PcmFormat(16000, channels)
    assert pcm.encode(pcm.decode(data)) == data


@pytest.mark.parametrize(
    ("ending", "rate"), [(".wav", 11025), (".flac", 44100), (".ogg", 22050), (".opus", 24000)]
)
def test_files_keep_their_rate_and_their_sound(tmp_path: Path, ending: str, rate: int) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
    path = tmp_path / f"tone{ending}"
    write_file(path, tone, rate)
    samples, found_rate = read_file(path)
    assert found_rate == rate
    assert np.corrcoef(samples[: len(tone)], tone)[0, 1] > 0.99
    assert list(tmp_path.iterdir()) == [path]


def test_a_stereo_file_is_read_as_one_channel(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.tile([0.5, -0.25], (100, 1)), 48000, subtype="FLOAT")
    samples, rate = read_file(path)
    assert rate == 48000
    np.testing.assert_allclose(samples, np.full(100, 0.125), atol=1e-6)


def test_a_file_that_is_no_audio_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.wav"
    path.write_text("no audio at all")
    with pytest.raises(AudioError, match=r"notes\.wav: it cannot be read as audio .*give WAV"):
        read_file(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        read_file(tmp_path / "missing.wav")


def test_a_file_whose_ending_says_nothing_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"must end in \.wav"):
        write_file(tmp_path / "answer.txt", np.zeros(10, np.float32), 16000)
    with pytest.raises(AudioError, match="Opus knows"):
        write_file(tmp_path / "answer.opus", np.zeros(10, np.float32), 22050)
    assert not list(tmp_path.iterdir())
