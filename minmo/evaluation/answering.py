"""Answers of the LLM to user's turns, many at a time: greedy, in the product's chat format."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from minmo.audio.pcm import Samples
from minmo.engine.prompt import ChatFormat
from minmo.engine.voice import HiddenStates, Query
from minmo.evaluation.clips import Clip
from minmo.evaluation.errors import EvaluationError
from minmo.evaluation.modules import written_by
from minmo.evaluation.systems import Aligned, System, Turn
from minmo.model.llm import Llm, LlmCache, Segment
from minmo.settings import OrchestratorSettings

Key = TypeVar("Key", bound=Hashable)

SYSTEM_PROMPT: str = OrchestratorSettings.model_fields["system_prompt"].default
MAX_TOKENS = 48
SLOTS = 16
_CONTEXT = 1024
_SHORTEST_SPAN = 64


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: as people read it.
        tokens: of it, without the end of the turn.
    """

    text: str
    tokens: list[int]


@dataclass
class _Running(Generic[Key]):
    key: Key
    position: int
    tokens: list[int] = field(default_factory=list)


class Answerer:
    """The LLM behind the instructions that it is told before the first turn.

    Args:
        llm: the model.
        chat: its format.
        instructions: the product's by default.
        slots: answers that are made at once.
        max_tokens: of an answer.
    """

    def __init__(
        self,
        llm: Llm,
        chat: ChatFormat,
        instructions: str = SYSTEM_PROMPT,
        slots: int = SLOTS,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self._llm, self._chat, self.max_tokens = llm, chat, max_tokens
        self.to_text = written_by(chat)
        head = [*chat.role_start("system"), *chat.text(instructions), *chat.turn_end()]
        self._prefix = [*head, *chat.role_start("user")]
        self._end = chat.turn_end()
        self._suffix = [*self._end, *chat.role_start("assistant")]
        # Behind the answers' slots one keeps the instructions, and one is for work on one turn.
        self._slots, self._kept, self._alone = slots, slots, slots + 1
        context = min(_CONTEXT, llm.config.max_context)
        self._cache = LlmCache(llm.config, slots + 2, context, llm.dtype, llm.device)
        with torch.inference_mode():
            rows = llm.embed(torch.tensor(self._prefix))
            llm(rows, [Segment(self._kept, 0, len(rows))], self._cache)
        self._room = context - len(self._prefix) - len(self._suffix) - max_tokens
        if self._room < 1:
            raise EvaluationError(
                f"the instructions take {len(self._prefix)} of {context} positions: shorten them"
            )

    @torch.inference_mode()
    def answers(self, turns: Iterable[tuple[Key, Turn]]) -> Iterator[tuple[Key, Answer]]:
        """Answers turns in the order in which answers end: as soon as one does, the next begins.

        Raises:
            EvaluationError: a turn is too long.
        """
        waiting = iter(turns)
        running: dict[int, _Running[Key]] = {}
        free, is_over = list(range(self._slots)), False
        while True:
            started: list[tuple[int, Key, Tensor]] = []
            while free and not is_over:
                item = next(waiting, None)
                if item is None:
                    is_over = True
                else:
                    started.append((free.pop(), item[0], self._rows(item[1])))
            if not started and not running:
                return
            for slot in self._start(running, started) if started else self._step(running):
                finished = running.pop(slot)
                free.append(slot)
                yield finished.key, Answer(self.to_text(finished.tokens), finished.tokens)

    @torch.inference_mode()
    def first_token_s(self, system: System, clip: Clip, samples: Samples) -> float:
        """Seconds of computation from the last sample to the first token of the answer.

        What can be read while the user speaks is read then: the instructions, and in the aligned
        path the pieces that are over. Behind the last 20 ms come the last block, the projector,
        the head, the merging, and the LLM over what is left and the end of the turn.

        Args:
            system: that listens.
            clip: what is known of the clip.
            samples: `[samples]` at 16 kHz.

        Raises:
            EvaluationError: the turn is too long.
        """
        slot = self._open()
        position = len(self._prefix)
        came = time.perf_counter()
        rest: list[Tensor] = []
        if isinstance(system, Aligned):
            for part in system.parts(samples):
                came, rows = part.came, part.heard.embeddings.to(self._llm.dtype)
                if part.is_last:
                    rest = [rows]
                elif len(rows):
                    position = self._read(rows, slot, position)
        else:
            turn = system.listen(clip, samples)
            came = time.perf_counter() - (turn.latency_s or 0.0)
            rest = [self._content(turn)]
        rest.append(self._llm.embed(torch.tensor(self._suffix)))
        self._check(position + sum(map(len, rest)) - len(self._prefix) - len(self._suffix))
        segment = Segment(slot, position, sum(map(len, rest)))
        hidden = self._llm(torch.cat(rest), [segment], self._cache)
        self._llm.logits(hidden[-1:]).argmax(-1).item()
        return time.perf_counter() - came

    def ended(self, answer: Answer) -> list[int]:
        """The tokens of an answer, with the end of the turn if it came to it."""
        is_cut = len(answer.tokens) >= self.max_tokens
        return answer.tokens if is_cut else [*answer.tokens, self._chat.end_token]

    @torch.inference_mode()
    def log_probabilities(self, turn: Turn, tokens: Sequence[int]) -> Tensor:
        """Log probabilities of the next token along a given answer.

        Args:
            turn: the user's.
            tokens: of the answer; at least one.

        Returns:
            `[tokens, vocabulary]`, float32: row i after i tokens of the answer.
        """
        rows = [
            self._rows(turn),
            self._llm.embed(torch.tensor(list(tokens[:-1]), dtype=torch.long)),
        ]
        hidden = self._hidden(torch.cat(rows))[-len(tokens) :]
        return self._llm.logits(hidden).log_softmax(-1)

    @torch.inference_mode()
    def state(self, turn: Turn) -> Tensor:
        """The LLM's last hidden state `[width]` at the end of the user's turn."""
        rows = torch.cat((self._content(turn), self._llm.embed(torch.tensor(self._end))))
        return self._hidden(rows)[-1].float()

    @torch.inference_mode()
    def read_answer(self, turn: Turn, tokens: Sequence[int]) -> tuple[Query, HiddenStates]:
        """What a voice reads of an answer that is given: it is read to the LLM as its own.

        Args:
            turn: the user's.
            tokens: of the answer; at least one.

        Returns:
            The user's turn as the LLM read it, and `[tokens, width]`, float32: for each token the
            hidden state that predicts it.

        Raises:
            EvaluationError: turn and answer are too long together.
        """
        content, suffix = self._content(turn), self._llm.embed(torch.tensor(self._suffix))
        self._check(len(content) + max(0, len(tokens) - self.max_tokens))
        said = self._llm.embed(torch.tensor(list(tokens[:-1]), dtype=torch.long))
        hidden = self._hidden(torch.cat((content, suffix, said))).float().numpy()
        query = Query(content.float().numpy(), hidden[: len(content)])
        return query, hidden[-len(tokens) :]

    def _hidden(self, rows: Tensor) -> Tensor:
        slot = self._open()
        segment = Segment(slot, len(self._prefix), len(rows))
        hidden: Tensor = self._llm(rows, [segment], self._cache)
        return hidden

    def _open(self) -> int:
        """The slot for work on one turn, which has read the instructions."""
        self._cache.copy(self._kept, self._alone, len(self._prefix))
        return self._alone

    def _read(self, rows: Tensor, slot: int, position: int) -> int:
        self._check(position + len(rows) - len(self._prefix))
        self._llm(rows, [Segment(slot, position, len(rows))], self._cache)
        return position + len(rows)

    def _content(self, turn: Turn) -> Tensor:
        """What stands in the user's turn, `[positions, width]`."""
        if turn.embeddings is not None:
            rows = turn.embeddings.to(self._llm.device, self._llm.dtype)
        else:
            rows = self._llm.embed(torch.tensor(self._chat.text(turn.text), dtype=torch.long))
        self._check(len(rows))
        return rows

    def _check(self, positions: int) -> None:
        if positions > self._room:
            raise EvaluationError(
                f"a turn takes {positions} positions of the LLM; at most {self._room} fit: leave "
                "out clips that are so long"
            )

    def _rows(self, turn: Turn) -> Tensor:
        suffix = self._llm.embed(torch.tensor(self._suffix))
        return torch.cat((self._content(turn), suffix))

    def _start(
        self, running: dict[int, _Running[Key]], started: Sequence[tuple[int, Key, Tensor]]
    ) -> list[int]:
        """Reads turns and draws the first token of each; gives the slots that end with it."""
        begin = len(self._prefix)
        segments = []
        for slot, _, rows in started:
            self._cache.copy(self._kept, slot, begin)
            segments.append(Segment(slot, begin, len(rows)))
        hidden = self._llm(torch.cat([rows for _, _, rows in started]), segments, self._cache)
        ends = torch.tensor([segment.length for segment in segments]).cumsum(0) - 1
        for slot, key, rows in started:
            running[slot] = _Running(key, begin + len(rows))
        return self._draw(running, [slot for slot, _, _ in started], hidden[ends])

    def _step(self, running: dict[int, _Running[Key]]) -> list[int]:
        """Draws one more token of each answer; gives the slots that end with it."""
        slots = list(running)
        tokens = torch.tensor([running[slot].tokens[-1] for slot in slots])
        positions = [running[slot].position for slot in slots]
        span = _SHORTEST_SPAN
        while span <= max(positions):
            span *= 2
        hidden = self._llm.decode(
            self._llm.embed(tokens),
            torch.tensor(slots),
            torch.tensor(positions),
            self._cache,
            min(span, self._cache.context),
        )
        for slot in slots:
            running[slot].position += 1
        return self._draw(running, slots, hidden)

    def _draw(
        self, running: dict[int, _Running[Key]], slots: Sequence[int], hidden: Tensor
    ) -> list[int]:
        done = []
        drawn: list[int] = self._llm.logits(hidden).argmax(-1).tolist()
        for slot, token in zip(slots, drawn, strict=True):
            one = running[slot]
            if token != self._chat.end_token:
                one.tokens.append(token)
            if token == self._chat.end_token or len(one.tokens) >= self.max_tokens:
                done.append(slot)
        return done
