"""Speech tokens are drawn from a nucleus, and from everything when one keeps coming back."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from minmo.engine.speech_sampling import RepetitionAwareSampler, draw_rows
from tests.readings import Readings


def _logits(probabilities: list[float], tokens: int = 40) -> Tensor:
    """Logits of `tokens` speech tokens, the end, one without use, and the fill."""
    rest = torch.full((tokens + 3,), 1e-9)
    rest[: len(probabilities)] = torch.tensor(probabilities)
    return rest.log()


def _shares(sampler: RepetitionAwareSampler, logits: Tensor, draws: int) -> dict[int, float]:
    counts = Counter(sampler.draw(logits, may_end=False) for _ in range(draws))
    return {token: count / draws for token, count in counts.items()}


def test_the_nucleus_is_drawn_from_in_proportion() -> None:
    # 0.5 + 0.2 are not yet 0.8; 0.15 takes it there; 0.1 and 0.05 are outside.
    sampler = RepetitionAwareSampler(window=10, threshold=1.1, seed=1)
    shares = _shares(sampler, _logits([0.05, 0.2, 0.5, 0.1, 0.15]), 4000)
    assert shares.keys() == {1, 2, 4}
    for token, share in {2: 0.5, 1: 0.2, 4: 0.15}.items():
        assert shares[token] == pytest.approx(share / 0.85, abs=0.03)


def test_the_nucleus_has_no_more_than_top_k() -> None:
    sampler = RepetitionAwareSampler(top_k=3, window=10, threshold=1.1)
    shares = _shares(sampler, _logits([0.1, 0.09, 0.11, 0.08] + [0.04] * 15), 1500)
    assert shares.keys() == {0, 1, 2}


def test_a_repeated_token_is_drawn_again_from_all_of_them() -> None:
    # The nucleus is token 0 alone: within ten draws it comes again only out of everything.
    logits = _logits([0.85, 0.1, 0.05])
    sampler = RepetitionAwareSampler(seed=3)
    drawn = [sampler.draw(logits, may_end=False) for _ in range(6000)]
    assert drawn[0] == 0
    expected = {0: 0.85, 1: 0.1, 2: 0.05}
    # Whenever token 0 is not among the last ten, the nucleus gives it for sure.
    free = [token for i, token in enumerate(drawn) if 0 in drawn[max(0, i - 10) : i]]
    shares = Counter(free)
    for token, share in expected.items():
        assert shares[token] / len(free) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("threshold", "times"), [(0.1, 1), (0.3, 3), (1.0, 10)])
def test_a_token_counts_as_repeated_from_the_threshold_on(threshold: float, times: int) -> None:
    # A nucleus of token 0 alone; everything together gives another one most of the time.
    logits = _logits([0.4] + [0.03] * 20)

    def drawn(repeated: int) -> set[int]:
        tokens = set()
        for seed in range(30):
            sampler = RepetitionAwareSampler(top_p=0.3, threshold=threshold, seed=seed)
            # What came before the last ten tokens is forgotten.
            for token in [0] * 10 + [39] * (10 - repeated) + [0] * repeated:
                sampler.note(token)
            tokens.add(sampler.draw(logits, may_end=False))
        return tokens

    assert drawn(times - 1) == {0}
    assert len(drawn(times)) > 5


def test_a_prompts_tokens_count_as_well() -> None:
    logits = _logits([0.85] + [0.01] * 15)
    sampler = RepetitionAwareSampler(seed=0)
    others = 0
    for _ in range(300):
        sampler.note(0)
        others += sampler.draw(logits, may_end=False) != 0
    assert others > 20


@pytest.mark.parametrize("threshold", [0.1, 1.1])
def test_the_end_comes_only_where_it_may_and_the_fill_never(threshold: float) -> None:
    # With a threshold of 0.1 draws come from everything too.
    logits = _logits([0.5, 0.3], tokens=5)
    logits[5:] = torch.tensor([3.0, 9.0, 9.0])
    sampler = RepetitionAwareSampler(top_p=1.0, threshold=threshold)
    assert {sampler.draw(logits, may_end=False) for _ in range(500)} <= set(range(5))
    assert {sampler.draw(logits, may_end=True) for _ in range(500)} <= set(range(6))
    assert sampler.draw(_logits([0.01], tokens=1).add(torch.tensor([0, 30, 0, 0])), True) == 1


def test_one_seed_gives_one_speech() -> None:
    rows = torch.randn(50, 103, generator=torch.Generator().manual_seed(0)) * 2

    def spoken(seed: int) -> list[int]:
        sampler = RepetitionAwareSampler(seed=seed)
        return [sampler.draw(row, may_end=True) for row in rows]

    assert spoken(1) == spoken(1) != spoken(2)


def test_utterances_that_are_drawn_together_are_drawn_as_if_alone() -> None:
    rows = torch.randn(30, 3, 103, generator=torch.Generator().manual_seed(0)) * 2
    may_end = [True, False, True]

    def samplers() -> list[RepetitionAwareSampler]:
        return [RepetitionAwareSampler(top_k=k, seed=k) for k in (25, 5, 60)]

    together, alone = samplers(), samplers()
    for logits in rows:
        expected = [s.draw(row, may) for s, row, may in zip(alone, logits, may_end, strict=True)]
        assert draw_rows(together, logits, may_end) == expected


def test_numbers_come_to_the_host_once_and_once_more_for_all_who_repeat_themselves() -> None:
    logits = torch.stack([_logits([0.7, 0.3])] * 6)
    samplers = [RepetitionAwareSampler(seed=seed) for seed in range(6)]
    with Readings() as readings:
        draw_rows(samplers, logits, [False] * 6)
    assert readings.count == 1
    with Readings() as readings:
        draw_rows(samplers, logits, [False, True] * 3)
    assert readings.count == 2
