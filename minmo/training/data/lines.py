"""What is to be said by whom: the lines of a file of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, Self, get_args

from minmo.training.data.errors import DataError

Kind = Literal["question", "turn", "sentence"]
Split = Literal["train", "valid", "test"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SPLITS: Final[tuple[Split, ...]] = get_args(Split)


@dataclass(frozen=True)
class Style:
    """How something is said, beside how the same speaker usually says it.

    Attributes:
        rate: speed, as a factor; below 1 is slower.
        pitch: semitones higher.
        loudness: dB louder.
    """

    rate: float = 1.0
    pitch: float = 0.0
    loudness: float = 0.0


@dataclass(frozen=True)
class Instructed:
    """A text that somebody wants to hear in a style.

    Attributes:
        instruct: what is asked for, as in `Please say it slowly.`
        query: all that the user said: the instruction and the text.
        style: of the speech.
    """

    instruct: str
    query: str
    style: Style

    @property
    def custom(self) -> dict[str, Any]:
        """What is kept with the audio."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Reads what `custom` gives."""
        return cls(str(fields["instruct"]), str(fields["query"]), Style(**fields["style"]))


@dataclass(frozen=True)
class Line:
    """One utterance to synthesise.

    Attributes:
        id: of the utterance, the same in every file that speaks of it.
        text: as written, with case, punctuation and digits.
        kind: a question, a turn of a dialogue, or a sentence of a text.
        source: where the text comes from, as in `moby_dick`.
        split: the set that it belongs to.
        voice: number of the speaker.
        rate: length of the sounds; above 1 is slower.
        answers: right answers of a question, any of which will do.
        speaker: of a dialogue's turn, `user` or `assistant`.
        instructed: what was asked for, where the text is said in a style.
    """

    id: str
    text: str
    kind: Kind
    source: str
    split: Split
    voice: int
    rate: float
    answers: tuple[str, ...] = ()
    speaker: str | None = None
    # Not shown, so that a line without it has the digest that it had before there were styles.
    instructed: Instructed | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Its fields; those that say nothing are left out."""
        told = asdict(self)
        told |= told.pop("instructed") or {}
        return {key: value for key, value in told.items() if value not in ((), None)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Reads what `to_json` gives.

        Raises:
            DataError: a field is missing or cannot be used.
        """
        try:
            line = cls(
                id=str(fields["id"]),
                text=str(fields["text"]),
                kind=fields["kind"],
                source=str(fields["source"]),
                split=fields["split"],
                voice=int(fields["voice"]),
                rate=float(fields["rate"]),
                answers=tuple(fields.get("answers", ())),
                speaker=fields.get("speaker"),
                instructed=Instructed.from_json(fields) if "instruct" in fields else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"a line of texts lacks {error}, or it is of the wrong type; make the file with "
                "`minmo data texts`"
            ) from error
        if line.kind not in KINDS or line.split not in SPLITS:
            raise DataError(
                f"line {line.id}: kind is {line.kind!r} and split {line.split!r}; they must be "
                f"one of {', '.join(KINDS)} and one of {', '.join(SPLITS)}"
            )
        return line

    @property
    def custom(self) -> dict[str, Any]:
        """What is kept with the audio beside text and speaker."""
        told: dict[str, Any] = {"kind": self.kind, "source": self.source}
        told |= {"answers": list(self.answers)} if self.answers else {}
        return told | (self.instructed.custom if self.instructed else {})
