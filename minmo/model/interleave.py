"""The voice token LM's sequence: five semantic vectors, fifteen speech tokens, and so on.

`[start, query prefix*, 5 vectors, 15 speech tokens, 5 vectors, 15 speech tokens, ...,
the remaining vectors, turn of speech, speech tokens until the end]`

The sequence is CosyVoice 2's, with the user's query as a prefix after the start (MinMo, section
3.2). Every speech token is an input too, the last one of a group included; what that one predicts
(fill) is never drawn. One state machine says what comes next: the engine feeds and draws by it,
and `interleave` runs it over text and speech that are both known, which gives the targets of
training.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from minmo.model.token_loss import IGNORED

_FREE_SPEECH = 50
"""Speech tokens that any text may have, however short: 2 s."""


class Kind(IntEnum):
    """What an input of the sequence is."""

    START = 0
    TURN_OF_SPEECH = 1
    PREFIX = 2
    SEMANTIC = 3
    SPEECH = 4


class Input(NamedTuple):
    """One input of the sequence.

    Attributes:
        kind: what it is.
        value: number of the prefix's or of the semantic vector; the speech token; otherwise 0.
    """

    kind: Kind
    value: int = 0


class ContextFullError(ValueError):
    """The sequence is longer than the LM's context; the text says by how much."""


class _Phase(Enum):
    TEXT = "semantic vectors come next"
    GROUP = "speech of a group comes next"
    TAIL = "speech until the end comes next"
    DONE = "all is spoken"


class Interleaving:
    """What one sequence takes in next, and when a token is to be drawn.

    ::

        interleaving = Interleaving(5, 15, max_positions=4096, end=6561)
        interleaving.push(vectors)               # as they come; then end()
        while inputs := interleaving.feed():     # none: wait for text, or all is spoken
            hidden = lm(embed(inputs), ...)
            if interleaving.draws:
                interleaving.draw(sampler.draw(lm.logits(hidden[-1]), interleaving.may_end))

    Args:
        text_group: semantic vectors of a group.
        speech_group: speech tokens that follow each group.
        max_positions: inputs that the LM's context holds.
        end: the class that ends the speech; speech tokens are the classes before it.
        prefix: vectors of the query.
        max_groups: groups that interleave; further vectors wait until all of them are there. None
            for any number, 0 for a sequence in which all text comes before all speech.
        max_speech_per_vector: bounds the speech of a model that does not find its end, together
            with two seconds that any text may have; None for no bound. The default is CosyVoice
            2's; people speak about 7 tokens of speech for one of text.
    """

    def __init__(
        self,
        text_group: int,
        speech_group: int,
        max_positions: int,
        end: int,
        prefix: int = 0,
        max_groups: int | None = None,
        max_speech_per_vector: int | None = 20,
    ) -> None:
        self._text_group, self._speech_group = text_group, speech_group
        self._max_positions, self._end = max_positions, end
        self._max_groups, self._max_speech_per_vector = max_groups, max_speech_per_vector
        self._phase = _Phase.TEXT
        self._waiting = [Input(Kind.START), *(Input(Kind.PREFIX, i) for i in range(prefix))]
        self._draws = self._ended = False
        self._vectors = self._fed_vectors = self._groups = self._left_in_group = 0
        self._positions = self._spoken = 0

    @property
    def positions(self) -> int:
        """Inputs that were fed."""
        return self._positions

    @property
    def fed_vectors(self) -> int:
        """Semantic vectors that were fed."""
        return self._fed_vectors

    @property
    def spoken(self) -> int:
        """Speech tokens that were drawn."""
        return self._spoken

    @property
    def draws(self) -> bool:
        """Whether the last input's prediction is to be drawn before anything else is fed."""
        return self._draws

    @property
    def may_end(self) -> bool:
        """Whether that prediction may be the end: only after the last semantic vector."""
        return self._phase is _Phase.TAIL

    @property
    def done(self) -> bool:
        """Whether all is spoken."""
        return self._phase is _Phase.DONE

    def push(self, vectors: int = 1) -> None:
        """So many more semantic vectors are there.

        Raises:
            ValueError: the text has ended.
        """
        if self._ended:
            raise ValueError(f"{vectors} semantic vectors came after the text's end")
        self._vectors += vectors

    def end(self) -> None:
        """No more semantic vectors follow. Without any there is nothing to speak."""
        self._ended = True
        if not self._vectors:
            self._phase = _Phase.DONE

    def feed(self) -> list[Input]:
        """The inputs to feed now, in order; empty while text is missing, or when all is spoken.

        The start and the prefix come at once, so that they are read before there is text. A
        group's last speech token comes together with what follows it.

        Raises:
            ValueError: a token is to be drawn first.
            ContextFullError: the LM's context does not hold them; nothing was fed.
        """
        if self._draws:
            raise ValueError("the last input's prediction must be drawn before more is fed")
        if self._phase is _Phase.DONE:
            return []
        text = self._next_text() if self._phase is _Phase.TEXT else []
        draws = bool(text) or self._phase is not _Phase.TEXT
        if not draws and self._positions:
            return []
        inputs = self._waiting + text
        self._positions += self._fitting(len(inputs))
        self._waiting = []
        self._draws = draws
        if text:
            self._note(text)
        return inputs

    def draw(self, token: int) -> None:
        """Takes the class that was drawn.

        Raises:
            ValueError: nothing was to be drawn, or the class cannot come here.
        """
        if not self._draws:
            raise ValueError(f"class {token} was drawn where nothing is to be drawn")
        if not 0 <= token < self._end + self.may_end:
            allowed = f"0 to {self._end - 1}" + (f", and the end, {self._end}" * self.may_end)
            raise ValueError(
                f"class {token} was drawn where only speech tokens may come: {allowed}"
            )
        self._draws = False
        if token == self._end:
            self._phase = _Phase.DONE
            return
        self._spoken += 1
        self._waiting = [Input(Kind.SPEECH, token)]
        if self._phase is _Phase.GROUP:
            self._left_in_group -= 1
            if not self._left_in_group:
                self._phase = _Phase.TEXT
        elif self._speaks_too_long():
            self._phase = _Phase.DONE

    def _next_text(self) -> list[Input]:
        """The next group of semantic vectors, or the last ones; empty if they are not there yet."""
        there = self._vectors - self._fed_vectors
        full = there >= self._text_group and self._groups != self._max_groups
        if not (full or self._ended):
            return []
        count = self._text_group if full else there
        vectors = [Input(Kind.SEMANTIC, self._fed_vectors + i) for i in range(count)]
        return vectors if full else [*vectors, Input(Kind.TURN_OF_SPEECH)]

    def _note(self, text: list[Input]) -> None:
        self._fed_vectors += sum(item.kind is Kind.SEMANTIC for item in text)
        if text[-1].kind is Kind.TURN_OF_SPEECH:
            self._phase = _Phase.TAIL
        else:
            self._phase = _Phase.GROUP
            self._groups += 1
            self._left_in_group = self._speech_group

    def _fitting(self, inputs: int) -> int:
        needed = self._positions + inputs
        if needed > self._max_positions:
            raise ContextFullError(
                f"the sequence needs {needed} positions ({self._fed_vectors} semantic vectors and "
                f"{self._spoken} speech tokens so far); the voice token LM holds "
                f"{self._max_positions}: shorten the query's prefix, or speak the text in parts"
            )
        return inputs

    def _speaks_too_long(self) -> bool:
        bound = self._max_speech_per_vector
        return bound is not None and self._spoken >= bound * self._vectors + _FREE_SPEECH


