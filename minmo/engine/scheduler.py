"""Decides what the model computes next, for whom, and what everybody is told. It touches no tensor.

A step of the engine has two halves. In the first the model reads: every running generation its
last token, every probe, and as many pieces of prefills as the budget allows. In the second, tokens
are drawn for the generations that have none to read.

Prefills are read in pieces of a fixed size, counted from the operation's start: how a prefill is
cut then doesn't depend on what else runs, and so neither do the last bits of its hidden states.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np

from minmo.engine.cache import Answer, Branch, ProbeState, Session, SessionTable
from minmo.engine.operations import (
    Action,
    BranchChanged,
    Cancel,
    Close,
    Event,
    Failed,
    FinishReason,
    Fork,
    Generate,
    Generated,
    IsCancelled,
    Matrix,
    OnEvent,
    Operation,
    Prefill,
    Prefilled,
    Probe,
    Probed,
    Reason,
    Sampling,
    TokenDrawn,
    Tokens,
    Truncate,
)

log = logging.getLogger(__name__)

Lane: TypeAlias = tuple[str, str]
"""A session's id and a branch's name: operations of one lane run one after the other."""

_LAST_EVENT: Mapping[type[Action], type[Event]] = {
    Prefill: Prefilled,
    Generate: Generated,
    Probe: Probed,
    Fork: BranchChanged,
    Truncate: BranchChanged,
    Cancel: BranchChanged,
    Close: BranchChanged,
}


class Memory(Protocol):
    """What the scheduler needs of the cache's content."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first positions of one slot over another."""

    def hidden_states(self, slot: int, start: int, count: int) -> Matrix:
        """Last hidden states `[count, width]` of a slot, a copy."""

    def embeddings(self, parts: Sequence[Tokens | Matrix]) -> Matrix:
        """What the model reads of tokens and embeddings, `[positions, width]`."""

    def probe_state(self, slot: int, position: int) -> ProbeState:
        """What the model has made of a probe that it read at a position; the next one to be read
        there takes its place."""

    def turn(
        self, slot: int, length: int, probes: Sequence[ProbeState]
    ) -> tuple[float, float] | None:
        """Probabilities of assistant and user turn-taking after the first `length` positions and
        the probes that were read between them; None where there is no predictor."""


@dataclass(frozen=True)
class Limits:
    """How much at once.

    Attributes:
        context: positions of a branch.
        max_tokens: of one generation.
        piece: positions of one piece of a prefill.
        budget: positions of prefills that one step reads when nobody waits for tokens.
        shared_budget: the same when somebody does: it bounds how long a token can take.
        stop_tokens: which end the model's turn.
        history: hidden states that the predictor sees; older probes are forgotten.
    """

    context: int
    max_tokens: int
    piece: int
    budget: int
    shared_budget: int
    stop_tokens: frozenset[int]
    history: int


@dataclass(eq=False)
class Work:
    """An operation on its way.

    Attributes:
        operation: what is asked.
        on_event: who is told.
        is_cancelled: whether the caller has gone.
        received: seconds, when it came.
    """

    operation: Operation
    on_event: OnEvent
    is_cancelled: IsCancelled
    received: float
    session: Session = field(init=False)
    running: bool = field(default=False, init=False)
    cancelled: bool = field(default=False, init=False)
    # Of a prefill: positions read. Of a generation: tokens drawn, and the one not yet read.
    read: int = field(default=0, init=False)
    tokens: list[int] = field(default_factory=list, init=False)
    unread: int | None = field(default=None, init=False)

    @property
    def branch(self) -> Branch:
        """The branch that it runs on."""
        return self.session.branches[self.operation.branch]

    @property
    def lane(self) -> Lane:
        """Where it queues."""
        return self.operation.session_id, self.operation.branch

    def is_gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.cancelled or self.is_cancelled()


@dataclass(frozen=True)
class Reading:
    """Positions that the model reads in this step.

    Attributes:
        work: whose.
        slot: in which slot.
        start: position of the first one.
        pieces: token ids `[positions]` and embeddings `[positions, width]`, in order.
        count: positions in all.
    """

    work: Work
    slot: int
    start: int
    pieces: tuple[Tokens | Matrix, ...]
    count: int


@dataclass(frozen=True)
class Drawing:
    """A token to draw, from the hidden state at `position` of a slot."""

    work: Work
    slot: int
    position: int
    sampling: Sampling


