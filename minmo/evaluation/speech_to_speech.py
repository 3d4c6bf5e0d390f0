"""`minmo eval speech-to-speech`: is a spoken question answered rightly, in words that are heard?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minmo.evaluation import paper
from minmo.evaluation.answering import Answer, Answerer
from minmo.evaluation.answers import is_right
from minmo.evaluation.asr import Progress, file_name
from minmo.evaluation.clips import Clip, ClipSet
from minmo.evaluation.judges import Judge, Judgement
from minmo.evaluation.report import Table, number, percent, plain
from minmo.evaluation.results import Results
from minmo.evaluation.speaking import Speaker
from minmo.evaluation.sqa import ask, right_answers
from minmo.evaluation.statistics import Estimate, bootstrap, mean, ratio
from minmo.evaluation.systems import System, Turn
from minmo.evaluation.takes import Takes
from minmo.evaluation.tts import kept, listen, word_errors

_HEADER = (
    "set",
    "system",
    "recogniser",
    "right in text % (95 %)",
    "right as heard % (95 %)",
    "of text (95 %, paired)",
    "WER % of answers (95 %)",
    "questions",
    "seconds",
)


@dataclass(frozen=True)
class SpokenAnswerRow:
    """A voice that says the answers of a set, and a recogniser that hears them.

    Attributes:
        set: its name.
        system: of the voice.
        recogniser: its name.
        in_text: share of answers that contain a right one as they were written.
        as_heard: the same, as they were heard.
        ratio_to_text: the second over the first, on the same questions.
        wer: word error rate of what was heard, against the answers.
        clips: questions.
        seconds: of answers.
    """

    set: str
    system: str
    recogniser: str
    in_text: Estimate
    as_heard: Estimate
    ratio_to_text: Estimate
    wer: Estimate
    clips: int
    seconds: float


@dataclass(frozen=True)
class SpeechToSpeechReport:
    """What `minmo eval speech-to-speech` found."""

    rows: Sequence[SpokenAnswerRow]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """For people."""
        rows = [
            (
                row.set,
                row.system,
                row.recogniser,
                percent(row.in_text),
                percent(row.as_heard),
                plain(row.ratio_to_text),
                percent(row.wer),
                str(row.clips),
                number(row.seconds, ".0f"),
            )
            for row in self.rows
        ]
        return [Table("Spoken answers to spoken questions", _HEADER, rows, (paper.SPEECH_OUT,))]


def measure(
    sets: Sequence[ClipSet],
    ears: System,
    answerer: Answerer,
    speakers: Sequence[Speaker],
    recognisers: Sequence[Judge],
    *,
    made_with: Mapping[str, Any],
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> SpeechToSpeechReport:
    """Asks each question, has each voice say the answer, and counts the right ones that are heard.

    Args:
        sets: the chosen questions, all with right answers.
        ears: what listens to them.
        answerer: the LLM that answers.
        speakers: the voices; all say the same answers.
        recognisers: that hear them.
        made_with: what answers depend on.
        folder: where results and audio are kept; None to keep none.
        seed: of the intervals.
        progress: hears of every question and answer.

    Raises:
        EvaluationError: the folder's results were made with something else, or a question is too
            long.
        AudioError: a recording cannot be read.
    """
    rows: list[SpokenAnswerRow] = []
    with kept(folder, "speech-to-speech") as root:
        for one in sets:
            path = root / one.name / f"{file_name(ears.name)}.jsonl"
            with Results(path, made_with) as answered:
                ask(one, ears, answerer, answered, {}, progress)
                for speaker in speakers:
                    place = root / one.name / file_name(f"{ears.name} {speaker.name}")
                    depends = dict(made_with) | dict(speaker.made_with)
                    with Takes(place, depends) as takes:
                        _speak(one, ears, speaker, answered, takes, progress)
                        said = _answers(one, answered)
                        heard = listen(said, speaker.name, takes, recognisers, progress)
                        seconds = sum(takes[clip.id]["seconds"] for clip in one.clips)
                    rows += _rows(one, said, speaker.name, answered, heard, seconds, seed)
    return SpeechToSpeechReport(rows)


def _answers(one: ClipSet, answered: Results) -> ClipSet:
    """The answers as texts to be heard."""
    clips = [Clip(one.name, clip.id, answered[clip.id]["answer"]) for clip in one.clips]
    return ClipSet(one.name, clips)


def _speak(
    one: ClipSet,
    ears: System,
    speaker: Speaker,
    answered: Results,
    takes: Takes,
    progress: Progress,
) -> None:
    missing = frozenset(clip.id for clip in one.clips if clip.id not in takes)
    done, what = len(one.clips) - len(missing), f"{one.name}: {speaker.name}"
    progress(what, done, len(one.clips))
    for clip, turn in _turns(one, ears, missing):
        row = answered[clip.id]
        takes.add(clip.id, speaker.answer(turn, Answer(row["answer"], row["tokens"])))
        done += 1
        progress(what, done, len(one.clips))


def _turns(one: ClipSet, ears: System, missing: frozenset[str]) -> Iterator[tuple[Clip, Turn]]:
    # Embeddings are not kept with the answers: a voice that reads them has them heard again.
    for clip, samples in one.read(missing):
        yield clip, ears.listen(clip, samples)


def _rows(
    one: ClipSet,
    said: ClipSet,
    speaker: str,
    answered: Results,
    opinions: Mapping[str, Sequence[Judgement]],
    seconds: float,
    seed: int,
) -> Iterator[SpokenAnswerRow]:
    count, in_text = len(one.clips), mean(right_answers(one.clips, answered))
    for name, heard in opinions.items():
        as_heard = mean(
            [is_right(str(text), clip.answers) for clip, text in zip(one.clips, heard, strict=True)]
        )
        yield SpokenAnswerRow(
            set=one.name,
            system=speaker,
            recogniser=name,
            in_text=bootstrap(count, in_text, seed=seed),
            as_heard=bootstrap(count, as_heard, seed=seed),
            ratio_to_text=bootstrap(count, ratio(as_heard, in_text), seed=seed),
            wer=bootstrap(count, word_errors(said.clips, heard), seed=seed),
            clips=count,
            seconds=seconds,
        )
