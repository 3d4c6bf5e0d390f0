"""Evaluation of prepared weights on real recordings, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from minmo.cli.errors import explain
from minmo.cli.main import app
from minmo.evaluation.asr import error_counts
from minmo.evaluation.clips import Choice, read_sets
from minmo.evaluation.modules import Source
from minmo.evaluation.systems import OwnDecoder
from minmo.weights.errors import WeightsError
from tests.listening import DATA, weights_or_skip


def run(*arguments: str) -> str:
    """What `minmo eval` prints; raises what it raises."""
    done = CliRunner().invoke(app, ["eval", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_published_recogniser_reads_librispeech() -> None:
    weights_or_skip("voice_encoder")
    decoder = OwnDecoder(Source("mini").recogniser())
    (found,) = read_sets([DATA], Choice())
    counts = np.array(
        [
            error_counts(clip.text, decoder.listen(clip, samples).text)
            for clip, samples in found.read()
            if clip.id.startswith("librispeech")
        ]
    )
    assert len(counts) == 4
    assert counts[:, 0].sum() / counts[:, 1].sum() < 0.3


def test_a_command_prints_json_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    weights_or_skip("voice_encoder")
    arguments = ["asr", str(DATA), "--system", "decoder", "--limit", "2", "--threads", "1"]
    (row,) = json.loads(run(*arguments, "--out", str(tmp_path), "--json"))["rows"]
    assert (row["set"], row["clips"]) == ("data", 2)
    assert 0 <= row["wer"]["value"] < 0.5
    assert len((tmp_path / "asr/data/encoder-s-own-decoder.jsonl").read_text().splitlines()) == 3
    table = run(*arguments, "--out", str(tmp_path), "--markdown")
    assert "| data | encoder's own decoder |" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["asr", str(DATA), "--kind", "song"], "none has kind song"),
        (["sqa", str(DATA)], "none has right answers"),
        (["asr", "no-such-folder"], "there is no folder no-such-folder"),
        (["asr", str(DATA), "--preset", "mimi"], "there is no preset 'mimi'"),
        (["asr", str(DATA), "--modules", str(DATA)], "is no aligned set: it lacks"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(Exception) as raised:
        run(*arguments)
    assert explain(raised.value) == (str(raised.value), 2)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_who_was_not_taught_to_listen_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    monkeypatch.setattr("minmo.weights.aligned.packaged_set", lambda name: tmp_path / name)
    with pytest.raises(WeightsError, match="has not been taught to listen"):
        run("asr", str(DATA))
