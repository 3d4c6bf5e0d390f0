"""`minmo data`: help, one line for what is wrong, and texts from a file to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minmo.cli.data import app
from minmo.training.data.tools import Conversation, Tool

COMMANDS = ("texts", "speech", "recordings", "instructed", "asterisk", "write", "answers", "show")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert f"Example: minmo data {command}" in " ".join(done.stdout.split())


def test_texts_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    rows = [{"question": f"What is number {n}?", "answer": str(n)} for n in range(300)]
    given = tmp_path / "quiz.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = {}
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        out = tmp_path / f"{name}.jsonl"
        arguments = ["texts", "--questions", str(given), "--no-phonemes", "--out", str(out)]
        done = CliRunner().invoke(app, [*arguments, "--seed", str(seed), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["utterances"] == 300
        written[name] = out.read_bytes()
    assert written["one"] == written["two"]
    assert written["one"] != written["three"]
    line = json.loads(written["one"].splitlines()[-1])
    assert set(line) == {"id", "text", "kind", "source", "split", "voice", "rate", "answers"}
    assert (line["kind"], line["source"], line["split"]) == ("question", "quiz", "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("texts --out a.jsonl", "there are no texts to train on: give files, or --books"),
        ("texts --questions none.jsonl --out a.jsonl", "there is no file none.jsonl"),
        ("texts --weight sotu --out a.jsonl", "--weight is 'sotu': it must be NAME=SHARE"),
        ("speech none.jsonl", "there is no file none.jsonl"),
        ("recordings none.csv --name x", "there is no file or folder none.csv"),
        ("recordings . --name a/b", "--name is 'a/b': it must be one word"),
        ("answers none.jsonl --out a.jsonl.gz", "give .jsonl"),
        ("instructed none --name a.b", "--name is 'a.b': it must be one word"),
        ("instructed none", "there is no folder none"),
        ("show none", "none has no shards"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 1
    assert message in str(done.exception)
    assert type(done.exception).__name__ == "InputError"


def test_ctrl_c_ends_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minmo.training.data.summary.summarise", stop)
    assert CliRunner().invoke(app, ["show", str(tmp_path)]).exit_code == 130


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    done = CliRunner().invoke(app, ["speech", str(tmp_path / "texts.jsonl")])
    assert "pip install 'minmo[train]'" in str(done.exception)


ECHO = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("die"):
        sys.exit("out of order")
    print(json.dumps({"heard": asked, "told": sys.argv[1:]}), flush=True)
"""


def test_a_tool_answers_and_its_death_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minmo.training.data import tools
    from minmo.training.data.errors import DataError

    (tmp_path / "echo.py").write_text(ECHO)
    monkeypatch.setattr(tools, "_SCRIPTS", tmp_path)
    tool = Tool("echo", ("echo==1",), "echo.py", "tests")
    with Conversation(tool, Path(sys.executable), "x") as running:
        assert running.ask({"a": "ä"}) == {"heard": {"a": "ä"}, "told": ["x"]}
        with pytest.raises(DataError, match=r"echo==1 failed: out of order; to install it again"):
            running.ask({"die": True})
