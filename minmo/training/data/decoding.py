"""Many sequences of the LLM at once: when one has ended, the next one takes its place.

`minmo.engine` serves sessions, each with its own pace; here all work is known and only throughput
counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from minmo.model.llm import Llm, LlmCache, Segment

Choose = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits `[rows, vocabulary]` and each row's sequence number, to tokens `[rows]`."""

BATCH = 32
"""Sequences at once: beyond, a laptop's CPU gains little and memory grows."""


@dataclass(frozen=True)
class Written:
    """What the LLM wrote after one prompt.

    Attributes:
        number: of the prompt.
        tokens: without the one that ended it.
        ended: whether it came to an end by itself.
    """

    number: int
    tokens: list[int]
    ended: bool


@dataclass
class _Row:
    number: int
    slot: int
    position: int
    tokens: list[int] = field(default_factory=list)


def greedy(logits: Tensor, _: Sequence[int]) -> Tensor:
    """The likeliest tokens."""
    return logits.argmax(-1)


class Sampler:
    """Tokens drawn from the likeliest ones, for each sequence by a seed of its own.

    Args:
        seed: of everything.
        temperature: above 1 is bolder.
        top_p: likelihood of the tokens that are drawn from.
    """

    def __init__(self, seed: int, temperature: float, top_p: float) -> None:
        self._seed, self._temperature, self._top_p = seed, temperature, top_p
        self._generators: dict[int, torch.Generator] = {}

    def __call__(self, logits: Tensor, numbers: Sequence[int]) -> Tensor:
        """Draws one token for each row."""
        best, tokens = logits.topk(min(128, logits.shape[-1]))
        shares = (best / self._temperature).softmax(-1)
        # The first token beyond the bound still counts: the likeliest one always does.
        shares = shares.masked_fill(shares.cumsum(-1) - shares > self._top_p, 0)
        drawn = [
            torch.multinomial(row, 1, generator=self._generator(number))
            for row, number in zip(shares, numbers, strict=True)
        ]
        return tokens.gather(1, torch.stack(drawn))[:, 0]

    def _generator(self, number: int) -> torch.Generator:
        if number not in self._generators:
            # The generator takes 32 bits, in which both have to count.
            mixed = np.random.SeedSequence((self._seed, number)).generate_state(1)[0]
            self._generators[number] = torch.Generator().manual_seed(int(mixed))
        return self._generators[number]


@torch.inference_mode()
def write_all(
    llm: Llm,
    shared: Sequence[int],
    prompts: Sequence[Sequence[int]],
    stop: frozenset[int],
    max_tokens: int,
    choose: Choose = greedy,
    batch: int = BATCH,
) -> Iterator[Written]:
    """Lets the LLM write after each prompt; gives what is ready, in about the order of prompts.

    Args:
        llm: that writes.
        shared: tokens that all prompts begin with; read once.
        prompts: what follows, for each sequence.
        stop: tokens that end a sequence.
        max_tokens: of one.
        choose: of tokens.
        batch: sequences at once.
    """
    if not prompts:
        return
    longest = max(len(prompt) for prompt in prompts)
    base = len(shared)
    slots = min(batch, len(prompts))
    cache = LlmCache(llm.config, slots + 1, base + longest + max_tokens, llm.dtype, llm.device)
    kept = slots
    if shared:
        tokens = torch.tensor(shared, device=llm.device)
        llm(llm.embed(tokens), [Segment(kept, 0, base)], cache)
    waiting = list(range(len(prompts)))[::-1]
    free = list(range(slots))
    rows: list[_Row] = []
    while rows or waiting:
        hidden = _step(llm, rows, cache)
        if free and waiting:
            fresh = [
                _Row(waiting.pop(), free.pop(), base) for _ in range(min(len(free), len(waiting)))
            ]
            hidden = torch.cat((hidden, _read(llm, fresh, prompts, kept, base, cache)))
            rows += fresh
        chosen = choose(llm.logits(hidden), [row.number for row in rows]).tolist()
        going = []
        for row, token in zip(rows, chosen, strict=True):
            ended = token in stop
            if not ended:
                row.tokens.append(token)
            if ended or len(row.tokens) >= max_tokens:
                free.append(row.slot)
                yield Written(row.number, row.tokens, ended)
            else:
                going.append(row)
        rows = going


def _step(llm: Llm, rows: Sequence[_Row], cache: LlmCache) -> Tensor:
    """Hidden states `[rows, width]` after the last token of each sequence."""
    if not rows:
        return torch.zeros(0, llm.config.width, dtype=llm.dtype, device=llm.device)
    tokens = torch.tensor([row.tokens[-1] for row in rows], device=llm.device)
    slots = torch.tensor([row.slot for row in rows], device=llm.device)
    positions = torch.tensor([row.position for row in rows], device=llm.device)
    hidden = llm.decode(llm.embed(tokens), slots, positions, cache, int(positions.max()) + 1)
    for row in rows:
        row.position += 1
    return hidden


def _read(
    llm: Llm,
    rows: Sequence[_Row],
    prompts: Sequence[Sequence[int]],
    kept: int,
    base: int,
    cache: LlmCache,
) -> Tensor:
    """Reads the prompts of new sequences; hidden states `[rows, width]` after each."""
    segments: list[Segment] = []
    tokens: list[int] = []
    for row in rows:
        cache.copy(kept, row.slot, base)
        segments.append(Segment(row.slot, base, len(prompts[row.number])))
        tokens += prompts[row.number]
        row.position = base + len(prompts[row.number])
    hidden = llm(llm.embed(torch.tensor(tokens, device=llm.device)), segments, cache)
    ends = torch.tensor([segment.length for segment in segments]).cumsum(0) - 1
    last: Tensor = hidden[ends.to(hidden.device)]
    return last
