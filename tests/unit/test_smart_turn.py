"""Smart Turn: what its graph reads, and what comes of its answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from minmo.evaluation.smart_turn import SmartTurn

RATE = 16_000


@pytest.fixture
def model(tmp_path: Path) -> SmartTurn:
    """A graph with the names and shapes of the published one, that gives the mean of its input."""
    read = helper.make_tensor_value_info("input_features", TensorProto.FLOAT, [1, 80, 800])
    said = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, 1])
    node = helper.make_node("ReduceMean", ["input_features"], ["logits"], keepdims=1)
    graph = helper.make_graph([node], "mean", [read], [said])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, tmp_path / "model.onnx")
    return SmartTurn(tmp_path / "model.onnx")


def noise(seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    drawn = np.random.default_rng(0).normal(scale=0.1, size=round(seconds * RATE))
    return drawn.astype(np.float32)


def test_it_reads_what_the_published_features_are(model: SmartTurn) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(chunk_length=8)
    samples = noise(8.0)
    expected = extractor(samples, sampling_rate=RATE, do_normalize=True, return_tensors="np")
    np.testing.assert_allclose(model.features(samples), expected.input_features, atol=2e-4)


def test_it_hears_the_last_eight_seconds_behind_silence(model: SmartTurn) -> None:
    long = noise(9.0)
    np.testing.assert_array_equal(model.features(long), model.features(long[-8 * RATE :]))
    short = model.features(noise(2.0))[0]
    assert short[:, :590].max() < short[:, 610:].mean()
    assert model(long) == pytest.approx(float(model.features(long).mean()), abs=1e-5)
