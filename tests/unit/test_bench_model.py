"""The benchmark of the latency model: real engines of a tiny network."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minmo.bench import model as bench
from minmo.cli.bench import app
from minmo.cli.errors import InputError
from minmo.weights.errors import WeightsError
from tests.unit.tiny_presets import write_preset


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    longer = {"max_context": 256}
    folder = tmp_path_factory.mktemp("preset")
    return write_preset(folder, llm=longer, voice_token_lm=longer)


@pytest.fixture(scope="module")
def report(preset: Path) -> bench.ModelReport:
    told: list[str] = []
    made = bench.measure(
        str(preset),
        sessions=[1, 3],
        random_weights=True,
        threads=1,
        repeats=2,
        progress=told.append,
    )
    assert "voice decoder, 3 at once" in told
    return made


def test_measures_every_stage_alone_and_with_others(report: bench.ModelReport) -> None:
    assert [row.stage for row in report.rows] == list(bench.PAPER_MS)
    assert report.sessions == [1, 3]
    for row in report.rows:
        assert set(row.measured_ms) == {1, 3}
        assert all(0 < row.floor_ms < figure for figure in row.measured_ms.values())


def test_five_tokens_take_longer_than_one_and_the_sum_is_that_of_its_parts(
    report: bench.ModelReport,
) -> None:
    first, five, tokens, chunk, total = report.rows
    assert first.measured_ms[1] < five.measured_ms[1]
    assert five.floor_ms == pytest.approx(5 * first.floor_ms)
    for count in report.sessions:
        parts = sum(row.measured_ms[count] for row in (five, tokens, chunk))
        assert total.measured_ms[count] == pytest.approx(parts)


def test_says_how_many_are_heard_without_a_gap(report: bench.ModelReport) -> None:
    assert report.sessions_in_real_time in (0, 1, 3)
    slow = bench.ModelReport("p", "cpu", "c", 1, True, 1.0, [], {1: 0.5, 2: 0.9, 4: 1.3})
    assert slow.sessions_in_real_time == 2


def test_is_read_as_a_table_and_drawn_as_a_plot(report: bench.ModelReport, tmp_path: Path) -> None:
    text = "\n".join(bench.lines(report))
    assert "tiny, random weights" in text
    assert "| LLM, first five tokens | 150 ms |" in text
    assert "context is 43 positions; the voice decoder reads no prefix" in text
    bench.check("mini", plot=tmp_path / "figures.svg")
    bench.plot(report, tmp_path / "figures.svg")
    drawn = (tmp_path / "figures.svg").read_text()
    assert drawn.startswith("<?xml") and "</svg>" in drawn


def test_a_device_that_is_not_there_is_refused(
    preset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda' and PyTorch finds none here"):
        bench.measure(str(preset), "cuda", random_weights=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    yield tmp_path


def test_the_command_prints_json_for_programs(preset: Path, home: Path) -> None:
    given = ["model", "--preset", str(preset), "--random-weights", "--repeats", "1", "--json"]
    result = CliRunner().invoke(app, [*given, "--sessions", "1", "--threads", "1"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["preset"] == "tiny" and list(found["real_time_factor"]) == ["1"]
    assert found["sessions_in_real_time"] in (0, 1)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "device is 'cuda'"),
        (["--plot", "figures.pdf"], "must end in .svg or .png"),
        (["--preset", "SHORT"], "llm.max_context = 63; the benchmark needs at least 64"),
    ],
)
def test_what_cannot_be_measured_is_wrong_usage_and_costs_nothing(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    short = write_preset(tmp_path, llm={"max_context": 63})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(bench, "measure", None)
    options = [str(short) if option == "SHORT" else option for option in options]
    given = ["model", "--preset", str(preset), "--random-weights", *options]
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_a_plot_without_matplotlib_is_refused(
    preset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="needs matplotlib: pip install"):
        bench.check(str(preset), plot=Path("figures.svg"))


def test_trained_weights_that_are_missing_are_named_before_anything_is_fetched(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minmo.weights.ensure", None)
    for name, first in (("mini", "voice_token_lm"), ("8b", "llm")):
        result = CliRunner().invoke(app, ["model", "--preset", name])
        assert isinstance(result.exception, WeightsError)
        assert f"the weights of {first} are not in" in str(result.exception)
    assert not any(home.iterdir())


def test_speech_that_never_ends_is_no_news(preset: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench.measure(str(preset), random_weights=True, threads=1, repeats=1)
    assert caplog.messages == []
