"""The set that MinMo brings hears real people, as a stream, in words that the LLM knows."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from minmo.audio.pcm import Samples
from minmo.engine.ears import Ears
from minmo.engine.finding_pieces import Heard
from minmo.evaluation.modules import Source
from minmo.loading import load_ears
from minmo.presets import load_preset
from minmo.weights.aligned import packaged_set
from tests.listening import recordings, weights_or_skip, word_error_rate

SET = packaged_set("mini")


@cache
def ears() -> Ears:
    for module in ("recognizer", "llm"):
        weights_or_skip(module)
    return load_ears(load_preset("mini"), SET.joinpath)


def stream(samples: Samples, chunk: int = 320) -> tuple[Heard, Heard]:
    """What is heard while the speech goes on, and behind its end."""
    embedder = ears().embedder()
    parts = [embedder.process(samples[at : at + chunk]) for at in range(0, len(samples), chunk)]
    before = parts[0]
    for part in parts[1:]:
        before = before.followed_by(part)
    return before, embedder.finish(len(samples))


def test_real_people_are_understood_while_they_speak() -> None:
    to_text = Source("mini").listener().to_text
    expected, found, early = [], [], []
    for one in recordings():
        before, after = stream(one.samples)
        heard = before.followed_by(after)
        expected.append(one.text)
        found.append(to_text(heard.tokens))
        early.append(len(before.tokens) / max(1, len(heard.tokens)))
        assert heard.embeddings.shape == (len(heard.tokens), ears().head.width)
        assert bool(heard.embeddings.isfinite().all())
        assert all(one <= other for one, other in pairwise(heard.frames))
    assert word_error_rate(expected, found) < 0.35
    # Most of a sentence was heard before it ended.
    assert np.mean(early) > 0.5


def test_no_bit_depends_on_how_the_audio_was_cut() -> None:
    samples = recordings()[0].samples
    whole = [stream(samples, chunk) for chunk in (len(samples), 333)]
    first, second = (before.followed_by(after) for before, after in whole)
    assert first.tokens == second.tokens
    assert first.frames == second.frames
    assert torch.equal(first.embeddings, second.embeddings)


def test_the_same_words_said_otherwise_are_read_otherwise() -> None:
    samples = recordings()[0].samples
    (first, end), (quiet, quiet_end) = stream(samples), stream(0.3 * samples)
    one, other = first.followed_by(end), quiet.followed_by(quiet_end)
    same = [
        (a, b)
        for a, b, token, other_token in zip(
            one.embeddings, other.embeddings, one.tokens, other.tokens, strict=False
        )
        if token == other_token
    ]
    assert len(same) > 3
    assert not any(torch.equal(a, b) for a, b in same)


@pytest.mark.parametrize("seconds", [0.02, 0.5, 30.0])
def test_silence_holds_no_words(seconds: float) -> None:
    before, after = stream(np.zeros(int(16_000 * seconds), np.float32))
    assert before.tokens == []
    assert after.tokens == []


def test_a_long_speech_is_heard_on_and_on() -> None:
    pause = np.zeros(8_000, np.float32)
    said = recordings() * 2
    samples = np.concatenate([part for one in said for part in (one.samples, pause)])
    # More than is remembered at once.
    assert len(samples) > 40 * 16_000
    before, after = stream(samples, 16_000)
    text = Source("mini").listener().to_text(before.followed_by(after).tokens)
    # Behind what is remembered at once it hears less well, and still goes on hearing.
    assert word_error_rate([" ".join(one.text for one in said)], [text]) < 0.45
