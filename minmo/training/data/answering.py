"""The LLM's own answers to texts: what speech is to lead it to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minmo.training.data.assistant import Assistant, product_system_prompt
from minmo.training.data.decoding import BATCH, write_all
from minmo.training.data.errors import DataError
from minmo.training.data.jsonl import drop_torn_line, read_lines
from minmo.training.data.lines import Line

MAX_TOKENS = 48
# Few enough that what a killed run has read and not written is small, many enough to keep slots
# full and sort by length.
_PART = 2048


@dataclass(frozen=True)
class Progress:
    """How far it is: texts answered in all, texts, and tokens written in this run."""

    done: int
    total: int
    tokens: int


def to_answer(lines: Sequence[Line], limit: int | None = None) -> list[Line]:
    """What a user may say to an assistant: questions, and turns of users."""
    chosen = [
        line
        for line in lines
        if line.kind == "question" or (line.kind == "turn" and line.speaker != "assistant")
    ]
    train = [line for line in chosen if line.split == "train"][:limit]
    return [line for line in chosen if line.split != "train"] + train


def answer_all(
    assistant: Assistant,
    lines: Sequence[Line],
    out: Path,
    told: Callable[[Progress], None],
    max_tokens: int = MAX_TOKENS,
    batch: int = BATCH,
) -> int:
    """Writes the likeliest answer to each text that has none yet in `out`.

    A line has `id`, `text`, `answer`, its `tokens`, and whether it `ended` within `max_tokens`.

    Args:
        assistant: that answers.
        lines: with the texts.
        out: JSON lines; what is there stays.
        told: hears how far it is.
        max_tokens: of an answer.
        batch: answers at once.

    Returns:
        How many were written now.

    Raises:
        DataError: what is in `out` was answered by another model, or otherwise.
    """
    made = _head(assistant, max_tokens)
    done = _answered(out, made, lines)
    missing = [line for line in lines if line.id not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    total, finished, tokens = len(lines), len(lines) - len(missing), 0
    with out.open("a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(json.dumps(made) + "\n")
        for start in range(0, len(missing), _PART):
            # Like lengths share a step's span, so that short ones do not pay for long ones.
            part = sorted(missing[start : start + _PART], key=lambda line: len(line.text))
            prompts = [assistant.question(line.text) for line in part]
            opening = assistant.opening()
            for written in write_all(
                assistant.llm, opening, prompts, assistant.stop, max_tokens, batch=batch
            ):
                line = part[written.number]
                row: dict[str, object] = {"id": line.id, "text": line.text}
                row["answer"] = assistant.text(written.tokens)
                row |= {"tokens": written.tokens, "ended": written.ended}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                finished += 1
                tokens += len(written.tokens) + written.ended
                told(Progress(finished, total, tokens))
            file.flush()
    return len(missing)


def _head(assistant: Assistant, max_tokens: int) -> dict[str, object]:
    return {
        "preset": assistant.preset,
        "system_prompt": product_system_prompt(),
        "max_tokens": max_tokens,
        "llm_sha256": assistant.sha256,
    }


def _answered(out: Path, made: dict[str, object], lines: Sequence[Line]) -> set[str]:
    drop_torn_line(out)
    if not out.exists() or out.stat().st_size == 0:
        return set()
    rows = read_lines(out)
    head = next(rows, {})
    if head != made:
        differing = sorted(key for key in made if head.get(key) != made[key])
        raise DataError(
            f"{out} was made with another {' and '.join(differing)}; give another --out, or delete "
            "it"
        )
    texts = {line.id: line.text for line in lines}
    answered = set()
    for row in rows:
        if texts.get(row["id"], row["text"]) != row["text"]:
            raise DataError(f"{out} answers other texts ({row['id']}); give another --out")
        answered.add(str(row["id"]))
    return answered
