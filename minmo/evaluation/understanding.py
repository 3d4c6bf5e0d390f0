"""`minmo eval understanding`: what reaches the LLM beside the words, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.evaluation import paper
from minmo.evaluation.answering import Answer, Answerer
from minmo.evaluation.asr import MadeWith, Progress, file_name
from minmo.evaluation.clips import Clip, ClipSet
from minmo.evaluation.closeness import cosine_distance, mean_divergence, rouge_l, word_f1
from minmo.evaluation.punctuation import MARKS, mark_counts
from minmo.evaluation.report import Table, percent, plain
from minmo.evaluation.results import Results
from minmo.evaluation.sqa import ask, right_answers
from minmo.evaluation.statistics import Estimate, bootstrap, mean, rate
from minmo.evaluation.systems import System, TrueText, Turn
from minmo.evaluation.variations import KINDS, Pair, pair_ids, pairs

_ANSWER_HEADER = (
    "set",
    "system",
    "word F1 % (95 %)",
    "ROUGE-L % (95 %)",
    "same first token % (95 %)",
    "KL, nats a token (95 %)",
    "clips",
)
_VARIATION_HEADER = (
    "set",
    "system",
    "pairs",
    "distance (95 %)",
    "same transcript %",
    "distance of those (95 %)",
    "number",
)
PAIRS = 100
"""Pairs of each kind of the same words said differently, of each set."""


@dataclass(frozen=True)
class PunctuationRow:
    """F1 of a mark in a system's transcripts."""

    set: str
    system: str
    mark: str
    f1: Estimate
    marks: int


@dataclass(frozen=True)
class DialogueRow:
    """How near a system's answers to speech are to the answers to the true text.

    Attributes:
        word_f1: of the two answers' words.
        rouge_l: of the two answers.
        same_first_token: share of answers that begin alike.
        divergence: nats a token, along the answer to the text.
    """

    set: str
    system: str
    word_f1: Estimate
    rouge_l: Estimate
    same_first_token: Estimate
    divergence: Estimate
    clips: int


@dataclass(frozen=True)
class VariationRow:
    """How far apart the LLM's states are after the same words said differently.

    Attributes:
        kind: how the two recordings differ.
        distance: cosine distance at the end of the user's turn.
        same_words: share of pairs with the same transcript.
        distance_of_same: cosine distance of those; None where there are none.
    """

    set: str
    system: str
    kind: str
    distance: Estimate
    same_words: float
    distance_of_same: Estimate | None
    pairs: int


@dataclass(frozen=True)
class TextRow:
    """How well the LLM answers written questions: what training of the ears must not change."""

    set: str
    accuracy: Estimate
    questions: int


@dataclass(frozen=True)
class UnderstandingReport:
    """What `minmo eval understanding` found.

    Attributes:
        llm_sha256: of the LLM's weights: equal before and after means the same ability on text.
    """

    llm_sha256: str
    punctuation: Sequence[PunctuationRow]
    dialogue: Sequence[DialogueRow]
    variations: Sequence[VariationRow]
    text: Sequence[TextRow]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """For people."""
        note = f"LLM sha256 {self.llm_sha256}: frozen, so that text is answered as before."
        written = [(row.set, percent(row.accuracy), str(row.questions)) for row in self.text]
        return [
            Table("Punctuation", ("set", "system", "mark", "F1 % (95 %)", "marks"), self._marks()),
            Table(
                "Answers to speech beside answers to the text",
                _ANSWER_HEADER,
                self._answers(),
                (paper.DIALOGUE,),
            ),
            Table(
                "The same words said differently: cosine distance of the LLM's states",
                _VARIATION_HEADER,
                self._variations(),
            ),
            Table("Written questions", ("set", "right % (95 %)", "questions"), written, (note,)),
        ]

    def _marks(self) -> list[tuple[str, ...]]:
        return [
            (row.set, row.system, f"`{row.mark}`", percent(row.f1), str(row.marks))
            for row in self.punctuation
        ]

    def _answers(self) -> list[tuple[str, ...]]:
        return [
            (
                row.set,
                row.system,
                percent(row.word_f1),
                percent(row.rouge_l),
                percent(row.same_first_token),
                plain(row.divergence),
                str(row.clips),
            )
            for row in self.dialogue
        ]

    def _variations(self) -> list[tuple[str, ...]]:
        return [
            (
                row.set,
                row.system,
                row.kind,
                plain(row.distance, 4),
                f"{100 * row.same_words:.0f}",
                "-" if row.distance_of_same is None else plain(row.distance_of_same, 4),
                str(row.pairs),
            )
            for row in self.variations
        ]


