"""What the figures of `minmo bench latency` mean."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from minmo.bench import components as table_21
from minmo.bench.components import Components, at_rank, components, percentile, rows
from minmo.bench.latency import LatencyResult, after_decision_ms, draw, memory_by_process
from minmo.cli.bench import app
from minmo.cli.bench_tables import latency_tables, print_tables
from minmo.cli.errors import InputError
from minmo.client import TalkTurn
from minmo.client.errors import ClientError
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


CASCADE = (
    ("endpointing", 0.0, 500.0),
    ("recognise", 400.0, 130.0),
    ("prefill", 530.0, 5.0),
    ("first_token", 536.0, 10.0),
    ("first_text_to_voice", 546.0, 140.0),
    ("first_audio", 686.0, 120.0),
)


def test_parts_follow_each_other_and_are_counted_once() -> None:
    found = components(turn(*CASCADE))
    assert found is not None
    assert found.parts == {
        table_21.PREDICTOR: 500,
        # What ran inside the silence cost nobody anything.
        table_21.LISTENING: 30,
        table_21.FIVE_TOKENS: 155,
        table_21.VOICE: 120,
    }
    assert (found.first_token_ms, found.speech_to_text_ms) == (15, 46)
    assert found.sum_ms == 805
    # At the client it was 900.
    assert found.between_ms == 95


def test_a_voice_of_speech_tokens_is_two_parts_and_an_early_encoder_none() -> None:
    spans = (("endpointing", 0.0, 200.0), ("embed", 150.0, 20.0), *CASCADE[3:])
    found = components(replace(turn(*spans), token2wav_ms=75.0))
    assert found is not None
    assert found.parts[table_21.LISTENING] == 0
    assert (found.parts[table_21.SPEECH_TOKENS], found.parts[table_21.TOKEN2WAV]) == (45, 75)
    assert table_21.VOICE not in found.parts


@pytest.mark.parametrize("missing", ["endpointing", "first_token", "first_audio"])
def test_a_turn_without_voice_or_decision_has_no_parts(missing: str) -> None:
    assert components(turn(*(span for span in CASCADE if span[0] != missing))) is None
    assert components(replace(turn(*CASCADE), first_audio_ms=None)) is None


def question(practice_ms: float, predictor_ms: float) -> Components:
    parts = {table_21.PREDICTOR: predictor_ms, table_21.FIVE_TOKENS: 100.0, table_21.VOICE: 50.0}
    return Components(parts, 20.0, 30.0, practice_ms)


QUESTIONS = tuple(question(800.0 + number, 600.0 - number) for number in range(1, 21))


def test_the_table_has_the_papers_rows_beside_medians_and_percentiles() -> None:
    found = {row.name: (row.paper_ms, row.median_ms, row.p95_ms) for row in rows(QUESTIONS)}
    assert found["full-duplex predictor"] == (250, 589.5, 598)
    assert found["LLM, first five tokens"] == (150, 100, 100)
    assert found["15 speech tokens"] == (70, None, None)
    assert found["sum"] == (600, 739.5, 748)
    assert found["in practice, at the client"] == (800, 810.5, 819)
    assert found["speech to text"] == (100, 30, 30)


def test_the_papers_parts_are_its_sum() -> None:
    paper = table_21.PAPER_MS
    alone = ("full-duplex predictor", "LLM, first five tokens", "voice, first audio")
    assert sum(paper[part] for part in alone) == paper["sum"]
    assert paper["15 speech tokens"] + paper["first token2wav chunk"] == paper["voice, first audio"]


def test_percentiles_are_of_questions_that_were_asked() -> None:
    assert at_rank(QUESTIONS, 0.5).practice_ms == 810
    assert at_rank(QUESTIONS, 0.95).practice_ms == 819
    assert at_rank(QUESTIONS[:1], 0.95) is QUESTIONS[0]
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2


RESULT = LatencyResult(
    tuple(one.practice_ms for one in QUESTIONS),
    (30.0,),
    {"endpointing": 590.0},
    24.5,
    2_000_000,
    {"llm": 2_000_000},
    ("a.ogg: nothing | heard",),
    QUESTIONS,
)


def test_it_is_printed_for_documents_terminals_and_programs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_tables(latency_tables(RESULT), markdown=True)
    document = capsys.readouterr().out
    assert "| component | paper, L20 | median | 95th percentile |" in document
    assert "| in practice, at the client | 800 ms | 810 ms | 819 ms |" in document
    assert "| 15 speech tokens | 70 ms |  |  |" in document
    assert "| of it llm | 2 MB |" in document
    print_tables(latency_tables(RESULT), markdown=False)
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "sum 600 ms 740 ms 748 ms" in shown
    assert "endpointing, median 590 ms" in shown
    assert "- no answer: a.ogg: nothing | heard" in shown
    told = json.loads(json.dumps(RESULT.to_json()))
    assert told["table_21"][0]["name"] == "full-duplex predictor"
    assert told["components"][0]["parts"]["voice, first audio"] == 50


def test_the_picture_shows_the_paper_and_two_questions(tmp_path: Path) -> None:
    drawn = tmp_path / "latency.svg"
    draw(RESULT, drawn)
    text = drawn.read_text().replace("> ", ">")
    for word in ("paper, L20", "median", "95th percentile", "between them", "800", "810", "819"):
        assert f">{word}</text>" in text, word
    # In the order of time.
    legend = ("full-duplex predictor", "LLM, first five", "15 speech", "voice, first", "between")
    places = [text.rindex(f">{word}") for word in legend]
    assert places == sorted(places)
    with pytest.raises(ClientError, match="no turn has a waterfall"):
        draw(replace(RESULT, components=()), drawn)


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minmo.bench.latency.read_questions", None)
    for name, why in (
        ("latency.pdf", "must end in .svg, .png"),
        ("no/l.svg", "there is no folder"),
    ):
        given = ["latency", "--questions", str(tmp_path), "--picture", str(tmp_path / name)]
        result = CliRunner().invoke(app, given)
        assert isinstance(result.exception, InputError)
        assert why in str(result.exception)


def test_a_stack_that_has_ended_takes_no_memory() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=30)
    assert memory_by_process(ended.pid) == {}
