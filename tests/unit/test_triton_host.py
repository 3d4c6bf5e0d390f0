"""What ends an answer of the LLM that Triton hosts."""

from __future__ import annotations

import json
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
from tokenizers import Tokenizer

from minmo.engine.engine import Engine
from minmo.engine.operations import Event, Operation, Prefill, Prefilled
from minmo.model.operating_points import (
    DEFAULT_POINTS,
    METADATA_KEY,
    OperatingPoint,
    to_metadata,
)
from minmo.presets import load_preset
from minmo.settings import LlmModelSettings
from minmo.triton.host import build_engine, description_of
from minmo.weights.errors import WeightsError
from minmo.weights.importing import import_weights
from minmo.weights.load import weights_folder
from minmo.weights.modules import random_module, write_module
from minmo.weights.writing import FILE
from tests.unit import published_checkpoints as made
from tests.unit.test_prompt import SPECIAL, tokenizer
from tests.unit.tiny_presets import write_preset

QWEN2 = made.QWEN2["llm"] | {"vocabulary_size": 400}
TEXT_END, _, TURN_END = SPECIAL


def ids(of: Tokenizer, *marks: str) -> set[int]:
    return {of.token_to_id(mark) for mark in marks}


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ([TURN_END, TEXT_END], {TURN_END, TEXT_END}),
        # As base models and folders without `generation_config.json` say it.
        (TEXT_END, {TURN_END, TEXT_END}),
        (None, {TURN_END, TEXT_END}),
    ],
)
def test_an_imported_llm_stops_at_the_end_of_a_turn_and_of_a_text(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stated: str | list[str] | None,
    expected: set[str],
) -> None:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    preset = write_preset(tmp_path, **made.QWEN2 | {"llm": QWEN2})
    words = write_llm(tmp_path / "qwen")
    generation = {}
    if stated is not None:
        stop = [
            words.token_to_id(mark) for mark in ([stated] if isinstance(stated, str) else stated)
        ]
        generation["eos_token_id"] = stop if isinstance(stated, list) else stop[0]
    (tmp_path / "qwen/generation_config.json").write_text(json.dumps(generation))
    import_weights(tmp_path / "qwen", load_preset(preset))
    engine = build_engine(LlmModelSettings(preset=str(preset), context=64, slots=1))
    assert engine.options.stop_tokens == ids(words, *expected)


def test_a_trained_predictor_answers_after_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    path = write_preset(tmp_path, **made.QWEN2 | {"llm": QWEN2})
    write_llm(tmp_path / "qwen")
    import_weights(tmp_path / "qwen", load_preset(path))
    settings = LlmModelSettings(preset=str(path), context=64, slots=1)
    engine = build_engine(settings)
    assert turn_after_reading(engine) is None
    assert not description_of(engine, str(path)).operating_points
    write_predictor(path)
    engine = build_engine(settings)
    answer, stop = turn_after_reading(engine) or (0, 0)
    assert 0 < answer < 1 and 0 < stop < 1
    assert engine.options.history == load_preset(path).duplex_predictor.left_context + 1
    assert len(description_of(engine, str(path)).operating_points) == len(DEFAULT_POINTS)

    write_predictor(path, to_metadata([OperatingPoint(0.5, 0.25, 0.75)]))
    (told,) = description_of(engine, str(path)).operating_points
    assert (told.eagerness, told.assistant_turn, told.user_turn) == (0.5, 0.25, 0.75)
    write_predictor(path, {METADATA_KEY: "[]"})
    with pytest.raises(WeightsError, match="is empty"):
        description_of(engine, str(path))

    # One that cannot be used is told, and missed by nobody else.
    file = weights_folder(str(path), "duplex_predictor") / FILE
    file.write_bytes(file.read_bytes()[:-8])
    engine = build_engine(settings)
    assert "there is no full-duplex predictor" in caplog.text
    assert turn_after_reading(engine) is None
    assert not description_of(engine, str(path)).operating_points


def write_predictor(preset: Path, metadata: dict[str, str] | None = None) -> None:
    module = random_module(preset, "duplex_predictor")
    write_module(preset, "duplex_predictor", module, metadata=metadata)


def write_llm(folder: Path) -> Tokenizer:
    made.qwen2(folder, vocabulary=400)
    words = tokenizer()
    words.save(str(folder / "tokenizer.json"))
    return words


def turn_after_reading(engine: Engine) -> tuple[float, float] | None:
    answers: Queue[Event] = Queue()
    engine.start()
    try:
        read = Prefill(0, (np.arange(5, dtype=np.int64),))
        engine.submit(Operation("read", "session", "main", 0, read), answers.put)
        answer = answers.get(timeout=30)
    finally:
        engine.stop()
    assert isinstance(answer, Prefilled)
    return answer.turn
