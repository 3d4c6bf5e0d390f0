"""What every LLM keeps to while sequences come in pieces, for random and for pretrained weights.

Numbers are compared with `forward_sequence`, which knows neither pieces nor slots nor a cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minmo.model.llm import Llm, LlmCache, Segment

SLOTS = 4


def fresh(llm: Llm, ids: Tensor) -> Tensor:
    """Last hidden states `[positions, width]` of token ids that are read at once, with no past."""
    with torch.inference_mode():
        return llm.forward_sequence(llm.embed(ids)[None])[0]


def filled_cache(llm: Llm, context: int) -> LlmCache:
    """A cache whose every number is one that must never be seen."""
    cache = LlmCache(llm.config, SLOTS, context, llm.dtype)
    cache.keys_values.fill_(float("nan"))
    cache.hidden.fill_(float("nan"))
    return cache


@torch.inference_mode()
def check_any_chunking(llm: Llm, streams: list[Tensor], atol: float, seed: int = 0) -> None:
    """Streams in slots of their own, cut at random, some waiting, some read one by one."""
    generator = torch.Generator().manual_seed(seed)
    cache = filled_cache(llm, max(map(len, streams)))
    done = [0] * len(streams)
    while any(at < len(ids) for at, ids in zip(done, streams, strict=True)):
        segments, rows = [], []
        for slot, ids in enumerate(streams):
            wanted = int(torch.randint(0, 9, (), generator=generator))
            length = min(wanted, len(ids) - done[slot])
            if length:
                segments.append(Segment(slot, done[slot], length))
                rows.append(ids[done[slot] : done[slot] + length])
                done[slot] += length
        if segments:
            padding = torch.zeros(int(torch.randint(0, 4, (), generator=generator)), dtype=int)
            llm(llm.embed(torch.cat((*rows, padding))), segments, cache)
    for slot, ids in enumerate(streams):
        assert (cache.hidden[slot, : len(ids)] - fresh(llm, ids)).abs().max() < atol


@torch.inference_mode()
def check_decoding(llm: Llm, streams: list[Tensor], atol: float) -> None:
    """Streams that grow by one position a step, all at once; each ends when it will."""
    longest = max(map(len, streams))
    cache = filled_cache(llm, longest)
    for position in range(longest):
        rows = [ids[position] if position < len(ids) else ids[0] for ids in streams]
        where = [position if position < len(ids) else cache.scratch for ids in streams]
        embeddings = llm.embed(torch.stack(rows))
        slots = torch.arange(len(streams))
        llm.decode(embeddings, slots, torch.tensor(where), cache, span=longest)
    for slot, ids in enumerate(streams):
        assert (cache.hidden[slot, : len(ids)] - fresh(llm, ids)).abs().max() < atol
        assert cache.keys_values[:, :, slot, :, len(ids) : longest].isnan().all()


@torch.inference_mode()
def check_forks_and_cuts(llm: Llm, ids: Tensor, other: Tensor, atol: float) -> None:
    """A fork and a cut branch go on as a new sequence with the same content does."""
    cache = filled_cache(llm, len(ids) + len(other))
    llm(llm.embed(ids), [Segment(0, 0, len(ids))], cache)
    cut = len(ids) // 2
    cache.copy(0, 2, cut)
    # The original was cut and goes on elsewhere; the fork reads what the original read.
    rows = llm.embed(torch.cat((other, ids[cut:])))
    llm(rows, [Segment(0, cut, len(other)), Segment(2, cut, len(ids) - cut)], cache)
    changed = torch.cat((ids[:cut], other))
    assert (cache.hidden[0, : len(changed)] - fresh(llm, changed)).abs().max() < atol
    assert (cache.hidden[2, : len(ids)] - fresh(llm, ids)).abs().max() < atol


@torch.inference_mode()
def check_reuse(llm: Llm, ids: Tensor, other: Tensor, atol: float) -> None:
    """A new sequence in a slot that was another's sees nothing of it, nor of its neighbours."""
    assert len(other) < len(ids)
    cache = filled_cache(llm, len(ids))
    for slot in range(SLOTS):
        llm(llm.embed(ids), [Segment(slot, 0, len(ids))], cache)
    llm(llm.embed(other), [Segment(1, 0, len(other))], cache)
    for slot, content in enumerate((ids, other, ids, ids)):
        assert (cache.hidden[slot, : len(content)] - fresh(llm, content)).abs().max() < atol
