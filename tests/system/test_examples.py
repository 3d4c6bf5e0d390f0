"""The examples and the commands of the pages about the gRPC API, against the running stack."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio

from minmo.audio.opus import OpusEncoder
from minmo.client import Conversation, Recording, Target
from minmo.stack.stack import Stack
from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub
from tests.system.conftest import (
    QUESTION,
    QUESTION_TEXT,
    ROOT,
    SAME_LOOP,
    recognise,
    word_error_rate,
)

pytestmark = SAME_LOOP

DEVICES = Path(__file__).parent / "devices"
ADDRESS = "127.0.0.1:7100"
"""What the pages call the server."""


@asynccontextmanager
async def started(
    *command: str, variables: Mapping[str, str] | None = None, folder: Path = ROOT
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that runs, and is gone afterwards."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **(variables or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # What runs in a shell's background is started with SIGINT ignored, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def output(*command: str, folder: Path = ROOT) -> str:
    """What a command prints; it must end well."""
    async with started(*command, folder=folder) as process, asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


def example(name: str) -> tuple[str, str]:
    return sys.executable, str(ROOT / "examples" / name)


def blocks(page: str, language: str) -> list[str]:
    """What a page tells its readers to run."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Running:
    """Programs that speak and listen in real time, all at once."""

    answer: Path
    file: asyncio.Task[str]
    many: asyncio.Task[str]
    programs: list[asyncio.Task[str]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    address = stack.addresses["orchestrator"]
    answer = tmp_path_factory.mktemp("answer") / "answer.wav"
    questions = (str(QUESTION), str(ROOT / "examples" / "questions" / "01.ogg"))
    programs = [code.replace(ADDRESS, address) for code in blocks("client.md", "python")]
    file = (*example("ask_file.py"), address, str(QUESTION), str(answer))
    many = (*example("many_sessions.py"), address, "2", *questions)
    tasks = [
        asyncio.create_task(output(*command))
        for command in (file, many, *((sys.executable, "-c", program) for program in programs))
    ]
    try:
        yield Running(answer, tasks[0], tasks[1], tasks[2:])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_file_is_answered_through_opus(running: Running, target: Target) -> None:
    asked, said = re.findall(r"^(?:you|minmo): +(.+)$", await running.file, re.MULTILINE)
    assert word_error_rate(QUESTION_TEXT, asked) <= 0.2
    heard = Recording.read(running.answer)
    text = await recognise(target, heard.samples, heard.rate_hz)
    assert word_error_rate(said, text) <= 0.3


async def test_a_file_that_is_none_is_one_clear_line(stack: Stack, target: Target) -> None:
    async with started(*example("ask_file.py"), target.address, "nothing.wav", "x.wav") as process:
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
    assert process.returncode == 1
    assert len(out.splitlines()) == 1
    assert b"nothing.wav" in out


async def test_the_microphone_example_talks_until_ctrl_c(
    stack: Stack, target: Target, tmp_path: Path
) -> None:
    loudspeaker = tmp_path / "loudspeaker.wav"
    variables = {
        "PYTHONPATH": f"{DEVICES}{os.pathsep}{ROOT}",
        "MICROPHONE": str(QUESTION),
        "LOUDSPEAKER": str(loudspeaker),
    }
    lines: list[str] = []
    async with (
        started(*example("microphone.py"), target.address, variables=variables) as process,
        asyncio.timeout(60),
    ):
        assert process.stdout is not None
        while not (lines and lines[-1].startswith("minmo:")):
            line = await process.stdout.readline()
            assert line, lines
            lines.append(line.decode().strip())
        process.send_signal(signal.SIGINT)
        rest = await process.stdout.read()
        await process.wait()
    assert (process.returncode, rest.decode()) == (0, "bye\n")
    assert word_error_rate(QUESTION_TEXT, lines[1].removeprefix("you:")) <= 0.2
    heard = Recording.read(loudspeaker)
    text = await recognise(target, heard.samples, heard.rate_hz)
    assert word_error_rate(lines[-1].removeprefix("minmo:"), text) <= 0.3


async def test_many_sessions_are_all_answered(running: Running) -> None:
    out = await running.many
    assert re.search(r"^2 answers in 2 sessions, [\d.]+ s: [\d.]+ a minute, ", out, re.M), out
    assert re.search(r"median \d+ ms, 95 % within \d+ ms", out), out


async def test_a_tool_is_called_and_its_result_used(stack: Stack, target: Target) -> None:
    out = await output(*example("tools.py"), target.address, "What time is it in Rome?")
    assert 'call:  clock {"city": "Rome"}' in out
    told = re.search(r'^tool:  \{"time": "(\d+:\d\d [AP]M)"\}$', out, re.MULTILINE)
    assert told is not None, out
    assert told[1] in out.splitlines()[-1]


async def test_the_commands_of_the_grpc_page_run(stack: Stack, target: Target) -> None:
    commands = "\n".join(blocks("grpc.md", "sh"))
    script = commands.replace(ADDRESS, target.address)
    out = await output("bash", "-euo", "pipefail", "-c", script)
    assert "minmo.v1.ConversationService" in out
    assert '"status": "SERVING"' in out
    assert QUESTION_TEXT in out
    assert '"sessionId"' in out
    assert "TURN_OUTCOME_COMPLETED" in out


async def test_the_programs_of_the_client_page_run(running: Running) -> None:
    answered, events, opus = await asyncio.gather(*running.programs)
    assert word_error_rate(QUESTION_TEXT, answered.split("->")[0]) <= 0.2
    assert events.startswith("NO_TURN ")
    assert "\ncompleted: " in events
    assert re.fullmatch(r"\d+ bytes, 12960 samples\n", opus)


async def opus_stream(target: Target, *packets: bytes) -> None:
    """Sends packets as a stream, and reads to its end."""
    opus = common_pb2.AudioFormat(
        encoding=common_pb2.AUDIO_ENCODING_OPUS, sample_rate_hz=48_000, channels=1
    )
    pcm = common_pb2.AudioFormat(
        encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=24_000, channels=1
    )
    config = conversation_pb2.ConverseConfig(input_format=opus, output_format=pcm)

    async def requests() -> AsyncIterator[conversation_pb2.ConverseRequest]:
        yield conversation_pb2.ConverseRequest(config=config)
        for sequence, packet in enumerate(packets):
            chunk = common_pb2.AudioChunk(sequence=sequence, data=packet)
            yield conversation_pb2.ConverseRequest(audio=chunk)

    async with target.channel() as channel:
        async for _ in ConversationServiceStub(channel).Converse(requests(), timeout=30):
            pass


async def test_what_is_no_packet_is_refused_with_its_reason(stack: Stack, target: Target) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await opus_stream(target, b"\x03\x00")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no Opus packet" in (refused.value.details() or "")


async def test_lost_packets_are_heard_over(stack: Stack, target: Target) -> None:
    question = Recording.read(QUESTION).at_rate(16_000)
    encoder = OpusEncoder(16_000)
    silence = np.zeros(16_000, np.float32)
    packets = encoder.encode(np.concatenate((question.samples, silence)))
    lossy = [b"" if number % 15 == 7 else packet for number, packet in enumerate(packets)]
    opus = common_pb2.AudioFormat(
        encoding=common_pb2.AUDIO_ENCODING_OPUS, sample_rate_hz=16_000, channels=1
    )
    config = conversation_pb2.ConverseConfig(input_format=opus, output_format=opus)
    texts = []
    async with target.channel() as channel:
        call = ConversationServiceStub(channel).Converse(timeout=60)
        await call.write(conversation_pb2.ConverseRequest(config=config))
        for sequence, packet in enumerate(lossy):
            chunk = common_pb2.AudioChunk(sequence=sequence, data=packet)
            await call.write(conversation_pb2.ConverseRequest(audio=chunk))
            await asyncio.sleep(0.005)
        async with asyncio.timeout(30):
            while (response := await call.read()) is not grpc.aio.EOF:
                if response.user_text.final:
                    texts.append(response.user_text.text)
                    break
        call.cancel()
    assert word_error_rate(QUESTION_TEXT, " ".join(texts)) <= 0.2


async def test_a_rate_that_opus_does_not_know_is_refused(stack: Stack, target: Target) -> None:
    with pytest.raises(ValueError, match="Opus takes one of"):
        Conversation(target, input_rate_hz=44_100, codec="opus")
