"""How tokens are drawn."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from minmo.engine.operations import Sampling
from minmo.engine.sampling import Sampler, draw_rows
from tests.readings import Readings

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.9])


def many(sampling: Sampling, logits: torch.Tensor, count: int = 4000) -> Counter[int]:
    sampler = Sampler(sampling)
    return Counter(sampler.draw(logits) for _ in range(count))


def test_without_temperature_the_most_probable_token_is_taken() -> None:
    assert many(Sampling(), LOGITS, 5) == {1: 5}


def test_draws_as_often_as_a_token_is_probable() -> None:
    found = many(Sampling(temperature=1.0, seed=1), LOGITS)
    for token, probability in enumerate(LOGITS.softmax(0).tolist()):
        assert found[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_a_low_temperature_sharpens() -> None:
    expected = (LOGITS / 0.25).softmax(0)[1].item()
    assert many(Sampling(temperature=0.25, seed=1), LOGITS)[1] / 4000 == pytest.approx(
        expected, abs=0.03
    )


@pytest.mark.parametrize("size", [5, 5000])
def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(size: int) -> None:
    logits = torch.full((size,), -20.0)
    logits[:5] = LOGITS
    probabilities = LOGITS.softmax(0)
    # Tokens 1 and 4 reach 0.78, with token 2 it is 0.94.
    assert set(many(Sampling(1.0, top_p=0.75, seed=2), logits)) == {1, 4}
    found = many(Sampling(1.0, top_p=0.9, seed=2), logits)
    assert set(found) == {1, 4, 2}
    share = probabilities[1] / probabilities[[1, 4, 2]].sum()
    assert found[1] / 4000 == pytest.approx(share.item(), abs=0.03)


def test_a_nucleus_may_be_most_of_the_vocabulary() -> None:
    flat = torch.zeros(5000)
    found = many(Sampling(1.0, top_p=0.99, seed=2), flat, 300)
    assert len(found) > 250


def test_the_same_seed_gives_the_same_tokens() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(1.0, 0.95, seed))
        return [sampler.draw(LOGITS) for _ in range(30)]

    assert draw(5) == draw(5) != draw(6)


def test_the_repetition_penalty_makes_what_was_drawn_less_probable() -> None:
    sampler = Sampler(Sampling(repetition_penalty=1.6))
    negative = torch.tensor([-1.0, -1.2, -9.0])
    assert [sampler.draw(LOGITS) for _ in range(4)] == [1, 4, 2, 1]
    fresh = Sampler(Sampling(repetition_penalty=1.6))
    assert [fresh.draw(negative) for _ in range(3)] == [0, 1, 0]
    assert LOGITS.tolist() == torch.tensor([1.0, 3.0, 2.0, -1.0, 2.9]).tolist()


MIXED = [
    Sampling(),
    Sampling(1.0, seed=1),
    Sampling(0.7, 0.9, seed=2),
    Sampling(0.6, 0.8, 4, 1.3),
    Sampling(repetition_penalty=1.2),
    # Its nucleus is larger than usual.
    Sampling(3.0, 0.99, seed=3),
]


def test_drawing_for_all_together_gives_everybody_what_he_gets_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    alone, together = ([Sampler(sampling) for sampling in MIXED] for _ in range(2))
    for _ in range(20):
        logits = torch.randn(len(MIXED), 3000, generator=generator) * 3
        expected = [sampler.draw(row) for sampler, row in zip(alone, logits, strict=True)]
        assert draw_rows(together, logits) == expected


def test_numbers_come_to_the_host_once_for_all() -> None:
    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0)) * 3
    with Readings() as readings:
        draw_rows([Sampler(sampling) for sampling in MIXED[:5]], logits)
    assert readings.count == 1


def test_a_draw_that_failed_and_is_made_again_gives_the_same_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler, other = (Sampler(Sampling(1.0, seed=5)) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.delattr("torch.searchsorted")
        with pytest.raises(AttributeError):
            sampler.draw(LOGITS)
    assert [sampler.draw(LOGITS) for _ in range(20)] == [other.draw(LOGITS) for _ in range(20)]
