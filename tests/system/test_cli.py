"""The commands that a newcomer types first, against the running stack."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import soundfile

from minmo.client import Recording, Target
from minmo.stack.stack import Stack
from tests.system.conftest import (
    QUESTION,
    QUESTION_TEXT,
    ROOT,
    SAME_LOOP,
    normal,
    recognise,
    word_error_rate,
)

pytestmark = SAME_LOOP


async def run(*command: str, seconds: float = 120) -> tuple[int, str, str]:
    """Exit status, output and errors of a command that is run in the repository."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(seconds):
        out, errors = await process.communicate()
    return process.returncode or 0, out.decode(), errors.decode()


async def minmo(stack: Stack, *arguments: str) -> tuple[int, str, str]:
    return await run(
        sys.executable,
        "-m",
        "minmo.cli.main",
        *arguments,
        "--address",
        stack.addresses["orchestrator"],
    )


async def test_talk_writes_the_answer_a_report_and_a_timeline(
    stack: Stack, target: Target, tmp_path: Path
) -> None:
    answer, report, plot = (tmp_path / name for name in ("answer.wav", "report.json", "talk.svg"))
    code, out, errors = await minmo(
        *(stack, "talk", str(QUESTION), "--out", str(answer), "--report", str(report)),
        *("--plot", str(plot)),
    )
    assert code == 0, errors
    drawn = plot.read_text()
    assert all(f">{word}</text>" in drawn for word in ("speech", "answer, as heard", "turn ended"))
    assert QUESTION_TEXT.split()[-1] in out
    told = json.loads(report.read_text())
    (turn,) = told["turns"]
    assert word_error_rate(QUESTION_TEXT, turn["user_text"]) <= 0.2
    heard = Recording.read(answer)
    text = await recognise(target, heard.samples, heard.rate_hz)
    assert word_error_rate(turn["generated_text"], text) <= 0.3


async def test_say_and_transcribe_understand_each_other(stack: Stack, tmp_path: Path) -> None:
    text = "The weather is fine today, and the train leaves at nine."
    speech = tmp_path / "speech.wav"
    code, _, errors = await minmo(stack, "say", text, "--out", str(speech))
    assert code == 0, errors
    assert soundfile.info(speech).duration > 2
    code, out, errors = await minmo(stack, "transcribe", str(speech), "--json")
    assert code == 0, errors
    assert word_error_rate(text, json.loads(out)["text"]) <= 0.2


async def test_bad_input_is_one_clear_line(stack: Stack, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.wav"
    nothing.write_text("this is not audio")
    missing = str(tmp_path / "missing.wav")
    no_audio, no_file, no_word = await asyncio.gather(
        minmo(stack, "transcribe", str(nothing)),
        minmo(stack, "talk", missing, "--out", str(tmp_path / "answer.wav")),
        minmo(stack, "say", "\U0001f600", "--out", str(tmp_path / "x.wav")),
    )
    for (code, _, errors), why in (
        (no_audio, "nothing.wav"),
        (no_file, "missing.wav"),
        (no_word, "no word"),
    ):
        assert code != 0
        assert why in errors
        assert "Traceback" not in errors
    assert len(no_audio[2].strip().splitlines()) == 1


async def test_the_grpc_example_runs(stack: Stack, target: Target, tmp_path: Path) -> None:
    answer = tmp_path / "answer.wav"
    code, out, errors = await run(
        sys.executable,
        "examples/grpc_client.py",
        stack.addresses["orchestrator"],
        str(QUESTION),
        str(answer),
    )
    assert code == 0, errors
    asked, said = out.strip().split("\n", 1)
    assert word_error_rate(QUESTION_TEXT, asked.removeprefix("you:")) <= 0.2
    heard = Recording.read(answer)
    text = await recognise(target, heard.samples, heard.rate_hz)
    assert word_error_rate(normal(said).removeprefix("minmo"), text) <= 0.3
