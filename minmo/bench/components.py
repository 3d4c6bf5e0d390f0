"""The paper's table 21 for a running system: what each component takes, their sum, the practice.

The parts come from the waterfall that the orchestrator reports of every turn, the practice from the
client's clock. Parts follow each other: each is counted once, where the answer waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from minmo.client import TalkTurn

PREDICTOR = "full-duplex predictor"
LISTENING = "encoder, what is left of it"
FIRST_TOKEN = "LLM, first token"
FIVE_TOKENS = "LLM, first five tokens"
SPEECH_TOKENS = "15 speech tokens"
TOKEN2WAV = "first token2wav chunk"
VOICE = "voice, first audio"
SUM = "sum"
PRACTICE = "in practice, at the client"
SPEECH_TO_TEXT = "speech to text"
BETWEEN = "between them"
"""What practice takes beyond the sum."""

PAPER_MS = {
    PREDICTOR: 250.0,
    FIRST_TOKEN: 95.0,
    FIVE_TOKENS: 150.0,
    SPEECH_TOKENS: 70.0,
    TOKEN2WAV: 130.0,
    VOICE: 200.0,
    SUM: 600.0,
    PRACTICE: 800.0,
    SPEECH_TO_TEXT: 100.0,
}
"""On an L20 GPU, for one session (arXiv 2501.06282, table 21; the last two are about so much)."""

PARTS = (PREDICTOR, LISTENING, FIVE_TOKENS, SPEECH_TOKENS, TOKEN2WAV, VOICE)
"""What lies between the user's last word and first audio, in order. A voice without speech tokens
is one part, `VOICE`; of one that has some the two before it are."""

MEANINGS = {
    PREDICTOR: "from the last word to the decision that the turn has ended; where there is no "
    "predictor, the silence that decides",
    LISTENING: "after that decision, until the words or the speech embeddings are there",
    FIVE_TOKENS: "with what the LLM reads of the question before them",
    VOICE: "from the fifth token; such a voice waits for a phrase, and has no speech tokens",
    PRACTICE: "from the last sample of speech sent to the first sample of the answer received",
    SPEECH_TO_TEXT: "from the decision that the turn has ended to the first token",
}
"""What the rows are whose names do not say it."""


@dataclass(frozen=True)
class Components:
    """A question's latencies, in milliseconds.

    Attributes:
        parts: of `PARTS` those that its voice has.
        first_token_ms: of the LLM's part, until the first token.
        speech_to_text_ms: from the decision that the turn has ended to the first token.
        practice_ms: at the client, from the end of speech to first audio.
    """

    parts: dict[str, float]
    first_token_ms: float
    speech_to_text_ms: float
    practice_ms: float

    @property
    def sum_ms(self) -> float:
        """Of the parts: what it would take if nothing lay between them."""
        return sum(self.parts.values())

    @property
    def between_ms(self) -> float:
        """What practice takes beyond the parts: network, queues, services that wait for others."""
        return max(0.0, self.practice_ms - self.sum_ms)


@dataclass(frozen=True)
class Row:
    """A row of the table; times in milliseconds.

    Attributes:
        name: what it is.
        paper_ms: the paper's; None where it has no such row.
        median_ms: here; None where this system has no such part.
        p95_ms: the 95th percentile, by nearest rank.
    """

    name: str
    paper_ms: float | None
    median_ms: float | None
    p95_ms: float | None


def components(turn: TalkTurn) -> Components | None:
    """What a turn's latency was made of; None where it has no first audio or no decision."""
    spans = {span.hop: span for span in turn.waterfall}
    needed = ("endpointing", "first_token", "first_audio")
    if turn.first_audio_ms is None or not all(hop in spans for hop in needed):
        return None
    ends = {hop: span.start_ms + span.duration_ms for hop, span in spans.items()}
    took = {hop: span.duration_ms for hop, span in spans.items()}
    decided = ends["endpointing"]
    listened = max((ends[hop] for hop in ("recognise", "embed") if hop in ends), default=decided)
    first_token = took.get("prefill", 0.0) + took["first_token"]
    parts = {
        PREDICTOR: took["endpointing"],
        LISTENING: max(0.0, listened - decided),
        FIVE_TOKENS: first_token + took.get("first_text_to_voice", 0.0),
    }
    voice, token2wav = took["first_audio"], turn.token2wav_ms
    if token2wav > 0:
        parts |= {SPEECH_TOKENS: max(0.0, voice - token2wav), TOKEN2WAV: token2wav}
    else:
        parts[VOICE] = voice
    return Components(parts, first_token, ends["first_token"] - decided, turn.first_audio_ms)


def rows(questions: Sequence[Components]) -> list[Row]:
    """The table: the parts, their sum, the practice, and speech to text."""
    figures: list[tuple[str, Callable[[Components], float | None]]] = [
        *((part, _part(part)) for part in PARTS[:2]),
        (FIRST_TOKEN, lambda question: question.first_token_ms),
        *((part, _part(part)) for part in PARTS[2:]),
        (SUM, lambda question: question.sum_ms),
        (PRACTICE, lambda question: question.practice_ms),
        (SPEECH_TO_TEXT, lambda question: question.speech_to_text_ms),
    ]
    table = []
    for name, figure in figures:
        values = [value for one in questions if (value := figure(one)) is not None]
        table.append(
            Row(
                name,
                PAPER_MS.get(name),
                median(values) if values else None,
                percentile(values, 0.95) if values else None,
            )
        )
    return table


def at_rank(questions: Sequence[Components], share: float) -> Components:
    """The question whose practice is that percentile, by nearest rank.

    Its parts add up, which medians of parts do not.
    """
    ordered = sorted(questions, key=lambda question: question.practice_ms)
    return ordered[_rank(len(ordered), share)]


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile of at least one value, by nearest rank; `share` is above 0, at most 1."""
    return sorted(values)[_rank(len(values), share)]


def _rank(count: int, share: float) -> int:
    return math.ceil(share * count) - 1


def _part(name: str) -> Callable[[Components], float | None]:
    return lambda question: question.parts.get(name)
