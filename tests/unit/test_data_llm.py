"""What the LLM writes: as it would alone, the same for the same seed, on from where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minmo.engine.prompt import ChatFormat
from minmo.model.llm import Llm
from minmo.settings import OrchestratorSettings
from minmo.training.data import answering
from minmo.training.data.answering import answer_all, to_answer
from minmo.training.data.assistant import Assistant
from minmo.training.data.decoding import Sampler, write_all
from minmo.training.data.errors import DataError
from minmo.training.data.lines import Line
from minmo.training.data.sources import questions
from minmo.training.data.writing import _usable, write_texts
from tests.unit.test_prompt import tokenizer
from tests.unit.tiny_llm import CONFIG, STOP_TOKEN, greedy, random_state, tiny_llm

STOP = frozenset([STOP_TOKEN])
SHARED = [5, 9, 2]
PROMPTS = [[1, 2, 3], [4], [7, 7, 7, 7, 7, 7, 7], [11, 90], [3, 1], [8, 8, 9]]


@pytest.mark.parametrize("batch", [1, 2, 4, 32])
@pytest.mark.parametrize("shared", [SHARED, []])
def test_every_sequence_is_what_it_would_be_alone(batch: int, shared: list[int]) -> None:
    llm = tiny_llm(packed=False)
    written = {one.number: one for one in write_all(llm, shared, PROMPTS, STOP, 12, batch=batch)}
    assert sorted(written) == list(range(len(PROMPTS)))
    for number, prompt in enumerate(PROMPTS):
        expected = greedy(llm, [*shared, *prompt], 12)
        assert written[number].tokens == expected
        assert written[number].ended == (len(expected) < 12)


def test_stop_tokens_end_a_sequence_and_are_not_in_it() -> None:
    llm = tiny_llm(packed=False)
    (free,) = write_all(llm, SHARED, PROMPTS[:1], frozenset(), 12)
    (cut,) = write_all(llm, SHARED, PROMPTS[:1], frozenset([free.tokens[4]]), 12)
    assert cut.tokens == free.tokens[: free.tokens.index(free.tokens[4])]
    assert (cut.ended, free.ended) == (True, False)


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_neighbours() -> None:
    llm = tiny_llm(packed=False)

    def drawn(seed: int, batch: int) -> dict[int, list[int]]:
        sampler = Sampler(seed, temperature=1.0, top_p=0.95)
        found = write_all(llm, SHARED, PROMPTS, STOP, 12, sampler, batch)
        return {one.number: one.tokens for one in found}

    assert drawn(1, 2) == drawn(1, 6)
    assert drawn(1, 2) != drawn(2, 2)


def test_a_sampler_leaves_out_what_is_unlikely() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(400, 1)
    numbers = list(range(400))
    assert set(Sampler(0, 1.0, 0.75)(logits, numbers).tolist()) == {0, 1}
    assert set(Sampler(0, 1.0, 0.01)(logits, numbers).tolist()) == {0}
    assert set(Sampler(0, 1.0, 1.0)(logits, numbers).tolist()) == {0, 1, 2, 3}


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    config = replace(CONFIG, vocabulary_size=400)
    llm = Llm.from_state_dict(config, random_state(config))
    chat = ChatFormat(tokenizer())
    return Assistant(llm, chat, frozenset([chat.end_token]), "tiny", "sha")


def asked(count: int) -> list[Line]:
    return [
        Line(f"train-{n:06d}", f"the cat sat {n}", "question", "quiz", "train", 0, 1.0)
        for n in range(count)
    ]


def test_the_llm_is_prompted_as_in_the_product(assistant: Assistant) -> None:
    told = OrchestratorSettings.model_fields["system_prompt"].default
    read = tokenizer().decode(
        [*assistant.opening(), *assistant.question("the cat")], skip_special_tokens=False
    )
    assert read == (
        f"<|im_start|>system\n{told}<|im_end|>\n<|im_start|>user\nthe cat<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_answers_go_on_where_they_were_stopped(assistant: Assistant, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    lines = asked(7)
    assert answer_all(assistant, lines, whole, lambda _: None, 8, batch=2) == 7

    def stop(now: answering.Progress) -> None:
        if now.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_all(assistant, lines, stopped, stop, 8, batch=2)
    with stopped.open("a") as file:
        file.write('{"id": "train-00')
    told: list[answering.Progress] = []
    assert answer_all(assistant, lines, stopped, told.append, 8, batch=2) == 4
    assert (told[0].done, told[-1].done, told[-1].total) == (4, 7, 7)
    assert answer_all(assistant, lines, stopped, told.append, 8, batch=2) == 0
    rows = [[json.loads(row) for row in path.open()] for path in (whole, stopped)]
    assert rows[0][0] == rows[1][0]
    first, second = ({row["id"]: row for row in found[1:]} for found in rows)
    assert first == second
    assert set(first) == {line.id for line in lines}
    assert all(len(row["tokens"]) <= 8 for row in first.values())


def test_answers_of_another_model_or_to_other_texts_are_not_mixed(
    assistant: Assistant, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    answer_all(assistant, asked(2), out, lambda _: None, 4)
    with pytest.raises(DataError, match="made with another max_tokens; give another --out"):
        answer_all(assistant, asked(2), out, lambda _: None, 5)
    with pytest.raises(DataError, match="made with another llm_sha256"):
        answer_all(replace(assistant, sha256="other"), asked(2), out, lambda _: None, 4)
    other = [replace(line, text="the mat") for line in asked(2)]
    with pytest.raises(DataError, match="answers other texts"):
        answer_all(assistant, other, out, lambda _: None, 4)


def test_only_what_users_say_is_answered() -> None:
    given = [
        *asked(3),
        replace(asked(1)[0], kind="sentence"),
        replace(asked(1)[0], kind="turn", speaker="assistant"),
        replace(asked(1)[0], kind="turn", speaker="user", split="test"),
    ]
    assert [line.split for line in to_answer(given)] == ["test", "train", "train", "train"]
    assert len(to_answer(given, limit=1)) == 2


@pytest.mark.parametrize(
    ("kind", "written", "kept"),
    [
        ("question", "What is the time? It is", "What is the time?"),
        ("question", "What is the time", None),
        ("question", "The time is late.", None),
        ("question", "Why?", None),
        ("sentence", "The rain fell all day.\nMore", "The rain fell all day."),
        ("sentence", "Is this what rain is?", None),
        ("turn", "Could you help me?", "Could you help me?"),
        ("turn", "Wir gehen über Land.", None),
    ],
)
def test_what_is_of_no_use_is_left_out(kind: str, written: str, kept: str | None) -> None:
    assert _usable(kind, written) == kept  # type: ignore[arg-type]


def test_texts_are_written_in_the_form_that_is_read(
    assistant: Assistant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random network's words are none: what counts is what becomes of them.
    said = iter([" is it now?", " is it now?", " are these not fine?"] + [" no"] * 5000)
    monkeypatch.setattr("minmo.training.data.writing._text", lambda *_: next(said))
    monkeypatch.setattr("minmo.training.data.writing._ROUND", 8)
    monkeypatch.setattr("minmo.training.data.writing._MAX_TOKENS", 3)
    monkeypatch.setitem(_starts(), "question", ("What",))
    rows = list(write_texts(assistant, "question", 5, 0, lambda *_: None))
    assert rows == [{"question": "What is it now?"}, {"question": "What are these not fine?"}]
    path = tmp_path / "llm.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [text.text for text in questions("llm", path)] == [row["question"] for row in rows]


def _starts() -> dict[str, tuple[str, ...]]:
    from minmo.training.data import writing

    return writing._STARTS  # type: ignore[return-value]
