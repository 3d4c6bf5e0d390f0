"""What ends an answer of the LLM that Triton hosts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from minmo.settings import LlmModelSettings
from minmo.triton.host import build_engine
from minmo.weights.importing import import_weights
from tests.unit import published_checkpoints as made
from tests.unit.test_prompt import SPECIAL, tokenizer

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
    preset = made.preset(**made.QWEN2 | {"llm": made.QWEN2["llm"] | {"vocabulary_size": 400}})
    made.qwen2(tmp_path / "qwen", vocabulary=400)
    words = tokenizer()
    words.save(str(tmp_path / "qwen/tokenizer.json"))
    generation = {}
    if stated is not None:
        stop = [
            words.token_to_id(mark) for mark in ([stated] if isinstance(stated, str) else stated)
        ]
        generation["eos_token_id"] = stop if isinstance(stated, list) else stop[0]
    (tmp_path / "qwen/generation_config.json").write_text(json.dumps(generation))
    import_weights(tmp_path / "qwen", preset)
    monkeypatch.setattr("minmo.triton.host.weights_folder", lambda *_: tmp_path / "qwen")
    engine = build_engine(LlmModelSettings(preset="tiny", context=64, slots=1))
    assert engine.options.stop_tokens == ids(words, *expected)
