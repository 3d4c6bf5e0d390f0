"""Who holds which slot of the cache: sessions, their branches, and what they may claim."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from minmo.engine.operations import Event

# A caller repeats what it sent shortly before its connection broke, not what it sent an hour ago.
_REMEMBERED_ANSWERS = 64
# There are seven probes a second: they must not push out what matters longer.
_REMEMBERED_PROBES = 8
# Sessions without a branch keep only their epoch and answers.
_MAX_SESSIONS = 4096


@dataclass(frozen=True)
class ProbeState:
    """What the model made of a probe.

    Attributes:
        position: of the branch's end at which it was read.
        hidden: its last hidden state, as the memory keeps it.
    """

    position: int
    hidden: Any


@dataclass(eq=False)
class Branch:
    """A row of positions.

    Attributes:
        slot: where it lies.
        length: positions that it holds.
        cuts: how often positions were taken away. As long as it stays the same, positions that
            were there once are there still.
        probes: what was read between the positions and not kept, oldest first.
    """

    slot: int
    length: int = 0
    cuts: int = 0
    probes: deque[ProbeState] = field(default_factory=deque)

    def cut(self, length: int) -> None:
        """Keeps the first `length` positions, and none of the probes between them."""
        self.cuts += 1
        self.length = length
        self.probes.clear()

    def probed(self, state: ProbeState, most: int) -> None:
        """Keeps a probe, and forgets the oldest of more than `most`."""
        self.probes.append(state)
        while len(self.probes) > most:
            self.probes.popleft()


@dataclass(frozen=True)
class Answer:
    """What an operation that was carried out was answered.

    Attributes:
        events: all of it, without hidden states.
        branch: on which they can be found again,
        cuts: as long as it has been cut so often.
        start: position that the first hidden state belongs to.
    """

    events: tuple[Event, ...]
    branch: Branch | None = None
    cuts: int = 0
    start: int = 0


@dataclass(eq=False)
class Session:
    """What a session has.

    Attributes:
        epoch: the highest one seen.
        branches: by name.
        answers: of the operations carried out last, by their ids.
        probe_answers: the same, of probes.
        pending: operations that wait or run; while there are any, it is not idle.
        last_used: seconds, on the caller's clock.
    """

    epoch: int = 0
    branches: dict[str, Branch] = field(default_factory=dict)
    answers: OrderedDict[str, Answer] = field(default_factory=OrderedDict)
    probe_answers: OrderedDict[str, Answer] = field(default_factory=OrderedDict)
    pending: int = 0
    last_used: float = 0.0

    def remember(self, operation_id: str, answer: Answer) -> None:
        """Keeps an answer, and forgets the oldest of too many."""
        self.answers[operation_id] = answer
        while len(self.answers) > _REMEMBERED_ANSWERS:
            self.answers.popitem(last=False)

    def remember_probe(self, operation_id: str, answer: Answer) -> None:
        """The same for a probe."""
        self.probe_answers[operation_id] = answer
        while len(self.probe_answers) > _REMEMBERED_PROBES:
            self.probe_answers.popitem(last=False)

    def recall(self, operation_id: str) -> Answer | None:
        """What an operation was answered that has been carried out before, if it is still known."""
        return self.answers.get(operation_id) or self.probe_answers.get(operation_id)


class SessionTable:
    """All sessions, least recently used first.

    Args:
        slots: branches that there can be at once.
        idle_seconds: a session that is unused for so long is dropped.
    """

    def __init__(self, slots: int, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._free = list(range(slots))[::-1]
        self._slots = slots
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    @property
    def slots_in_use(self) -> int:
        """Slots that branches hold."""
        return self._slots - len(self._free)

    def use(self, session_id: str, now: float) -> Session:
        """The session, made if it is new, now the most recently used one."""
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = Session()
            self._forget_surplus()
        session.last_used = now
        self._sessions.move_to_end(session_id)
        return session

    def open_branch(self, session: Session, name: str) -> Branch | None:
        """A new, empty branch; None where no slot is free and no other session is idle."""
        if not self._free:
            self._evict()
        if not self._free:
            return None
        branch = session.branches[name] = Branch(self._free.pop())
        return branch

    def close_branch(self, session: Session, name: str) -> None:
        """Frees a branch, if it is there."""
        branch = session.branches.pop(name, None)
        if branch is not None:
            # What looks for its hidden states must not find those of the slot's next owner.
            branch.cut(0)
            self._free.append(branch.slot)

    def drop(self, session_id: str) -> None:
        """Frees a session with all its branches."""
        session = self._sessions.pop(session_id)
        for name in list(session.branches):
            self.close_branch(session, name)

    def expire(self, now: float) -> None:
        """Drops the sessions that have been idle for too long."""
        for session_id, session in list(self._sessions.items()):
            if session.last_used + self._idle_seconds > now:
                return
            if session.pending == 0:
                self.drop(session_id)

    def _evict(self) -> None:
        for session_id, session in self._sessions.items():
            # Who asks is not idle, and so keeps its own branches.
            if session.branches and session.pending == 0:
                self.drop(session_id)
                return

    def _forget_surplus(self) -> None:
        surplus = len(self._sessions) - _MAX_SESSIONS
        idle = (
            session_id
            for session_id, session in list(self._sessions.items())[:-1]
            if not session.branches and session.pending == 0
        )
        for session_id, _ in zip(idle, range(surplus), strict=False):
            self.drop(session_id)
