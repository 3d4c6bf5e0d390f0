"""The voice decoder as a real process with the real SVOX Pico; what it says is recognised."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import jiwer
import numpy as np
import pytest
import pytest_asyncio

from minmo.audio.pcm import SAMPLE_RATES_HZ, PcmFormat
from minmo.audio.resample import resample
from minmo.rpc.client import channel
from minmo.rpc.errors import StatusError, parse
from minmo.v1 import common_pb2, voice_decoder_pb2
from minmo.v1.voice_decoder_pb2_grpc import VoiceDecoderServiceStub
from minmo.weights.errors import WeightsError
from services.encoder.models import ListeningModels

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 30.0
S16 = common_pb2.AUDIO_ENCODING_PCM_S16LE
F32 = common_pb2.AUDIO_ENCODING_PCM_F32LE
Request = voice_decoder_pb2.DecodeRequest
Config = voice_decoder_pb2.DecodeConfig
END = Request(end=voice_decoder_pb2.DecodeEnd())
ANSWER = (
    "The largest city of France is Paris, and the river that flows through the city is called "
    "the Seine. People from many countries come there every year."
)


def audio_format(
    rate: int = 16000, encoding: int = S16, channels: int = 1
) -> common_pb2.AudioFormat:
    return common_pb2.AudioFormat(
        sample_rate_hz=rate,
        encoding=encoding,  # type: ignore[arg-type]
        channels=channels,
    )


class Process:
    """A voice decoder and its addresses."""

    def __init__(self, folder: Path, *flags: str) -> None:
        ready_file = folder / "ready.json"
        environment = {name: value for name, value in os.environ.items() if "MINMO_" not in name}
        self.log_file = folder / "log"
        with self.log_file.open("wb") as log:
            self.popen = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "services.voice_decoder",
                    "--ready-file",
                    ready_file,
                    *flags,
                ],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not ready_file.exists():
            assert self.popen.poll() is None, self.log_file.read_text()
            assert time.monotonic() < deadline, self.log_file.read_text()
            time.sleep(0.02)
        report = json.loads(ready_file.read_text())
        self.address: str = report["address"]
        self.metrics_address: str = report["metrics_address"]

    def metric(self, sample: str) -> float:
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=5) as answer:
            page = answer.read().decode()
        match = re.search(rf"^{re.escape(sample)} (\S+)$", page, re.MULTILINE)
        return float(match[1]) if match else 0.0

    async def until_no_stream(self) -> float:
        """Waits until no call runs; how long that took, in seconds."""
        began = time.monotonic()
        while await asyncio.to_thread(self.metric, "minmo_streams"):
            assert time.monotonic() - began < DEADLINE_SECONDS, self.log_file.read_text()
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    def close(self) -> None:
        self.popen.terminate()
        assert self.popen.wait(DEADLINE_SECONDS) == 0, self.log_file.read_text()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("voice"), "--read-deadline-seconds", "2")
    yield process
    process.close()


@pytest_asyncio.fixture
async def stub(process: Process) -> AsyncIterator[VoiceDecoderServiceStub]:
    async with channel(process.address) as connection:
        yield VoiceDecoderServiceStub(connection)


@pytest.fixture(scope="session")
def words_of() -> Iterator[object]:
    try:
        models = ListeningModels.load("mini")
    except WeightsError as error:
        pytest.skip(f"the recogniser's weights are not here: {error}")
    yield models.recogniser.transcribe


@dataclass
class Utterance:
    """What came back."""

    ready: voice_decoder_pb2.DecodeReady = field(default_factory=voice_decoder_pb2.DecodeReady)
    done: voice_decoder_pb2.DecodeDone = field(default_factory=voice_decoder_pb2.DecodeDone)
    pieces: list[voice_decoder_pb2.DecodedAudio] = field(default_factory=list)
    first_audio_seconds: float = 0.0

    @property
    def data(self) -> bytes:
        return b"".join(piece.data for piece in self.pieces)

    @property
    def marks(self) -> list[tuple[int, int]]:
        return [(mark.token_count, mark.sample) for piece in self.pieces for mark in piece.marks]

    def samples(self, audio_format: common_pb2.AudioFormat) -> np.ndarray:
        """`[samples]` at 16 kHz."""
        pcm = PcmFormat.from_proto(audio_format)
        return resample(pcm.decode(self.data), pcm.sample_rate_hz, 16000)


def tokens_of(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+", text)


def tokens(*texts: str, hidden: common_pb2.FloatMatrix | None = None) -> Request:
    return Request(
        tokens=voice_decoder_pb2.TextTokens(
            tokens=[voice_decoder_pb2.TextToken(text=text) for text in texts], hidden_states=hidden
        )
    )


async def decode(
    stub: VoiceDecoderServiceStub, *requests: Request, half_close: bool = True
) -> Utterance:
    answer = Utterance()

    async def sent() -> AsyncIterator[Request]:
        for request in requests:
            yield request
        if not half_close:
            await asyncio.Event().wait()

    began = time.perf_counter()
    async for response in stub.Decode(sent(), timeout=DEADLINE_SECONDS):
        match response.WhichOneof("message"):
            case "ready":
                answer.ready = response.ready
            case "audio":
                if not answer.pieces:
                    answer.first_audio_seconds = time.perf_counter() - began
                answer.pieces.append(response.audio)
            case "done":
                answer.done = response.done
    return answer


async def say(stub: VoiceDecoderServiceStub, text: str, **config: object) -> Utterance:
    config.setdefault("format", audio_format())
    configured = Request(config=Config(**config))  # type: ignore[arg-type]
    return await decode(stub, configured, *[tokens(word) for word in tokens_of(text)], END)


async def refused(
    stub: VoiceDecoderServiceStub, *requests: Request, half_close: bool = False
) -> StatusError:
    """The status that ends a stream; to half-close it at the same moment would be a race."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await decode(stub, *requests, half_close=half_close)
    return parse(caught.value)


def plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


async def test_what_is_said_is_understood(stub: VoiceDecoderServiceStub, words_of) -> None:  # type: ignore[no-untyped-def]
    answer = await say(stub, ANSWER)
    heard = words_of(answer.samples(audio_format()))
    assert jiwer.wer(plain(ANSWER), plain(heard)) <= 0.15, heard
    assert answer.ready.voice == "pico"
    assert not answer.ready.reads_hidden_states
    assert answer.done.unspoken_reason == ""
    assert answer.done.token_count == len(tokens_of(ANSWER)) == answer.marks[-1][0]
    assert answer.done.sample_count == len(answer.data) // 2 == answer.marks[-1][1]
    assert answer.marks == sorted(answer.marks)
    assert 0 < answer.done.compute_ms < 2000


@pytest.mark.parametrize("encoding", [S16, F32])
@pytest.mark.parametrize("rate", SAMPLE_RATES_HZ)
async def test_every_rate_and_encoding_is_understood(
    stub: VoiceDecoderServiceStub,
    words_of,  # type: ignore[no-untyped-def]
    rate: int,
    encoding: int,
) -> None:
    text = "The weather was cold this morning. Seven birds were singing in the garden."
    answer = await say(stub, text, format=audio_format(rate, encoding))
    width = 2 if encoding == S16 else 4
    position = 0
    for piece in answer.pieces:
        assert piece.first_sample == position
        assert len(piece.data) // width <= 0.2 * rate
        position += len(piece.data) // width
        assert all(piece.first_sample <= mark.sample <= position for mark in piece.marks)
    assert answer.done.sample_count == position == answer.marks[-1][1]
    heard = words_of(answer.samples(audio_format(rate, encoding)))
    assert jiwer.wer(plain(text), plain(heard)) <= 0.2, heard


async def test_audio_that_is_cut_at_a_mark_holds_the_words_up_to_it(
    stub: VoiceDecoderServiceStub,
    words_of,  # type: ignore[no-untyped-def]
) -> None:
    answer = await say(stub, ANSWER)
    spoken = tokens_of(ANSWER)
    samples = answer.samples(audio_format())
    for count, sample in answer.marks[4::5]:
        expected = plain("".join(spoken[:count])).split()
        heard = plain(words_of(samples[:sample])).split()
        assert abs(len(heard) - len(expected)) <= 2, (expected, heard)


