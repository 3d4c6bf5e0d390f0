"""`minmo talk --plot`, as a process that Ctrl-C ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import numpy as np
import soundfile

from tests.unit.scripted_server import Script, serving, tone

ROOT = Path(__file__).parent.parent.parent
RATE = 16_000
DEADLINE_SECONDS = 60


async def test_ctrl_c_writes_who_spoke_until_then(tmp_path: Path) -> None:
    question, plot = tmp_path / "question.wav", tmp_path / "talk.svg"
    silence = np.zeros(RATE // 2, np.float32)
    soundfile.write(question, np.concatenate((tone(300, 0.5, RATE), silence)), RATE)
    script = Script()
    async with serving(script) as port, asyncio.timeout(DEADLINE_SECONDS):
        talk = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "minmo.cli.main", "talk", str(question), str(question)),
            *("--out", str(tmp_path / "answer.wav"), "--plot", str(plot)),
            *("--address", f"127.0.0.1:{port}"),
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "MINMO_HOME": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            while not script.answers:
                await asyncio.sleep(0.01)
            # The second question is heard and never answered.
            script.answer = False
            asked = len(script.audio)
            while not any(np.abs(piece).max() > 1000 for piece in script.audio[asked:]):
                await asyncio.sleep(0.01)
            assert not plot.exists()
            talk.send_signal(signal.SIGINT)
            out, _ = await talk.communicate()
        finally:
            if talk.returncode is None:
                talk.kill()
                await talk.wait()
    assert talk.returncode == 130
    assert f"timeline written to {plot}" in out.decode()
    drawn = plot.read_text()
    words = ("user", "MinMo", "speech", "answer, as heard", "turn ended", "first audio")
    assert all(f">{word}</text>" in drawn for word in words)
