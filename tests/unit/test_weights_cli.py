"""`minmo weights` prints what people and programs read."""

import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minmo.cli import weights
from minmo.weights import NoProgress, Progress, WeightsError
from minmo.weights.progress import LineProgress, shown_on

RUN = CliRunner()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []

    def ensure(preset: str, progress: Progress, **options: object) -> None:
        calls.append((preset, *options.values()))

    monkeypatch.setenv("MINMO_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "ensure", ensure)
    return calls


def test_it_prepares_everything_of_mini_by_default(calls: list[tuple[object, ...]]) -> None:
    result = RUN.invoke(weights.app, [])
    assert result.exit_code == 0
    assert "the weights of mini are ready" in result.output
    assert calls == [("mini", (), None, False)]


def test_options_reach_the_library(calls: list[tuple[object, ...]]) -> None:
    options = ["--only", "llm", "--only", "vad", "--from-hub", "--keep-downloads", "--json"]
    result = RUN.invoke(weights.app, options)
    assert calls == [("mini", ("llm", "vad"), "hub", True)]
    assert json.loads(result.stdout)["preset"] == "mini"


def test_an_error_goes_to_stderr_with_exit_status_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ensure(*_: object, **__: object) -> None:
        raise WeightsError("the disk is full")

    monkeypatch.setattr(weights, "ensure", ensure)
    result = RUN.invoke(weights.app, ["--json"])
    assert result.exit_code == 1
    assert result.stderr == "minmo weights: the disk is full\n"
    assert result.stdout == ""


def test_ctrl_c_says_that_it_can_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "ensure", ensure)
    result = RUN.invoke(weights.app, [])
    assert result.exit_code == 130
    assert "run it again to go on from here" in result.stderr


def test_the_list_shows_every_part_with_state_and_licence(
    calls: list[tuple[object, ...]],
) -> None:
    parts = json.loads(RUN.invoke(weights.app, ["list", "--json"]).stdout)["parts"]
    assert [part["module"] for part in parts] == ["voice_encoder", "llm", "vad", "triton"]
    assert not any(part["ready"] for part in parts)
    shown = RUN.invoke(weights.app, ["list"]).stdout
    assert "missing (93 MB)" in shown
    assert "Apache-2.0" in shown
    assert calls == []


def test_an_unknown_preset_is_an_error() -> None:
    result = RUN.invoke(weights.app, ["list", "--preset", "huge"])
    assert result.exit_code == 1
    assert "there are: mini" in result.stderr


def test_a_log_gets_a_line_for_each_task() -> None:
    stream = io.StringIO()
    with shown_on(stream) as progress:
        progress.started("fetch a==1", 2_000_000)
        progress.reached("fetch a==1", 1_000_000)
        progress.finished("fetch a==1")
        progress.started("prepare llm", None)
        progress.finished("prepare llm")
    lines = stream.getvalue().splitlines()
    assert isinstance(progress, LineProgress)
    assert lines[0].startswith("fetch a==1: done in 0.0 s, 2.0 MB")
    assert lines[1].startswith("prepare llm: done in")
    assert len(lines) == 2


def test_a_terminal_gets_bars_with_bytes_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with shown_on(stream) as progress:
        progress.started("fetch a==1", 2_000_000)
        progress.reached("fetch a==1", 1_000_000)
        progress.finished("fetch a==1")
        progress.started("prepare llm", None)
        progress.finished("prepare llm")
    assert not isinstance(progress, NoProgress | LineProgress)
    assert "2.0/2.0 MB" in stream.getvalue()
    assert "prepare llm" in stream.getvalue()
