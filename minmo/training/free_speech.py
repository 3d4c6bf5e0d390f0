"""The voice token LM on its own: whole utterances, drawn as the product draws them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minmo.engine.speech_sampling import RepetitionAwareSampler, draw_rows
from minmo.engine.voice_decoder.engine import EngineOptions
from minmo.model.interleave import ContextFullError, Input, Interleaved, Interleaving, collate
from minmo.model.llm import LlmCache, Segment
from minmo.model.streaming import is_there
from minmo.model.token_loss import IGNORED
from minmo.model.voice_token_lm import VoiceTokenLm

_MOST_SPEECH = EngineOptions.max_speech_per_vector


@torch.no_grad()
def speak_freely(
    lm: VoiceTokenLm, vectors: Sequence[Tensor], prefixes: Sequence[Tensor], seed: int = 0
) -> list[list[int]]:
    """Speech tokens of texts, all together.

    What runs away is ended as the product ends it, or where the context is full.

    Args:
        lm: in evaluation mode.
        vectors: `[vectors, width]` of each utterance.
        prefixes: `[positions, width]` of each one's query.
        seed: of the draws.

    Returns:
        The speech tokens of each, without the end.
    """
    config = lm.config
    plans = [
        Interleaving(
            config.text_group,
            config.speech_group,
            config.max_context,
            config.end,
            prefix=len(prefix),
            max_speech_per_vector=_MOST_SPEECH,
        )
        for prefix in prefixes
    ]
    for plan, given in zip(plans, vectors, strict=True):
        plan.push(len(given))
        plan.end()
    text, queries = (pad_sequence(list(rows), batch_first=True) for rows in (vectors, prefixes))
    samplers = [RepetitionAwareSampler(seed=seed + number) for number in range(len(plans))]
    with torch.autocast(text.device.type, enabled=False):
        cache = LlmCache(
            lm.cache_config, len(plans), config.max_context, lm.trunk.dtype, text.device
        )
        spoken: list[list[int]] = [[] for _ in plans]
        while fed := _fed(plans):
            slots = list(fed)
            batch = collate(
                [Interleaved(inputs, [IGNORED] * len(inputs)) for inputs in fed.values()]
            )
            batch = batch.to(text.device)
            embeddings = lm.embed_batch(batch, text[slots], queries[slots])
            segments = [
                Segment(slot, plans[slot].positions - len(inputs), len(inputs))
                for slot, inputs in fed.items()
            ]
            rows = embeddings[is_there(batch.lengths, embeddings.shape[1])]
            hidden = lm(rows.to(lm.trunk.dtype), segments, cache)[batch.lengths.cumsum(0) - 1]
            may_end = [plans[slot].may_end for slot in slots]
            drawn = draw_rows([samplers[slot] for slot in slots], lm.logits(hidden), may_end)
            for slot, token in zip(slots, drawn, strict=True):
                plans[slot].draw(token)
                if token != config.end:
                    spoken[slot].append(token)
    return spoken


def _fed(plans: Sequence[Interleaving]) -> dict[int, list[Input]]:
    """What each utterance that goes on reads next, by its slot."""
    fed = {}
    for slot, plan in enumerate(plans):
        try:
            inputs = plan.feed()
        except ContextFullError:
            continue
        if inputs:
            fed[slot] = inputs
    return fed
