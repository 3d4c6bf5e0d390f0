"""The voice decoder as a real process with the network of `mini`, untrained: nobody's voice."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio

from minmo.rpc.client import channel
from minmo.v1 import common_pb2, voice_decoder_pb2
from minmo.v1.voice_decoder_pb2_grpc import VoiceDecoderServiceStub
from tests.service.test_voice_decoder import END, ROOT, Config, Process, Request, decode, refused

WIDTH = 576
FORMAT = common_pb2.AudioFormat(
    encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=24000, channels=1
)
CONFIG = Request(config=Config(format=FORMAT))
TOO_LATE_SECONDS = 20.0


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(
        tmp_path_factory.mktemp("voice"),
        *("--voice", "neural", "--random-weights"),
        *("--slots", "1", "--max-waiting", "1", "--slot-deadline-seconds", "0.5"),
    )
    yield process
    process.close()


@pytest_asyncio.fixture
async def stub(process: Process) -> AsyncIterator[VoiceDecoderServiceStub]:
    async with channel(process.address) as connection:
        yield VoiceDecoderServiceStub(connection)


def tokens(count: int, first: int = 0) -> Request:
    states = np.random.default_rng(first).standard_normal((count, WIDTH)).astype("<f4")
    return Request(
        tokens=voice_decoder_pb2.TextTokens(
            tokens=[
                voice_decoder_pb2.TextToken(id=first + number, text=" word")
                for number in range(count)
            ],
            hidden_states=common_pb2.FloatMatrix(data=states.tobytes(), rows=count, columns=WIDTH),
        )
    )


async def test_an_answer_is_spoken_to_its_last_token_and_the_same_again(
    process: Process, stub: VoiceDecoderServiceStub
) -> None:
    answer = await decode(stub, CONFIG, tokens(1), tokens(1, 1), END)
    assert (answer.ready.voice, answer.ready.hidden_width) == ("random", WIDTH)
    assert answer.done.sample_count == len(answer.data) // 2 > 24000
    assert answer.marks[-1] == (2, answer.done.sample_count)
    first, *others = answer.pieces
    assert 0 < first.token2wav_ms < answer.first_audio_seconds * 1000
    assert not any(piece.token2wav_ms for piece in others)
    again = await decode(stub, CONFIG, tokens(1), tokens(1, 1), END)
    assert again.data == answer.data
    for name in (
        *("utterances", "audio_seconds", "compute_seconds", "token_steps", "token_step_seconds"),
        *("speech_tokens", "chunk_steps", "chunk_step_seconds"),
    ):
        assert process.metric(f"minmo_voice_{name}_total") > 0, name
    assert process.metric("minmo_voice_chunks_total") > 4
    assert process.metric("minmo_voice_slots_in_use") == 0
    assert process.metric("minmo_voice_slots") == 1


async def test_it_says_what_it_reads_and_the_query_changes_what_is_said(
    stub: VoiceDecoderServiceStub,
) -> None:
    told = await stub.ListVoices(voice_decoder_pb2.ListVoicesRequest(), timeout=10)
    assert (list(told.names), told.reads_hidden_states) == (["random"], True)
    # 4 MiB hold fewer rows of both matrices than a context of 2048 positions.
    longest = (4 * 1024 * 1024 - 64 * 1024) // (2 * 4 * WIDTH)
    assert told.max_query_positions == longest

    def asking(rows: int) -> Request:
        values = np.random.default_rng(5).standard_normal((rows, WIDTH)).astype("<f4")
        query = common_pb2.FloatMatrix(data=values.tobytes(), rows=rows, columns=WIDTH)
        config = Config(format=FORMAT, query_embeddings=query, query_hidden_states=query)
        return Request(config=config)

    plain = await decode(stub, CONFIG, tokens(2), END)
    asked = await decode(stub, asking(longest), tokens(2), END)
    assert asked.data != plain.data
    instructed = Request(config=Config(format=FORMAT, instruct="say it sadly"))
    error = await refused(stub, instructed, tokens(2), END)
    assert error.reason == "INSTRUCT_NOT_SUPPORTED"
    assert "in the query" in error.message


async def test_who_finds_no_slot_in_time_is_refused_and_a_slot_is_free_when_its_caller_leaves(
    process: Process, stub: VoiceDecoderServiceStub
) -> None:
    began = asyncio.Event()

    async def endless() -> AsyncIterator[Request]:
        yield CONFIG
        yield tokens(5)
        began.set()
        await asyncio.sleep(TOO_LATE_SECONDS)

    async def listen() -> None:
        async for _ in stub.Decode(endless(), timeout=TOO_LATE_SECONDS):
            pass

    holder = asyncio.create_task(listen())
    await began.wait()
    while process.metric("minmo_voice_slots_in_use") < 1:
        await asyncio.sleep(0.02)
    error = await refused(stub, CONFIG, tokens(5), END)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "VOICE_BUSY"
    assert "within 0.5 s" in error.message
    assert process.metric("minmo_voice_refused_total") == 1
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    await process.until_no_stream()
    assert process.metric("minmo_voice_slots_in_use") == 0
    assert len((await decode(stub, CONFIG, tokens(5), END)).data) > 0


async def test_hidden_states_of_another_llm_are_refused(stub: VoiceDecoderServiceStub) -> None:
    narrow = common_pb2.FloatMatrix(data=np.zeros(4, "<f4").tobytes(), rows=1, columns=4)
    message = voice_decoder_pb2.TextTokens(
        tokens=[voice_decoder_pb2.TextToken(id=1, text="a")], hidden_states=narrow
    )
    error = await refused(stub, CONFIG, Request(tokens=message))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    row = common_pb2.FloatMatrix(data=np.zeros(WIDTH, "<f4").tobytes(), rows=1, columns=WIDTH)
    message = voice_decoder_pb2.TextTokens(
        tokens=[voice_decoder_pb2.TextToken(id=49152, text="a")], hidden_states=row
    )
    error = await refused(stub, CONFIG, Request(tokens=message))
    assert "0 to 49151" in error.message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "big", "--random-weights"], "no preset 'big'"),
        (["--preset", "mini"], "--speaker"),
    ],
)
def test_a_voice_that_is_not_there_says_what_to_do(
    flags: list[str], message: str, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "services.voice_decoder", "--voice", "neural", *flags],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert run.returncode != 0
    assert message in run.stderr.decode() + run.stdout.decode()