@dataclass(frozen=True)
class Problem:
    """Why the model could not do its part for one work."""

    reason: Reason
    message: str


class Scheduler:
    """The engine's only place of decisions; used by one thread.

    Args:
        table: who holds which slot.
        memory: what is in the slots.
        limits: how much at once.
        clock: seconds.
    """

    def __init__(
        self, table: SessionTable, memory: Memory, limits: Limits, clock: Callable[[], float]
    ) -> None:
        self._table = table
        self._memory = memory
        self._limits = limits
        self._clock = clock
        self._lanes: dict[Lane, deque[Work]] = {}
        self._changed: set[Lane] = set()
        self._generations: dict[Work, None] = {}
        self._prefills: dict[Work, None] = {}
        self._probes: dict[Work, None] = {}

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self._generations or self._prefills or self._probes)

    @property
    def running(self) -> int:
        """Operations that run."""
        return len(self._generations) + len(self._prefills) + len(self._probes)

    @property
    def waiting(self) -> int:
        """Operations that wait for another one of their session."""
        return sum(len(lane) for lane in self._lanes.values()) - self.running

    # --- operations come and go

    def submit(self, work: Work) -> None:
        """Takes an operation, and carries it out where nothing has to be computed."""
        operation = work.operation
        session = work.session = self._table.use(operation.session_id, self._clock())
        session.pending += 1
        if self._is_settled_already(work):
            return
        session.epoch = max(session.epoch, operation.epoch)
        match operation.action:
            case Cancel(operation_id):
                for other in self._works_of(operation.session_id):
                    if other.operation.operation_id == operation_id:
                        self._stop(other)
                self._finish(work, BranchChanged(_length(work)))
            case Close():
                self._close(work)
            case action:
                if isinstance(action, Truncate | Fork):
                    self._stop_lane(work.lane)
                self._lanes.setdefault(work.lane, deque()).append(work)
                self._changed.add(work.lane)
        self._advance()

    def expire(self) -> None:
        """Drops sessions that have been idle for too long."""
        self._table.expire(self._clock())

    def fail_all(self, message: str) -> None:
        """Fails everything that waits or runs."""
        for lane in list(self._lanes):
            for work in list(self._lanes[lane]):
                self._fail(work, Reason.INTERNAL, message)
        self._advance()

    # --- the first half of a step: the model reads

    def plan_readings(self) -> list[Reading]:
        """What the model reads in this step; first stops what was cancelled."""
        for work in [*self._generations, *self._prefills, *self._probes]:
            if work.is_gone():
                self._stop(work)
        self._advance()
        readings = [
            Reading(work, branch.slot, branch.length, (np.array([work.unread]),), 1)
            for work in self._generations
            if work.unread is not None
            for branch in (work.branch,)
        ]
        # A branch has one operation at a time: these are no more rows than there are slots.
        for work in self._probes:
            branch, embedding = work.branch, _probe(work).embedding
            readings.append(Reading(work, branch.slot, branch.length, (embedding,), 1))
        limits = self._limits
        budget = limits.shared_budget if self._generations else limits.budget
        read = {work: work.read for work in self._prefills}
        while read and budget > 0:
            # One piece of each in turn: a long prefill must not hold up a short one.
            for work in list(read):
                reading = self._next_piece(work, read[work])
                readings.append(reading)
                read[work] += reading.count
                budget -= reading.count
                if read[work] == _prefill(work).count:
                    del read[work]
                if budget <= 0:
                    break
        return readings

    def _next_piece(self, work: Work, read: int) -> Reading:
        prefill, branch = _prefill(work), work.branch
        end = min(read + self._limits.piece, prefill.count)
        pieces, offset = [], 0
        for part in prefill.parts:
            first, last = max(read - offset, 0), min(end - offset, len(part))
            if first < last:
                pieces.append(part[first:last])
            offset += len(part)
        return Reading(work, branch.slot, branch.length + read, tuple(pieces), end - read)

    def finish_readings(
        self, readings: Sequence[Reading], problems: Mapping[Work, Problem]
    ) -> None:
        """Takes over what the model has read; `problems` says for whom it could not."""
        for work, problem in problems.items():
            self._fail(work, problem.reason, problem.message)
        for reading in readings:
            work = reading.work
            if work in problems:
                continue
            if isinstance(work.operation.action, Generate):
                work.branch.length += 1
                work.unread = None
                continue
            if isinstance(work.operation.action, Probe):
                self._finish_probe(work)
                continue
            work.read += reading.count
            # Whoever was served goes to the end of the row.
            self._prefills[work] = self._prefills.pop(work)
            if work.read == _prefill(work).count:
                self._finish_prefill(work)
        self._advance()

    def _finish_prefill(self, work: Work) -> None:
        prefill, branch = _prefill(work), work.branch
        start, branch.length = branch.length, branch.length + prefill.count
        ends = np.cumsum([len(part) for part in prefill.parts], dtype=int) + start
        event = Prefilled(
            position=branch.length,
            part_positions=tuple(int(end) for end in ends),
            hidden_states=None,
            turn=self._memory.turn(branch.slot, branch.length, branch.probes),
            elapsed_ms=self._elapsed_ms(work),
        )
        answer = Answer((event,), branch, branch.cuts, start)
        work.session.remember(work.operation.operation_id, answer)
        self._answer(work, answer)

    def _finish_probe(self, work: Work) -> None:
        branch = work.branch
        state = self._memory.probe_state(branch.slot, branch.length)
        branch.probed(state, self._limits.history)
        turn = self._memory.turn(branch.slot, branch.length, branch.probes)
        if turn is None:
            self._fail(work, Reason.NO_PREDICTOR, "there is no full-duplex predictor to ask")
            return
        event = Probed(branch.length, turn, self._elapsed_ms(work))
        work.session.remember_probe(work.operation.operation_id, Answer((event,)))
        self._finish(work, event)

    # --- the second half of a step: tokens are drawn

    def plan_drawings(self) -> list[Drawing]:
        """Which tokens to draw; ends the generations that may have no more."""
        drawings = []
        for work in list(self._generations):
            generate, branch = _generate(work), work.branch
            if work.unread is not None:
                continue
            if len(work.tokens) == (generate.max_tokens or self._limits.max_tokens):
                self._finish_generate(work, FinishReason.LENGTH)
            elif branch.length == self._limits.context:
                self._finish_generate(work, FinishReason.CONTEXT)
            else:
                position = branch.length - 1
                drawings.append(Drawing(work, branch.slot, position, generate.sampling))
        self._advance()
        return drawings

    def finish_drawings(self, drawings: Sequence[Drawing], drawn: Sequence[int | Problem]) -> None:
        """Takes over the tokens that were drawn, and says so."""
        for drawing, token in zip(drawings, drawn, strict=True):
            work = drawing.work
            if isinstance(token, Problem):
                self._fail(work, token.reason, token.message)
            elif token in self._limits.stop_tokens:
                self._finish_generate(work, FinishReason.STOP)
            else:
                hidden = None
                if _generate(work).return_hidden_states:
                    hidden = self._memory.hidden_states(drawing.slot, drawing.position, 1)[0]
                event = TokenDrawn(len(work.tokens), token, hidden)
                work.tokens.append(token)
                work.unread = token
                _tell(work, event)
        self._advance()

    def _finish_generate(self, work: Work, reason: FinishReason) -> None:
        branch = work.branch
        event = Generated(reason, len(work.tokens), branch.length, self._elapsed_ms(work))
        tokens = [TokenDrawn(index, token, None) for index, token in enumerate(work.tokens)]
        start = _generate(work).position - 1
        answer = Answer((*tokens, event), branch, branch.cuts, start)
        work.session.remember(work.operation.operation_id, answer)
        self._finish(work, event)

    # --- lanes: the operations of one branch, in order

    def _advance(self) -> None:
        """Starts what no longer has to wait."""
        while self._changed:
            lane = self._changed.pop()
            while (works := self._lanes.get(lane)) and not works[0].running:
                if not self._begin(works[0]):
                    break

    def _begin(self, work: Work) -> bool:
        """Starts the head of a lane; False where it has to wait."""
        if self._is_settled_already(work):
            return True
        if work.is_gone():
            self._stop(work)
            return True
        match work.operation.action:
            case Prefill() as prefill:
                self._begin_prefill(work, prefill)
            case Generate(position):
                self._begin_generate(work, position)
            case Probe(position):
                self._begin_probe(work, position)
            case Truncate(position):
                if self._reaches(work, work.operation.branch, position):
                    work.branch.cut(position)
                    self._finish_change(work)
            case Fork(source, position):
                return self._fork(work, source, position)
        return True

    def _begin_prefill(self, work: Work, prefill: Prefill) -> None:
        end, context = prefill.position + prefill.count, self._limits.context
        is_new = work.operation.branch not in work.session.branches
        if not (is_new and prefill.position == 0) and not self._is_at(work, prefill.position):
            return
        if end > context:
            message = f"{prefill.count} positions from {prefill.position} on end at {end}"
            self._fail(work, Reason.CONTEXT_FULL, f"{message}; a branch holds {context}")
            return
        if is_new and self._open_branch(work) is None:
            return
        work.running = True
        self._prefills[work] = None
        if prefill.count == 0:
            self._finish_prefill(work)

    def _begin_generate(self, work: Work, position: int) -> None:
        if not self._is_at(work, position):
            return
        if position == 0:
            message = "an empty branch predicts no token; prefill it first"
            self._fail(work, Reason.BAD_CONTENT, message)
            return
        work.running = True
        self._generations[work] = None

    def _begin_probe(self, work: Work, position: int) -> None:
        if not self._is_at(work, position):
            return
        context = self._limits.context
        if position == context:
            message = f"the branch holds {context} positions, the limit: there is no room to read"
            self._fail(work, Reason.CONTEXT_FULL, message)
            return
        work.running = True
        self._probes[work] = None

    def _fork(self, work: Work, source: str, position: int) -> bool:
        session, name = work.session, work.operation.branch
        branch = session.branches.get(source)
        if branch is None or branch.length < position:
            ahead = self._lanes.get((work.operation.session_id, source))
            # What was sent before may still bring the source there. (Two forks of each other
            # would wait for ever.)
            if ahead and not isinstance(ahead[0].operation.action, Fork):
                return False
        if not self._reaches(work, source, position):
            return True
        target = session.branches.get(name) or self._open_branch(work)
        if target is None:
            return True
        original = session.branches[source]
        if target is not original:
            self._memory.copy(original.slot, target.slot, position)
        target.cut(position)
        self._finish_change(work)
        return True

    def _open_branch(self, work: Work) -> Branch | None:
        branch = self._table.open_branch(work.session, work.operation.branch)
        if branch is None:
            slots = self._table.slots_in_use
            message = f"all {slots} slots belong to sessions that are busy; close one or try later"
            self._fail(work, Reason.NO_SLOT, message)
        return branch

    def _is_at(self, work: Work, position: int) -> bool:
        """Whether the branch has this length; otherwise the work has failed."""
        if not self._reaches(work, work.operation.branch, position):
            return False
        length = work.branch.length
        if length != position:
            message = f"the operation is for position {position}, the branch ends at {length}"
            self._fail(work, Reason.WRONG_POSITION, message)
        return length == position

    def _reaches(self, work: Work, name: str, position: int) -> bool:
        """Whether a branch is there and has so many positions; otherwise the work has failed."""
        branch = work.session.branches.get(name)
        if branch is None:
            message = f"there is no branch {name!r} in the cache; prefill it from position 0 on"
            self._fail(work, Reason.CACHE_LOST, message)
            return False
        if branch.length < position:
            message = f"branch {name!r} ends at {branch.length}, before position {position}"
            self._fail(work, Reason.WRONG_POSITION, message)
            return False
        return True

    def _close(self, work: Work) -> None:
        session_id, name = work.lane
        if name:
            self._stop_lane(work.lane)
            self._table.close_branch(work.session, name)
            self._finish_change(work)
            return
        for other in self._works_of(session_id):
            self._stop(other)
        self._table.drop(session_id)
        self._finish(work, BranchChanged(0))

    # --- ends

    def _is_settled_already(self, work: Work) -> bool:
        """Whether the operation is refused for its epoch or has been carried out before."""
        operation, session = work.operation, work.session
        if operation.epoch < session.epoch:
            message = f"the operation's epoch is {operation.epoch}, the session's {session.epoch}"
            self._fail(work, Reason.STALE_EPOCH, message)
            return True
        answer = session.recall(operation.operation_id)
        if answer is None:
            return False
        if type(answer.events[-1]) is not _LAST_EVENT[type(operation.action)]:
            message = f"operation id {operation.operation_id!r} was used for another operation"
            self._fail(work, Reason.BAD_CONTENT, message)
        else:
            self._answer(work, answer)
        return True

    def _answer(self, work: Work, answer: Answer) -> None:
        """Tells what was answered, with hidden states as far as they are still there."""
        action, branch = work.operation.action, answer.branch
        wanted = isinstance(action, Prefill | Generate) and action.return_hidden_states
        found = branch if wanted and branch and branch.cuts == answer.cuts else None
        *before, last = answer.events
        for event in before:
            if found and isinstance(event, TokenDrawn):
                at = answer.start + event.index
                hidden = self._memory.hidden_states(found.slot, at, 1)[0]
                _tell(work, replace(event, hidden_state=hidden))
            else:
                _tell(work, event)
        if isinstance(action, Prefill) and isinstance(last, Prefilled):
            count = action.returned
            if found:
                start = last.position - count
                hidden = self._memory.hidden_states(found.slot, start, count)
                last = replace(last, hidden_states=hidden)
            if action.return_embeddings:
                read = self._memory.embeddings(_at_end(action.parts, count))
                last = replace(last, embeddings=read)
        self._finish(work, last)

    def _stop_lane(self, lane: Lane) -> None:
        for work in list(self._lanes.get(lane, ())):
            self._stop(work)

    def _stop(self, work: Work) -> None:
        """Ends an operation that was cancelled."""
        if work in self._generations:
            self._finish_generate(work, FinishReason.CANCELLED)
        elif isinstance(work.operation.action, Generate):
            elapsed = self._elapsed_ms(work)
            self._finish(work, Generated(FinishReason.CANCELLED, 0, _length(work), elapsed))
        else:
            self._fail(
                work, Reason.CANCELLED, "the operation was cancelled; nothing of it was done"
            )

    def _fail(self, work: Work, reason: Reason, message: str) -> None:
        branch = work.session.branches.get(work.operation.branch)
        if work in self._prefills and branch is not None and branch.length == 0:
            # It was to be this prefill's branch: there is no use for it now.
            self._table.close_branch(work.session, work.operation.branch)
        self._finish(work, Failed(reason, message, _length(work)))

    def _finish_change(self, work: Work) -> None:
        event = BranchChanged(_length(work))
        work.session.remember(work.operation.operation_id, Answer((event,)))
        self._finish(work, event)

    def _finish(self, work: Work, event: Event) -> None:
        self._generations.pop(work, None)
        self._prefills.pop(work, None)
        self._probes.pop(work, None)
        lane = self._lanes.get(work.lane)
        if lane is not None and work in lane:
            lane.remove(work)
            if not lane:
                del self._lanes[work.lane]
        # Forks of the session may have waited for it in other lanes.
        self._changed.update(key for key in self._lanes if key[0] == work.lane[0])
        work.session.pending -= 1
        work.session.last_used = self._clock()
        _tell(work, event)

    def _works_of(self, session_id: str) -> list[Work]:
        lanes = [works for lane, works in self._lanes.items() if lane[0] == session_id]
        return [work for works in lanes for work in works]

    def _elapsed_ms(self, work: Work) -> float:
        return (self._clock() - work.received) * 1000


def _tell(work: Work, event: Event) -> None:
    try:
        work.on_event(event)
    except Exception:
        log.exception("cannot tell the caller of %s; it is cancelled", work.operation.operation_id)
        work.cancelled = True


def _length(work: Work) -> int:
    branch = work.session.branches.get(work.operation.branch)
    return branch.length if branch else 0


def _at_end(parts: Sequence[Tokens | Matrix], count: int) -> list[Tokens | Matrix]:
    """The last `count` positions of a content."""
    kept: list[Tokens | Matrix] = []
    for part in reversed(parts):
        kept.append(part[max(0, len(part) - count) :])
        count -= len(kept[-1])
    return kept[::-1]


def _prefill(work: Work) -> Prefill:
    assert isinstance(work.operation.action, Prefill)
    return work.operation.action


def _probe(work: Work) -> Probe:
    assert isinstance(work.operation.action, Probe)
    return work.operation.action


def _generate(work: Work) -> Generate:
    assert isinstance(work.operation.action, Generate)
    return work.operation.action
