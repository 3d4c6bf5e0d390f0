"""Clips of a batch said one after the other, so that short ones teach what long ones need."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minmo.training.batches import Batch
from minmo.training.words import Spans, moved, spoken_words


def joined(batch: Batch, seconds: float) -> Batch:
    """Joins neighbours of a batch as long as they last no more than so many seconds together.

    How many are joined is drawn from PyTorch's default generator, from one on. The first of them
    says what the clip is otherwise.

    Args:
        batch: clips.
        seconds: the longest that is joined.
    """
    groups: list[list[int]] = []
    room = 0.0
    for number, length in enumerate(batch.lengths.tolist()):
        lasts = length / batch.sample_rate
        if not groups or lasts > room:
            groups.append([])
            room = seconds * float(torch.rand(()))
        groups[-1].append(number)
        room -= lasts
    return replace(
        batch,
        samples=_samples(batch.samples, batch.lengths, groups),
        lengths=torch.stack([batch.lengths[group].sum() for group in groups]),
        clean=None if batch.clean is None else _samples(batch.clean, batch.lengths, groups),
        texts=tuple(" ".join(batch.texts[one] for one in group) for group in groups),
        clips=tuple(batch.clips[group[0]] for group in groups),
        words=tuple(_words(batch, group) for group in groups) if batch.words else (),
    )


def _samples(samples: Tensor, lengths: Tensor, groups: list[list[int]]) -> Tensor:
    rows = [torch.cat([samples[one, : int(lengths[one])] for one in group]) for group in groups]
    return pad_sequence(rows, batch_first=True)


def _words(batch: Batch, group: list[int]) -> Spans | None:
    """Spans of all words; None where a clip's are not known."""
    spans: list[tuple[float, float]] = []
    begin = 0.0
    for one in group:
        known = batch.words[one]
        if known is None or len(known) != len(spoken_words(batch.texts[one])):
            return None
        spans += moved(known, 1.0, begin)
        begin += float(batch.lengths[one]) / batch.sample_rate
    return spans
