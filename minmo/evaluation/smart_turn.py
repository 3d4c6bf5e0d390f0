"""Smart Turn v3.2 (Daily, BSD-2-Clause): a small model that hears whether a turn is over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from minmo.audio.pcm import Samples
from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.model.features import WhisperLogMel

_SAMPLES = 8 * LISTENING_RATE_HZ
_MEL_BINS = 80
_SMALLEST_VARIANCE = 1e-7


class SmartTurn:
    """The model, as its own pipeline asks it.

    Args:
        path: of the ONNX graph.
        threads: of computation.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._features = WhisperLogMel(_MEL_BINS)

    def __call__(self, samples: Samples) -> float:
        """How probable it is that a turn is over.

        Args:
            samples: `[samples]` at 16 kHz, the turn so far; its last 8 s are heard.
        """
        features = {"input_features": self.features(samples)}
        (probability,) = self._session.run(None, features)
        return float(probability.ravel()[0])

    def features(self, samples: Samples) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
        """What the graph reads, `[1, 80, 800]`: silence goes before what is shorter than 8 s."""
        heard = np.zeros(_SAMPLES, np.float32)
        last = samples[-_SAMPLES:]
        heard[len(heard) - len(last) :] = last
        heard = (heard - heard.mean()) / np.sqrt(heard.var() + _SMALLEST_VARIANCE)
        log_mel = self._features(torch.from_numpy(heard)[None])
        return np.ascontiguousarray(log_mel.mT.numpy())