async def test_the_first_audio_of_a_phrase_comes_at_once(
    stub: VoiceDecoderServiceStub, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = sorted(
        [(await say(stub, "one two three four five six")).first_audio_seconds for _ in range(10)]
    )
    with capsys.disabled():
        print(f"\nfirst audio of a phrase of six words: {seconds[5] * 1000:.1f} ms (median of 10)")
    assert seconds[5] < 0.25


async def test_audio_comes_before_the_text_has_ended(stub: VoiceDecoderServiceStub) -> None:
    call = stub.Decode(timeout=DEADLINE_SECONDS)
    await call.write(Request(config=Config(format=audio_format())))
    await call.write(tokens("Paris", " is", " a", " very", " big", " city", " in"))
    assert (await call.read()).HasField("ready")
    assert len((await call.read()).audio.data) > 0
    await call.write(tokens(" France", "."))
    await call.write(END)
    await call.done_writing()
    while (response := await call.read()).HasField("audio"):
        pass
    assert response.done.token_count == 9


async def test_an_utterance_continues_where_another_stream_was_lost(
    stub: VoiceDecoderServiceStub,
) -> None:
    answer = await say(
        stub, "and on it goes.", first_token=7, first_sample=24000, format=audio_format(24000)
    )
    assert answer.pieces[0].first_sample == 24000
    assert answer.marks[0][0] == 8
    assert answer.marks[0][1] > 24000
    assert answer.done.token_count == 7 + 4 == answer.marks[-1][0]
    assert answer.done.sample_count == 24000 + len(answer.data) // 2 == answer.marks[-1][1]


async def test_two_thousand_characters_are_spoken_and_one_more_is_refused(
    stub: VoiceDecoderServiceStub,
) -> None:
    text = ("The quick brown fox jumps over the lazy dog. " * 45)[:2000]
    answer = await say(stub, text)
    assert answer.done.sample_count > 60 * 16000
    assert answer.done.token_count == len(tokens_of(text)) == answer.marks[-1][0]
    status = await refused(stub, Request(config=Config(format=audio_format())), tokens(text, "x"))
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert status.reason == "TEXT_TOO_LONG"
    assert status.metadata["limit"] == "2000 characters"


async def test_tokens_without_text_are_bounded_too(stub: VoiceDecoderServiceStub) -> None:
    config = Request(config=Config(format=audio_format()))
    status = await refused(stub, config, tokens(*[""] * 2001))
    assert status.reason == "TEXT_TOO_LONG"


@pytest.mark.parametrize("text", ["😀🎉", "!!! ...", "你好，世界"])
async def test_text_that_cannot_be_said_has_its_reason(
    stub: VoiceDecoderServiceStub, text: str
) -> None:
    answer = await say(stub, text)
    assert answer.data == b""
    assert answer.done.unspoken_reason == f"has no word that voice 'pico' can say: {text!r}"
    assert answer.done.token_count == len(tokens_of(text)) == answer.marks[-1][0]


async def test_an_utterance_without_text_is_empty(stub: VoiceDecoderServiceStub) -> None:
    answer = await decode(stub, Request(config=Config(format=audio_format())), END)
    assert (answer.data, answer.done.sample_count, answer.done.unspoken_reason) == (b"", 0, "")


async def test_hidden_states_are_ignored_by_a_voice_that_reads_text(
    stub: VoiceDecoderServiceStub,
) -> None:
    hidden = common_pb2.FloatMatrix(data=np.full(8, np.nan, "<f4").tobytes(), rows=2, columns=4)
    config = Request(config=Config(format=audio_format(), query_hidden_states=hidden))
    answer = await decode(stub, config, tokens("hello", " there", hidden=hidden), END)
    assert answer.done.token_count == 2
    assert len(answer.data) > 0


async def test_two_utterances_take_turns(stub: VoiceDecoderServiceStub) -> None:
    alone = await say(stub, ANSWER)
    finished: list[str] = []

    async def speak(name: str, text: str) -> Utterance:
        answer = await say(stub, text)
        finished.append(name)
        return answer

    long, short = await asyncio.gather(speak("long", ANSWER * 10), speak("short", ANSWER))
    assert finished == ["short", "long"]
    assert short.data == alone.data
    assert long.done.token_count == 10 * len(tokens_of(ANSWER)) - 9


async def test_a_cancelled_call_stops(process: Process, stub: VoiceDecoderServiceStub) -> None:
    before = process.metric("minmo_voice_audio_seconds_total")
    call = stub.Decode(timeout=DEADLINE_SECONDS)
    await call.write(Request(config=Config(format=audio_format(48000, F32))))
    await call.write(tokens(*tokens_of("The quick brown fox jumps over the lazy dog. " * 44)))
    await call.read()
    await call.read()
    call.cancel()
    assert await process.until_no_stream() < 2
    assert process.metric("minmo_voice_audio_seconds_total") - before < 100


async def test_a_caller_that_does_not_read_stops_the_voice_and_then_loses_it(
    process: Process, stub: VoiceDecoderServiceStub
) -> None:
    before = process.metric("minmo_voice_audio_seconds_total")
    call = stub.Decode(timeout=DEADLINE_SECONDS)
    await call.write(Request(config=Config(format=audio_format(48000, F32))))
    await call.write(tokens(*tokens_of("The quick brown fox jumps over the lazy dog. " * 44)))
    await call.write(END)
    assert (await say(stub, "Others are served.")).done.token_count == 3
    await process.until_no_stream()
    made = process.metric("minmo_voice_audio_seconds_total") - before
    assert made < 60
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert parse(caught.value).reason == "READER_TOO_SLOW"


@pytest.mark.parametrize(
    ("requests", "code", "message"),
    [
        ([], "INVALID_ARGUMENT", "config: the first message of a stream, was nothing"),
        ([tokens("hello")], "INVALID_ARGUMENT", "first message of a stream, was tokens"),
        ([Request()], "INVALID_ARGUMENT", "first message of a stream"),
        ([Request(config=Config())], "INVALID_ARGUMENT", "AUDIO_ENCODING_UNSPECIFIED"),
        (
            [Request(config=Config(format=audio_format(15999)))],
            "INVALID_ARGUMENT",
            "config.format.sample_rate_hz",
        ),
        (
            [Request(config=Config(format=audio_format(encoding=77)))],
            "INVALID_ARGUMENT",
            "config.format.encoding: is 77",
        ),
        (
            [Request(config=Config(format=audio_format(channels=2)))],
            "INVALID_ARGUMENT",
            "a voice has one channel",
        ),
        (
            [Request(config=Config(format=audio_format(), voice="kathleen"))],
            "NOT_FOUND",
            "there is no voice 'kathleen'; there are: pico",
        ),
        (
            [Request(config=Config(format=audio_format(), instruct="say it sadly"))],
            "INVALID_ARGUMENT",
            "it knows only: slow, slowly",
        ),
        (
            [Request(config=Config(format=audio_format(), instruct="slow " * 100))],
            "INVALID_ARGUMENT",
            "config.instruct: has 500 characters",
        ),
        (
            [Request(config=Config(format=audio_format()))] * 2,
            "INVALID_ARGUMENT",
            "config: came twice",
        ),
        (
            [Request(config=Config(format=audio_format())), tokens("hello")],
            "INVALID_ARGUMENT",
            "closed the stream without it",
        ),
        (
            [
                Request(config=Config(format=audio_format())),
                tokens("a", hidden=common_pb2.FloatMatrix(data=bytes(8), rows=2, columns=1)),
            ],
            "INVALID_ARGUMENT",
            "tokens.hidden_states.rows: is 2, for 1 tokens",
        ),
    ],
)
async def test_bad_input_gets_its_reason_and_the_service_goes_on(
    stub: VoiceDecoderServiceStub, requests: list[Request], code: str, message: str
) -> None:
    ends_early = not requests or "closed the stream" in message
    status = await refused(stub, *requests, half_close=ends_early)
    assert status.code.name == code
    assert message in status.message
    assert (await say(stub, "Still here.")).done.token_count == 2


async def test_instructions_are_followed(stub: VoiceDecoderServiceStub) -> None:
    slow = await say(stub, "Hello there.", instruct="Slowly, please")
    fast = await say(stub, "Hello there.", instruct="fast")
    assert slow.done.sample_count > 1.2 * fast.done.sample_count


def test_help_lists_the_settings_of_the_voice_decoder() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "services.voice_decoder", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    ).stdout
    assert "--max-text-characters" in shown


def test_nothing_is_left_behind_when_the_process_is_killed(tmp_path: Path) -> None:
    process = Process(tmp_path)
    pid = process.popen.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    every = {
        child
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    }
    assert every or children
    process.popen.kill()
    process.popen.wait()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while any(_runs(child) for child in every):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
