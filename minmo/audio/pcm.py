"""PCM as it crosses a wire or lies in a file: checked, and turned into float32 mono.

Inside of MinMo audio is one thing: `[samples]`, float32, one channel, -1 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from minmo.v1 import common_pb2

Samples = NDArray[np.float32]

SAMPLE_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
OPUS_RATES_HZ = (8000, 12000, 16000, 24000, 48000)
"""Opus knows no other rates."""
MAX_CHANNELS = 2

_S16_SCALE = 32768.0
_KINDS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
}
_ENCODINGS: dict[int, np.dtype[np.int16] | np.dtype[np.float32]] = {
    common_pb2.AUDIO_ENCODING_PCM_S16LE: np.dtype("<i2"),
    common_pb2.AUDIO_ENCODING_PCM_F32LE: np.dtype("<f4"),
}


class AudioError(ValueError):
    """Audio, or the description of its format, cannot be used.

    Attributes:
        field: what is wrong, as in ``sample_rate_hz``.
        value: what it was.
        allowed: what it may be.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} is {value}: {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


@dataclass(frozen=True)
class PcmFormat:
    """The format of raw PCM, checked.

    Attributes:
        sample_rate_hz: one of `SAMPLE_RATES_HZ`.
        channels: 1, or 2 interleaved.
        encoding: one of the proto's `AudioEncoding`.

    Raises:
        AudioError: on creation, a value is not supported.
    """

    sample_rate_hz: int
    channels: int = 1
    encoding: common_pb2.AudioEncoding.ValueType = common_pb2.AUDIO_ENCODING_PCM_S16LE

    def __post_init__(self) -> None:
        if self.encoding not in _ENCODINGS:
            names = common_pb2.AudioEncoding
            known = self.encoding in names.values()
            value = names.Name(self.encoding) if known else self.encoding
            allowed = " or ".join(
                names.Name(number) for number in names.values() if number in _ENCODINGS
            )
            raise AudioError("encoding", value, f"it must be {allowed}")
        if self.sample_rate_hz not in SAMPLE_RATES_HZ:
            rates = ", ".join(str(rate) for rate in SAMPLE_RATES_HZ)
            raise AudioError("sample_rate_hz", self.sample_rate_hz, f"it must be one of {rates} Hz")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise AudioError("channels", self.channels, f"it must be 1 to {MAX_CHANNELS}")

    @classmethod
    def from_proto(cls, message: common_pb2.AudioFormat) -> Self:
        """Checks and converts the proto's `AudioFormat`."""
        return cls(message.sample_rate_hz, message.channels, message.encoding)

    def to_proto(self) -> common_pb2.AudioFormat:
        """The same as the proto's `AudioFormat`."""
        return common_pb2.AudioFormat(
            encoding=self.encoding, sample_rate_hz=self.sample_rate_hz, channels=self.channels
        )

    @property
    def bytes_per_frame(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * _ENCODINGS[self.encoding].itemsize

    def frames_in(self, data: bytes) -> int:
        """Samples of each channel in `data`.

        Raises:
            AudioError: `data` ends within a sample.
        """
        frames, rest = divmod(len(data), self.bytes_per_frame)
        if rest:
            raise AudioError(
                "data",
                f"{len(data)} bytes long",
                f"it must be a multiple of {self.bytes_per_frame} bytes, whole samples of "
                f"{self.channels} channel(s)",
            )
        return frames

    def decode(self, data: bytes) -> Samples:
        """Raw PCM to samples.

        Two channels are averaged; floats beyond -1 to 1 are clipped.

        Returns:
            `[samples]`, at the format's rate.

        Raises:
            AudioError: `data` ends within a sample, or holds NaN or infinity.
        """
        frames = self.frames_in(data)
        raw = np.frombuffer(data, _ENCODINGS[self.encoding])
        if self.encoding == common_pb2.AUDIO_ENCODING_PCM_S16LE:
            samples = raw.astype(np.float32) / np.float32(_S16_SCALE)
        else:
            bad = ~np.isfinite(raw)
            if bad.any():
                first = int(bad.argmax())
                raise AudioError(
                    "data", f"{raw[first]} at value {first}", "every sample must be a finite number"
                )
            samples = np.clip(raw.astype(np.float32), -1.0, 1.0)
        return mix_down(samples.reshape(frames, self.channels))

    def encode(self, samples: Samples) -> bytes:
        """Samples to raw PCM; every channel gets the same.

        Args:
            samples: `[samples]`, at the format's rate; beyond -1 to 1 they are clipped.

        Raises:
            AudioError: a sample is NaN or infinite.
        """
        if self.encoding == common_pb2.AUDIO_ENCODING_PCM_S16LE:
            values: NDArray[np.int16] | Samples = to_s16(samples)
        else:
            _check_finite(samples)
            values = np.clip(samples, -1.0, 1.0)
        interleaved = np.repeat(values, self.channels)
        return interleaved.astype(_ENCODINGS[self.encoding], copy=False).tobytes()


def mix_down(frames: Samples) -> Samples:
    """`[samples, channels]` to `[samples]`: the mean of the channels."""
    if frames.shape[1] == 1:
        return frames[:, 0]
    mean: Samples = frames.mean(axis=1, dtype=np.float32)
    return mean


def to_s16(samples: Samples) -> NDArray[np.int16]:
    """Float samples to 16-bit integers, rounded; beyond -1 to 1 they are clipped.

    Raises:
        AudioError: a sample is NaN or infinite.
    """
    _check_finite(samples)
    scaled = np.rint(np.asarray(samples, np.float32) * np.float32(_S16_SCALE))
    integers: NDArray[np.int16] = np.clip(scaled, -32768, 32767).astype(np.int16)
    return integers


def read_file(path: Path) -> tuple[Samples, int]:
    """Reads a WAV, FLAC, Ogg or MP3 file of any rate and number of channels.

    Returns:
        `[samples]`, mixed down to one channel, and their rate in Hz.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: it is not audio that can be read, or it holds NaN or infinity.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        frames, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        reason = str(error).rstrip(".")
        raise AudioError(
            "file", path, f"it cannot be read as audio ({reason}); give WAV, FLAC, Ogg or MP3"
        ) from None
    samples = mix_down(frames)
    _check_finite(samples)
    return samples, int(rate)


class FileWriter:
    """Writes one channel piece by piece; use it as a context manager.

    The name's ending chooses the format: .wav, .flac, .ogg or .opus. WAV and FLAC hold 16-bit
    integers, .ogg is Vorbis, .opus is Opus. A file is either whole or not there: when the block is
    left by an error, or by Ctrl-C, an older file of that name stays as it was.

    Args:
        path: file to write; its folder must exist.
        sample_rate_hz: rate of the samples.

    Raises:
        AudioError: the ending is unknown, or the format does not know the rate.
    """

    def __init__(self, path: Path, sample_rate_hz: int) -> None:
        ending = path.suffix.lower()
        if ending not in _KINDS:
            raise AudioError("file", path, f"its name must end in {', '.join(_KINDS)}")
        if ending == ".opus" and sample_rate_hz not in OPUS_RATES_HZ:
            rates = ", ".join(str(rate) for rate in OPUS_RATES_HZ)
            raise AudioError("sample_rate_hz", sample_rate_hz, f"Opus knows {rates} Hz")
        container, subtype = _KINDS[ending]
        self._path, self._unfinished = path, path.with_name(f".{path.name}.part")
        self._file = soundfile.SoundFile(
            self._unfinished, "w", sample_rate_hz, 1, subtype, format=container
        )

    def write(self, samples: Samples) -> None:
        """Writes the next `[samples]`; beyond -1 to 1 they are clipped.

        Raises:
            AudioError: a sample is NaN or infinite.
        """
        self._file.write(to_s16(samples))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._unfinished.replace(self._path)
        else:
            self._unfinished.unlink(missing_ok=True)


def write_file(path: Path, samples: Samples, sample_rate_hz: int) -> None:
    """Writes `[samples]` as one file; see `FileWriter`.

    Raises:
        AudioError: the ending is unknown, the format does not know the rate, or a sample is NaN or
            infinite.
    """
    with FileWriter(path, sample_rate_hz) as file:
        file.write(samples)


def _check_finite(samples: Samples) -> None:
    bad = ~np.isfinite(samples)
    if bad.any():
        first = int(bad.argmax())
        raise AudioError(
            "samples", f"{samples[first]} at {first}", "every sample must be a finite number"
        )
