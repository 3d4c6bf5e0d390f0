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
from minmo.presets import load_preset
from minmo.settings import LlmModelSettings
from minmo.triton.host import build_engine
from minmo.weights.importing import import_weights
from minmo.weights.modules import random_module, write_module
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    path = write_preset(tmp_path, **made.QWEN2 | {"llm": QWEN2})
    write_llm(tmp_path / "qwen")
    import_weights(tmp_path / "qwen", load_preset(path))
    settings = LlmModelSettings(preset=str(path), context=64, slots=1)
    assert turn_after_reading(build_engine(settings)) is None
    write_module(path, "duplex_predictor", random_module(path, "duplex_predictor"))
    answer, stop = turn_after_reading(build_engine(settings)) or (0, 0)
    assert 0 < answer < 1 and 0 < stop < 1


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
