"""`minmo weights` prints what people and programs read."""

import io
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minmo.cli import weights
from minmo.weights import NoProgress, Progress, WeightsError
from minmo.weights.progress import LineProgress, shown_on
from tests.unit import published_checkpoints
from tests.unit.tiny_presets import write_preset

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
    fetched = [part for part in parts if not part["module"].startswith("aligned/")]
    assert [part["module"] for part in fetched] == ["voice_encoder", "llm", "vad", "triton"]
    assert not any(part["ready"] for part in fetched)
    shown = RUN.invoke(weights.app, ["list"]).stdout
    assert "missing (93 MB)" in shown
    assert "Apache-2.0" in shown
    assert calls == []


def test_an_unknown_preset_is_an_error() -> None:
    result = RUN.invoke(weights.app, ["list", "--preset", "huge"])
    assert result.exit_code == 1
    assert "there are 8b, mini" in result.stderr


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


# ---- import -------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments that import a small LLM."""
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    published_checkpoints.llama(tmp_path / "llm")
    return ["import", str(tmp_path / "llm"), "--preset", str(write_preset(tmp_path))]


def test_an_import_says_what_it_is_and_where_it_went(tiny: list[str], tmp_path: Path) -> None:
    result = RUN.invoke(weights.app, tiny)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "home/weights/tiny/llm"
    line = result.stdout.splitlines()[0]
    assert re.match(r"llm: Llama \(Hugging Face\), [\d,]+ parameters, 0.0 MB \(float32\)", line)
    assert line.endswith(f"is in {folder}")
    assert "write llm: done" in result.stderr
    listed = json.loads(RUN.invoke(weights.app, ["list", *tiny[2:], "--json"]).stdout)["parts"]
    states = {part["module"]: (part["ready"], part["licence"]) for part in listed}
    assert states["llm"] == (True, "Apache-2.0")
    assert states["vocoder"] == (False, "")


def test_a_check_says_that_it_would_fit(tiny: list[str], tmp_path: Path) -> None:
    result = RUN.invoke(weights.app, [*tiny, "--check"])
    assert result.stdout.splitlines()[0].endswith(f"fit into {tmp_path / 'home/weights/tiny/llm'}")
    assert not (tmp_path / "home").exists()


def test_programs_read_an_import_as_json(tiny: list[str]) -> None:
    shown = json.loads(RUN.invoke(weights.app, [*tiny, "--licence", "MIT", "--json"]).stdout)
    assert shown["written"]
    (folder,) = shown["folders"]
    assert (folder["modules"], folder["licence"]) == (["llm"], "MIT")
    assert len(folder["hashes"]["llm"]) == 64


def test_a_licence_that_nobody_said_is_asked_for(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "llm/README.md").unlink()
    assert "--licence records it" in RUN.invoke(weights.app, tiny).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--module", "vocoder"], "has nothing for vocoder of preset 'tiny'; it has: llm"),
        (["--module", "lm"], "preset 'tiny' has no module 'lm'; did you mean 'llm'?"),
        (["--preset", "huge"], "there is no preset 'huge'"),
    ],
)
def test_a_refused_import_is_one_line_and_status_1(
    tiny: list[str], options: list[str], message: str
) -> None:
    result = RUN.invoke(weights.app, [*tiny, *options])
    assert result.exit_code == 1
    assert message in result.stderr


def test_ctrl_c_leaves_no_half_import(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minmo.weights.importing.write_safetensors", stopped)
    result = RUN.invoke(weights.app, tiny)
    assert result.exit_code == 130
    assert "stopped" in result.stderr
    assert not list((tmp_path / "home/weights/tiny").iterdir())


def test_the_imports_help_has_an_example() -> None:
    shown = RUN.invoke(weights.app, ["import", "--help"]).stdout
    assert "Example: minmo weights import ~/whisper-large-v3 --preset 8b" in shown
