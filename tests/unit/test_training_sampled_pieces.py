"""The pieces that a batch's own are told from stand for a whole vocabulary."""

from __future__ import annotations

import torch

from minmo.training.listening import sampled_classes

WEIGHTS = 1 / torch.arange(1.0, 2001.0)


def test_what_is_said_is_among_them_once_and_counts_once() -> None:
    wanted = torch.tensor([[1999, 3], [3, 1500]])
    sampled = sampled_classes(wanted, WEIGHTS, 300, torch.Generator().manual_seed(1))
    assert sampled.classes.tolist() == sorted(set(sampled.classes.tolist()))
    places = torch.searchsorted(sampled.classes, torch.tensor([3, 1500, 1999]))
    assert sampled.classes[places].tolist() == [3, 1500, 1999]
    assert sampled.offsets[places].tolist() == [0, 0, 0]
    assert 298 <= len(sampled.classes) <= 303
    assert (sampled.offsets >= 0).all()


def test_a_sample_has_the_normaliser_of_the_whole_vocabulary() -> None:
    scores = torch.randn(2000, generator=torch.Generator().manual_seed(2))
    generator, wanted = torch.Generator().manual_seed(3), torch.tensor([5, 1800])
    found, naive = [], []
    for _ in range(300):
        sampled = sampled_classes(wanted, WEIGHTS, 300, generator)
        found.append((scores[sampled.classes] + sampled.offsets).exp().sum())
        naive.append(scores[sampled.classes].exp().sum())
    whole = float(scores.exp().sum())
    assert abs(float(torch.stack(found).mean()) / whole - 1) < 0.03
    assert float(torch.stack(naive).mean()) < 0.3 * whole


def test_a_small_vocabulary_is_taken_whole() -> None:
    sampled = sampled_classes(torch.tensor([1]), WEIGHTS[:50], 300, torch.Generator())
    assert sampled.classes.tolist() == list(range(50))
    assert not sampled.offsets.any()
