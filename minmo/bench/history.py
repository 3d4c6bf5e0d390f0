"""Whether the history that is stored is the one that the user lived through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minmo.v1 import common_pb2
from minmo.v1.conversation_pb2 import Session


@dataclass(frozen=True)
class Answer:
    """An answer as it was reported to the client.

    Attributes:
        heard_text: what was heard of it, the server says.
        own_text: the same as the client itself knows it; None where it does not. This is what is
            to be stored, also where the report came before the client had said how far it played.
    """

    heard_text: str
    own_text: str | None = None

    @property
    def text(self) -> str:
        """What is to be stored."""
        return self.heard_text if self.own_text is None else self.own_text


@dataclass
class Told:
    """What a client was told of a session.

    Attributes:
        user: words of the user's turns by their numbers; the latest, where a turn went on. Numbers
            below 0 only tell turns apart.
        answers: those of which something was heard, in their order.
        losses: connections that were lost: what was under way then was never told to its end.
    """

    user: dict[int, str] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    losses: int = 0

    def heard(self, answer: Answer) -> None:
        """An answer was reported; nothing is stored of one of which nothing was heard."""
        if answer.text.strip():
            self.answers.append(answer)


def _missing(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    """What is not there, or not in its order."""
    missing, place = [], 0
    for text in wanted:
        if text in there[place:]:
            place = there.index(text, place) + 1
        else:
            missing.append(text)
    return missing


def problems(told: Told, session: Session) -> list[str]:
    """What of the stored history differs from what the client was told; nothing if it is whole.

    Args:
        told: by the server, while it went on.
        session: as it is stored, with its turns.
    """
    found = []
    stored = {turn.index: turn for turn in session.turns}
    if len(stored) != len(session.turns):
        found.append("a turn is stored twice")
    for index, text in told.user.items():
        turn = stored.get(index)
        if index < 0:
            continue
        if turn is None or turn.role != common_pb2.ROLE_USER:
            found.append(f"turn {index}, {text!r}, is not stored")
        elif turn.text != text:
            found.append(f"turn {index} was {text!r} and is stored as {turn.text!r}")
    said = [turn.text for turn in session.turns if turn.role == common_pb2.ROLE_USER]
    asked = [text for index, text in told.user.items() if index < 0]
    found += [f"the question {text!r} is not stored in its place" for text in _missing(asked, said)]
    kept = [turn.text for turn in session.turns if turn.role == common_pb2.ROLE_ASSISTANT]
    heard = [answer.text for answer in told.answers]
    found += [f"the answer {text!r} is not stored in its place" for text in _missing(heard, kept)]
    # Each lost connection, and the end of the last one, may have left one answer untold.
    extra = len(kept) - len(told.answers)
    if extra > told.losses + 1:
        found.append(f"{extra} answers are stored that the client was never told of")
    return found
