"""What callers ask of the engine, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Tokens: TypeAlias = NDArray[np.int64]
Matrix: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: draws among the most probable tokens that together reach this, above 0 to 1.
        seed: the same seed gives the same tokens.
        repetition_penalty: above 1, tokens of the answer so far become less probable.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, eq=False)
class Prefill:
    """Appends content.

    Attributes:
        position: length of the branch; 0 also creates it.
        parts: token ids `[positions]` or embeddings `[positions, width]`, in order.
        return_hidden_states: whether the answer carries the last hidden states.
        return_embeddings: whether it carries the embeddings that were read.
        return_last: positions whose it carries, at the end; 0 means all.
    """

    position: int
    parts: tuple[Tokens | Matrix, ...]
    return_hidden_states: bool = False
    return_embeddings: bool = False
    return_last: int = 0

    @property
    def count(self) -> int:
        """Positions in all."""
        return sum(len(part) for part in self.parts)

    @property
    def returned(self) -> int:
        """Positions whose hidden states and embeddings are asked for, if any are."""
        return min(self.count, self.return_last or self.count)


@dataclass(frozen=True)
class Generate:
    """Produces tokens.

    Attributes:
        position: length of the branch.
        max_tokens: at most so many; 0 means the engine's limit.
        sampling: how they are drawn.
        return_hidden_states: whether tokens carry the hidden state that predicted them.
    """

    position: int
    max_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    return_hidden_states: bool = False


@dataclass(frozen=True, eq=False)
class Probe:
    """Reads one embedding at the end of the branch without keeping it, and asks the predictor.

    Attributes:
        position: length of the branch, which stays as it is.
        embedding: `[1, width]`, of `minmo.model.probing`.
    """

    position: int
    embedding: Matrix


@dataclass(frozen=True)
class Fork:
    """Makes the branch a copy of the first `position` positions of `source`."""

    source: str
    position: int


@dataclass(frozen=True)
class Truncate:
    """Cuts the branch to `position` positions."""

    position: int


@dataclass(frozen=True)
class Cancel:
    """Stops an operation of the session."""

    operation_id: str


@dataclass(frozen=True)
class Close:
    """Frees the branch, or the session where the branch is ""."""


Action: TypeAlias = Prefill | Generate | Probe | Fork | Truncate | Cancel | Close


@dataclass(frozen=True, eq=False)
class Operation:
    """One thing to do on one branch.

    Attributes:
        operation_id: unique within the session. Sent again after it was carried out, the
            operation is answered again and not carried out twice.
        session_id: whose cache.
        branch: which row of positions of it.
        epoch: below the session's highest one, the operation is refused.
        action: what to do.
    """

    operation_id: str
    session_id: str
    branch: str
    epoch: int
    action: Action


class Reason(Enum):
    """Why an operation failed; the names go over the wire."""

    STALE_EPOCH = "the conversation was rewound since"
    CACHE_LOST = "the branch is not in this replica's cache"
    WRONG_POSITION = "the branch has another length"
    CONTEXT_FULL = "the branch can hold no more positions"
    NO_SLOT = "every slot is in use"
    BAD_CONTENT = "the content cannot be read"
    CANCELLED = "it was cancelled"
    BUSY = "too many operations wait"
    NO_PREDICTOR = "no full-duplex predictor is loaded"
    INTERNAL = "the model failed"


class FinishReason(Enum):
    """Why a generation ended; the names go over the wire."""

    STOP = "the model ended its turn"
    LENGTH = "the limit of tokens"
    CONTEXT = "the context is full"
    CANCELLED = "it was cancelled"


@dataclass(frozen=True)
class Prefilled:
    """The content is in the cache.

    Attributes:
        position: length of the branch.
        part_positions: length of the branch after each part.
        hidden_states: `[positions, width]` of the content, if asked for.
        turn: probabilities of assistant and user turn-taking, where a predictor is loaded.
        elapsed_ms: time since the operation was submitted.
        embeddings: `[positions, width]` that were read there, if asked for.
    """

    position: int
    part_positions: tuple[int, ...]
    hidden_states: Matrix | None
    turn: tuple[float, float] | None
    elapsed_ms: float
    embeddings: Matrix | None = None


@dataclass(frozen=True)
class TokenDrawn:
    """One token.

    Attributes:
        index: its number within the generation, from 0.
        token: its id.
        hidden_state: `[width]`, the last hidden state that predicted it, if asked for.
    """

    index: int
    token: int
    hidden_state: Matrix | None


@dataclass(frozen=True)
class Generated:
    """The generation ended.

    Attributes:
        reason: why.
        token_count: tokens drawn.
        position: length of the branch. Every token is in it, but for the last one of a cancelled
            generation.
        elapsed_ms: time since the operation was submitted.
    """

    reason: FinishReason
    token_count: int
    position: int
    elapsed_ms: float


@dataclass(frozen=True)
class Probed:
    """The predictor has answered.

    Attributes:
        position: length of the branch, as before.
        turn: probabilities of assistant and user turn-taking.
        elapsed_ms: time since the operation was submitted.
    """

    position: int
    turn: tuple[float, float]
    elapsed_ms: float


@dataclass(frozen=True)
class BranchChanged:
    """Fork, truncate, cancel or close were carried out; `position` is the branch's length."""

    position: int


@dataclass(frozen=True)
class Failed:
    """Nothing was done; `position` is the branch's length, 0 where there is none."""

    reason: Reason
    message: str
    position: int = 0


Event: TypeAlias = Prefilled | TokenDrawn | Generated | Probed | BranchChanged | Failed
OnEvent: TypeAlias = Callable[[Event], None]
IsCancelled: TypeAlias = Callable[[], bool]


def is_last(event: Event) -> bool:
    """Whether an operation has no further event after this one."""
    return not isinstance(event, TokenDrawn)
