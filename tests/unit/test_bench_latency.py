"""What the figures of `minmo bench latency` mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minmo.bench.latency import LatencyResult, after_decision_ms
from minmo.client import TalkTurn
from minmo.client.events import Span


def turn(*spans: tuple[str, float, float]) -> TalkTurn:
    return TalkTurn(
        question="question.wav",
        session_id="s",
        mode="aligned",
        user_text="",
        generated_text="",
        heard_text="",
        outcome="completed",
        detail="",
        first_audio_ms=900.0,
        server_first_audio_ms=890.0,
        network_ms=10.0,
        waterfall=tuple(Span(*span) for span in spans),
        token_count=1,
        generate_ms=0.0,
        tokens_per_second=None,
        audio_ms=0,
        voice_compute_ms=0.0,
        heard=np.zeros(0, np.float32),
    )


def test_listening_ends_with_the_first_token_and_begins_when_the_turn_is_over() -> None:
    asked = turn(("endpointing", 0, 500), ("prefill", 501, 30), ("first_token", 531, 25))
    assert after_decision_ms(asked) == pytest.approx(56)
    assert after_decision_ms(turn(("endpointing", 0, 500))) is None
    assert after_decision_ms(turn(("first_token", 10, 5))) is None


def test_the_median_is_over_the_questions_that_were_answered() -> None:
    result = LatencyResult((900.0, 800.0, 1000.0), (40.0, 80.0, 50.0), {}, None, None, {}, ())
    assert result.first_token_median_ms == 50
    assert result.to_json()["first_token_median_ms"] == 50
    assert replace(result, first_token_ms=()).first_token_median_ms is None
