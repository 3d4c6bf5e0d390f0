"""Bad input gets a gRPC status that says what was wrong; the service goes on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
import pytest_asyncio

from minmo.client import Conversation, Recording, Target, ask, sessions
from minmo.client.errors import NothingSaidError
from minmo.client.events import TurnReport
from minmo.client.microphone import FAST
from minmo.rpc.errors import parse
from minmo.stack.stack import Stack
from minmo.v1.common_pb2 import (
    AUDIO_ENCODING_PCM_F32LE,
    AUDIO_ENCODING_PCM_S16LE,
    AudioChunk,
    AudioEncoding,
    AudioFormat,
)
from minmo.v1.conversation_pb2 import (
    ConverseConfig,
    ConverseRequest,
    GetSessionRequest,
    ListSessionsRequest,
    SayRequest,
    SessionSettings,
    TextInput,
    TranscribeRequest,
)
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub
from tests.system.conftest import CONFIG_DEADLINE_SECONDS, QUESTION, SAME_LOOP
from tests.system.test_conversation import collect

if TYPE_CHECKING:
    from minmo.v1.conversation_pb2_grpc import ConversationServiceAsyncStub

pytestmark = SAME_LOOP

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MONO = AudioFormat(encoding=AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=16_000, channels=1)
RATE_HZ = 16_000


def config(**changes: object) -> ConverseRequest:
    fields: dict[str, object] = {"input_format": MONO, "output_format": MONO}
    return ConverseRequest(config=ConverseConfig(**(fields | changes)))  # type: ignore[arg-type]


def audio(data: bytes, sequence: int = 0) -> ConverseRequest:
    return ConverseRequest(audio=AudioChunk(sequence=sequence, data=data))


@pytest_asyncio.fixture(loop_scope="session")
async def stub(stack: Stack) -> AsyncIterator[ConversationServiceAsyncStub]:
    address = stack.addresses["orchestrator"]
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield ConversationServiceStub(channel)


async def refusal(
    stub: ConversationServiceAsyncStub, requests: list[ConverseRequest], seconds: float = 30
) -> grpc.aio.AioRpcError:
    """How a stream of these requests, which then stays open, is refused."""
    call = stub.Converse(timeout=seconds)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        for request in requests:
            await call.write(request)
        async for _ in call:
            pass
    return refused.value


RATES = "8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000 Hz"


@pytest.mark.parametrize(
    ("requests", "code", "message"),
    [
        pytest.param([audio(b"12")], INVALID, "config: must be the first", id="audio first"),
        pytest.param([config(), config()], INVALID, "config: is sent once", id="two configs"),
        pytest.param([config(), ConverseRequest()], INVALID, "message: is not set", id="nothing"),
        pytest.param([config(), audio(b"123")], INVALID, "no whole number", id="odd bytes"),
        pytest.param([config(), audio(b"12", 3)], INVALID, "3 where 0 was expected", id="gap"),
        pytest.param(
            [config(), audio(bytes(2 * RATE_HZ * 6))], INVALID, "holds 6.0 s", id="long frame"
        ),
        pytest.param(
            [config(input_format=AudioFormat(encoding=1, sample_rate_hz=12_345, channels=1))],
            INVALID,
            "12345 Hz",
            id="unknown rate",
        ),
        pytest.param(
            [config(input_format=AudioFormat(sample_rate_hz=16_000, channels=1))],
            INVALID,
            "input_format.encoding",
            id="unknown encoding",
        ),
        pytest.param(
            [config(input_format=AudioFormat(encoding=1, sample_rate_hz=16_000, channels=6))],
            INVALID,
            "channels: is 6",
            id="six channels",
        ),
        pytest.param(
            [config(output_format=AudioFormat(encoding=1, sample_rate_hz=16_000, channels=2))],
            INVALID,
            "output_format.channels",
            id="stereo out",
        ),
        pytest.param([config(session_id="nonsense")], INVALID, "not a session id", id="bad id"),
        pytest.param(
            [config(session_id="s" + "0" * 24)],
            grpc.StatusCode.NOT_FOUND,
            "does not exist",
            id="unknown session",
        ),
        pytest.param(
            [config(settings=SessionSettings(system_prompt="x" * 2001))],
            INVALID,
            "system_prompt: has 2001 characters",
            id="long prompt",
        ),
        pytest.param(
            [config(settings=SessionSettings(temperature=9))], INVALID, "is 9", id="temperature"
        ),
    ],
)
async def test_a_bad_stream_is_refused_with_the_reason(
    stub: ConversationServiceAsyncStub,
    requests: list[ConverseRequest],
    code: grpc.StatusCode,
    message: str,
) -> None:
    refused = await refusal(stub, requests)
    assert refused.code() is code
    assert message in (refused.details() or "")
    assert parse(refused).reason


async def test_the_allowed_rates_are_named(stub: ConversationServiceAsyncStub) -> None:
    bad = AudioFormat(encoding=1, sample_rate_hz=1, channels=1)
    assert parse(await refusal(stub, [config(input_format=bad)])).metadata["limit"] == RATES


async def test_an_empty_stream_is_refused(stub: ConversationServiceAsyncStub) -> None:
    call = stub.Converse(timeout=30)
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError, match="the stream ended without it"):
        await call.read()
        await call


async def test_a_stream_that_never_sends_its_configuration_is_ended(
    stub: ConversationServiceAsyncStub,
) -> None:
    refused = await refusal(stub, [])
    assert refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert f"no config came within {CONFIG_DEADLINE_SECONDS} s" in (refused.details() or "")


async def test_two_streams_cannot_use_one_session(
    stub: ConversationServiceAsyncStub, target: Target
) -> None:
    async with Conversation(target, input_rate_hz=RATE_HZ, speed=4) as conversation:
        refused = await refusal(stub, [config(session_id=conversation.session_id)])
        assert refused.code() is grpc.StatusCode.ABORTED
        assert "used by another stream" in (refused.details() or "")
        taken = stub.Converse(timeout=30)
        await taken.write(config(session_id=conversation.session_id, take_over=True))
        assert (await taken.read()).HasField("ready")  # type: ignore[union-attr]
        with pytest.raises(Exception, match="taken over"):
            await collect(conversation, TurnReport, 20)
        taken.cancel()


async def test_deleting_a_session_ends_its_stream(target: Target) -> None:
    async with Conversation(target, input_rate_hz=RATE_HZ, speed=4) as conversation:
        await sessions.delete_session(target, conversation.session_id)
        with pytest.raises(Exception, match="was deleted"):
            await collect(conversation, TurnReport, 20)


SILENCE = np.zeros(3 * RATE_HZ, dtype=np.float32)
NOISE = 0.3 * np.random.default_rng(7).standard_normal(3 * RATE_HZ).astype(np.float32)


@pytest.mark.parametrize("samples", [SILENCE, NOISE], ids=["silence", "white noise"])
async def test_what_is_no_speech_gets_no_answer(
    target: Target, samples: np.ndarray[tuple[int], np.dtype[np.float32]]
) -> None:
    async with Conversation(target, input_rate_hz=RATE_HZ, speed=4) as conversation:
        with pytest.raises(NothingSaidError):
            await ask(conversation, Recording(QUESTION, samples, RATE_HZ), speed=FAST)
        # The same stream still listens.
        (turn,) = await ask(conversation, Recording.read(QUESTION), speed=FAST)
    assert turn.outcome == "completed"


async def test_clipped_audio_is_heard_as_well_as_it_can_be(target: Target) -> None:
    question = Recording.read(QUESTION)
    clipped = np.clip(question.samples / np.abs(question.samples).max() * 20, -1, 1)
    async with Conversation(target, input_rate_hz=RATE_HZ, speed=4) as conversation:
        (turn,) = await ask(conversation, Recording(QUESTION, clipped, RATE_HZ), speed=FAST)
    assert turn.outcome == "completed"


async def test_floats_that_are_none_are_refused(stub: ConversationServiceAsyncStub) -> None:
    floats = AudioFormat(encoding=AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=RATE_HZ, channels=1)
    data = np.full(320, np.nan, dtype="<f4").tobytes()
    refused = await refusal(stub, [config(input_format=floats), audio(data)])
    assert refused.code() is INVALID
    assert "finite" in (refused.details() or "").lower()


async def test_minutes_of_audio_at_once_are_heard_to_their_end(
    stub: ConversationServiceAsyncStub,
) -> None:
    # Many times what is kept of a stream anywhere.
    half_second = np.zeros(4000, dtype="<i2").tobytes()
    slow = AudioFormat(encoding=AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=8000, channels=1)
    call = stub.Converse(timeout=120)
    await call.write(config(input_format=slow))
    for sequence in range(2 * 600):
        await call.write(audio(half_second, sequence))
    await call.done_writing()
    kinds = [response.WhichOneof("message") async for response in call]
    assert kinds[0] == "ready"
    assert await call.code() is grpc.StatusCode.OK


Request = Callable[["ConversationServiceAsyncStub"], grpc.aio.UnaryUnaryCall[object, object]]


@pytest.mark.parametrize(
    ("send", "message"),
    [
        pytest.param(lambda s: s.Say(SayRequest(format=MONO)), "text: is empty", id="no text"),
        pytest.param(
            lambda s: s.Say(SayRequest(text="a" * 2001, format=MONO)),
            "text: has 2001 characters",
            id="long text",
        ),
        pytest.param(
            lambda s: s.Say(SayRequest(text="\U0001f600\U0001f680", format=MONO)), "say", id="emoji"
        ),
        pytest.param(lambda s: s.Say(SayRequest(text="?!... --", format=MONO)), "say", id="marks"),
        pytest.param(
            lambda s: s.Say(SayRequest(text="\u4f60\u597d", format=MONO)), "say", id="Chinese"
        ),
        pytest.param(lambda s: s.Say(SayRequest(text="hi")), "format.encoding", id="no format"),
        pytest.param(
            lambda s: s.Say(SayRequest(text="hi", voice="nobody", format=MONO)),
            "nobody",
            id="unknown voice",
        ),
        pytest.param(
            lambda s: s.Transcribe(TranscribeRequest(format=MONO)), "audio: is empty", id="no audio"
        ),
        pytest.param(
            lambda s: s.Transcribe(TranscribeRequest(format=MONO, audio=b"123")),
            "no whole number",
            id="odd audio",
        ),
        pytest.param(
            lambda s: s.Transcribe(
                TranscribeRequest(
                    format=AudioFormat(
                        encoding=AudioEncoding.AUDIO_ENCODING_PCM_S16LE,
                        sample_rate_hz=8000,
                        channels=1,
                    ),
                    audio=bytes(2 * 8000 * 60 * 30),
                )
            ),
            "is 1800.0 s long",
            id="half an hour",
        ),
        pytest.param(
            lambda s: s.ListSessions(ListSessionsRequest(page_size=201)), "page_size", id="page"
        ),
        pytest.param(
            lambda s: s.GetSession(GetSessionRequest(session_id="x")), "not a session id", id="id"
        ),
    ],
)
async def test_a_bad_request_is_refused_with_the_reason(
    stub: ConversationServiceAsyncStub, send: Request, message: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await send(stub)
    assert refused.value.code() in (INVALID, grpc.StatusCode.NOT_FOUND)
    assert re.search(re.escape(message), refused.value.details() or "")


async def test_a_message_over_the_limit_is_refused(stub: ConversationServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Transcribe(TranscribeRequest(format=MONO, audio=bytes(40 * 1024 * 1024)))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_that_does_not_read_is_let_go_and_others_go_on(
    stack: Stack, target: Target
) -> None:
    loud = AudioFormat(encoding=AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=48_000, channels=1)
    talkative = SessionSettings(system_prompt="You tell long stories.", max_answer_tokens=400)
    # Without this option the client's library reads megabytes ahead, on its own.
    options = [("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(stack.addresses["orchestrator"], options) as channel:
        lazy = ConversationServiceStub(channel).Converse(timeout=120)
        await lazy.write(config(output_format=loud, settings=talkative))
        session_id = (await lazy.read()).ready.session_id  # type: ignore[union-attr]
        await lazy.write(ConverseRequest(text=TextInput(text="Tell me a very long story.")))
        async with Conversation(target, input_rate_hz=RATE_HZ, speed=4) as conversation:
            await conversation.send_text("What is the capital of France?")
            report = (await collect(conversation, TurnReport))[-1]
        assert isinstance(report, TurnReport)
        assert report.outcome == "completed"
        # More waits than its connection holds; after some seconds it loses the session.
        async with asyncio.timeout(60):
            while (await sessions.get_session(target, session_id)).streaming:
                await asyncio.sleep(0.2)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while await lazy.read() is not grpc.aio.EOF:
                pass
    assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def the_service_goes_on(stack: Stack) -> AsyncIterator[None]:
    """Whatever a test sends: the same processes serve afterwards."""
    before = stack.pids
    yield
    assert stack.pids == before
    await asyncio.gather(*(stack.wait_ready(name, 5) for name in stack.names))