def measure(
    sets: Sequence[ClipSet],
    systems: Sequence[System],
    answerer: Answerer,
    *,
    llm_sha256: str,
    made_with: MadeWith,
    folder: Path | None = None,
    pair_count: int = PAIRS,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> UnderstandingReport:
    """Has systems listen and the LLM answer, where an earlier run has not.

    Args:
        sets: the chosen clips.
        systems: those that listen.
        answerer: the LLM that answers.
        llm_sha256: of its weights.
        made_with: what the results of a system depend on.
        folder: where they are kept.
        pair_count: pairs of each kind, of each set.
        seed: of the intervals.
        progress: hears of every clip.

    Raises:
        EvaluationError: the folder's results were made with something else, or a turn is too long.
        AudioError: a recording cannot be read.
    """
    punctuation: list[PunctuationRow] = []
    dialogue: list[DialogueRow] = []
    variations: list[VariationRow] = []
    text: list[TextRow] = []
    for one in sets:
        place = folder and folder / "understanding" / one.name
        with Results(place and place / "text.jsonl", made_with(TrueText())) as written:
            ask(one, TrueText(), answerer, written, {}, progress)
            if row := _text_row(one, written, seed):
                text.append(row)
            for system in systems:
                name = file_name(system.name)
                with Results(place and place / f"{name}.jsonl", made_with(system)) as results:
                    _answer(one, system, answerer, written, results, progress)
                    punctuation += _punctuation_rows(one, system, results, seed)
                    dialogue.append(_dialogue_row(one, system, written, results, seed))
                with Results(place and place / f"{name}-pairs.jsonl", made_with(system)) as results:
                    wanted = pair_ids(one, pair_count)
                    _compare(one, system, answerer, wanted, results, progress)
                    variations += _variation_rows(one, system, wanted, results, seed)
    return UnderstandingReport(llm_sha256, punctuation, dialogue, variations, text)


def _answer(
    one: ClipSet,
    system: System,
    answerer: Answerer,
    written: Results,
    results: Results,
    progress: Progress,
) -> None:
    """Answers speech, and reads the answer to the text behind it."""
    missing = frozenset(clip.id for clip in one.clips if clip.id not in results)
    total, what = len(one.clips), f"{one.name}: {system.name}"
    progress(what, total - len(missing), total)
    heard: dict[str, dict[str, Any]] = {}

    def turns() -> Iterator[tuple[str, Turn]]:
        for clip, samples in one.read(missing):
            turn = system.listen(clip, samples)
            answer = Answer(written[clip.id]["answer"], written[clip.id]["tokens"])
            tokens = answerer.ended(answer)
            wanted = answerer.log_probabilities(Turn(clip.text), tokens)
            found = answerer.log_probabilities(turn, tokens)
            heard[clip.id] = {
                "heard": turn.text,
                "seconds": len(samples) / LISTENING_RATE_HZ,
                "divergence": round(mean_divergence(wanted, found), 6),
                "same_first_token": bool(wanted[0].argmax() == found[0].argmax()),
            }
            yield clip.id, turn

    for key, answer in answerer.answers(turns()):
        results.add(key, answer=answer.text, **heard.pop(key))
        progress(what, total - len(missing - results.keys()), total)


def _compare(
    one: ClipSet,
    system: System,
    answerer: Answerer,
    wanted: Sequence[str],
    results: Results,
    progress: Progress,
) -> None:
    missing = frozenset(wanted) - results.keys()
    what = f"{one.name}: {system.name}, said differently"
    for pair in pairs(one, missing):
        first, second = _turns(system, pair)
        results.add(
            pair.id,
            distance=cosine_distance(answerer.state(first), answerer.state(second)),
            same_words=first.text == second.text,
        )
        progress(what, len(wanted) - len(missing - results.keys()), len(wanted))


def _turns(system: System, pair: Pair) -> tuple[Turn, Turn]:
    return system.listen(pair.clip, pair.first), system.listen(pair.clip, pair.second)


def _text_row(one: ClipSet, written: Results, seed: int) -> TextRow | None:
    questions = [clip for clip in one.clips if clip.answers]
    if not questions:
        return None
    right = right_answers(questions, written)
    return TextRow(one.name, bootstrap(len(right), mean(right), seed=seed), len(right))


def _punctuation_rows(
    one: ClipSet, system: System, results: Results, seed: int
) -> list[PunctuationRow]:
    counts = [mark_counts(clip.text, results[clip.id]["heard"]) for clip in one.clips]
    rows = []
    for mark in MARKS:
        right, made, there = np.array([each[mark] for each in counts], float).T
        # 2 right / (made + there) is the harmonic mean of precision and recall.
        f1 = bootstrap(len(counts), rate(2 * right, made + there), seed=seed)
        rows.append(PunctuationRow(one.name, system.name, mark, f1, int(there.sum())))
    return rows


def _dialogue_row(
    one: ClipSet, system: System, written: Results, results: Results, seed: int
) -> DialogueRow:
    def over(figure: Callable[[Clip], float]) -> Estimate:
        return bootstrap(len(one.clips), mean([figure(clip) for clip in one.clips]), seed=seed)

    def answers(clip: Clip) -> tuple[str, str]:
        return written[clip.id]["answer"], results[clip.id]["answer"]

    return DialogueRow(
        set=one.name,
        system=system.name,
        word_f1=over(lambda clip: word_f1(*answers(clip))),
        rouge_l=over(lambda clip: rouge_l(*answers(clip))),
        same_first_token=over(lambda clip: results[clip.id]["same_first_token"]),
        divergence=over(lambda clip: results[clip.id]["divergence"]),
        clips=len(one.clips),
    )


def _variation_rows(
    one: ClipSet, system: System, wanted: Sequence[str], results: Results, seed: int
) -> list[VariationRow]:
    rows = []
    for kind in KINDS:
        found = [results[name] for name in wanted if name.startswith(f"{kind}/")]
        if not found:
            continue
        distances = np.array([pair["distance"] for pair in found])
        same = np.array([pair["same_words"] for pair in found])
        rows.append(
            VariationRow(
                set=one.name,
                system=system.name,
                kind=kind,
                distance=bootstrap(len(found), mean(distances), seed=seed),
                same_words=float(same.mean()),
                distance_of_same=_mean_of(distances[same], seed),
                pairs=len(found),
            )
        )
    return rows


def _mean_of(values: Any, seed: int) -> Estimate | None:
    return bootstrap(len(values), mean(values), seed=seed) if len(values) else None