class Interleaved(NamedTuple):
    """A whole sequence with its targets.

    Attributes:
        inputs: in order.
        targets: for each, the class that it predicts, or `IGNORED`.
    """

    inputs: list[Input]
    targets: list[int]


def interleave(
    vectors: int,
    speech: Sequence[int],
    *,
    speech_tokens: int,
    max_positions: int,
    text_group: int = 5,
    speech_group: int = 15,
    prefix: int = 0,
    max_groups: int | None = None,
) -> Interleaved:
    """Lays out text and speech that are both known, for training.

    Where the speech is too short for the text's groups, only those interleave that are full: the
    vectors that are left come together before the rest of the speech.

    Args:
        vectors: semantic vectors, at least one.
        speech: speech tokens, 0 to `speech_tokens - 1`.
        speech_tokens: of the tokenizer; the end is the class after them, the fill two further.
        max_positions: inputs that the LM's context holds.
        text_group: semantic vectors of a group.
        speech_group: speech tokens of a group.
        prefix: vectors of the query.
        max_groups: groups that interleave; None for all, 0 for text before speech.

    Raises:
        ValueError: there is no text, or a speech token is out of range.
        ContextFullError: the sequence is too long.
    """
    if vectors < 1:
        raise ValueError(f"there are {vectors} semantic vectors: speech needs at least one")
    if (needed := 2 + prefix + vectors + len(speech)) > max_positions:
        raise ContextFullError(
            f"a prefix of {prefix}, {vectors} semantic vectors and {len(speech)} speech tokens "
            f"need {needed} positions; the voice token LM holds {max_positions}: shorten the pair"
        )
    end, fill = speech_tokens, speech_tokens + 2
    if strange := [token for token in speech if not 0 <= token < end]:
        raise ValueError(f"{strange[0]} is no speech token: those are 0 to {end - 1}")
    full = len(speech) // speech_group
    groups = full if max_groups is None else min(full, max_groups)
    sequence = Interleaving(text_group, speech_group, max_positions, end, prefix, groups, None)
    sequence.push(vectors)
    sequence.end()
    inputs: list[Input] = []
    targets: list[int] = []
    rest = iter([*speech, end])
    while fed := sequence.feed():
        after_group = fed[0].kind is Kind.SPEECH and len(fed) > 1
        drawn = next(rest)
        sequence.draw(drawn)
        inputs += fed
        targets += [*([fill] * after_group), *([IGNORED] * (len(fed) - 1 - after_group)), drawn]
    return Interleaved(inputs, targets)


class InterleavedBatch(NamedTuple):
    """Sequences of different lengths as tensors.

    Attributes:
        kinds: `[batch, positions]`, of each input (`Kind`).
        values: `[batch, positions]`, of each input.
        targets: `[batch, positions]`, classes, or `IGNORED`, as everywhere behind a length.
        lengths: `[batch]`, inputs of each sequence.
    """

    kinds: Tensor
    values: Tensor
    targets: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str) -> InterleavedBatch:
        """The same on another device."""
        return InterleavedBatch(*(tensor.to(device) for tensor in self))


def collate(sequences: Sequence[Interleaved]) -> InterleavedBatch:
    """Makes a batch of sequences, filled up behind the ends of the shorter ones."""
    lengths = torch.tensor([len(sequence.inputs) for sequence in sequences])
    shape = (len(sequences), int(lengths.max()))
    kinds, values = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    targets = torch.full(shape, IGNORED)
    for row, (inputs, classes) in enumerate(sequences):
        kinds[row, : len(inputs)] = torch.tensor([item.kind for item in inputs])
        values[row, : len(inputs)] = torch.tensor([item.value for item in inputs])
        targets[row, : len(inputs)] = torch.tensor(classes)
    return InterleavedBatch(kinds, values, targets, lengths)
