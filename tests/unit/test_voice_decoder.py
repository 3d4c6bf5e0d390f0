"""The voice decoder's stream, with a voice that is read hidden states and cannot be heard."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minmo.audio.pcm import SAMPLE_RATES_HZ, PcmFormat
from minmo.audio.resample import resampled_length
from minmo.engine.voice import HiddenStates, Mark, Piece, Query, TextToken
from minmo.rpc.errors import StatusError
from minmo.settings import VoiceDecoderSettings
from minmo.v1 import common_pb2, voice_decoder_pb2
from services.voice_decoder.output import AudioOutput
from services.voice_decoder.service import VoiceDecoderServicer
from services.voice_decoder.stream import DecodeStream

S16 = common_pb2.AUDIO_ENCODING_PCM_S16LE
FORMAT = common_pb2.AudioFormat(encoding=S16, sample_rate_hz=16000, channels=1)
Request = voice_decoder_pb2.DecodeRequest
Response = voice_decoder_pb2.DecodeResponse


class CountingVoice:
    """Reads hidden states of width 4; each token is 100 ms of silence."""

    name = "counting"
    sample_rate_hz = 16000
    reads_hidden_states = True
    hidden_width = 4
    max_query_positions = 100

    def __init__(self) -> None:
        self.query: Query | None = None
        self.seen: list[HiddenStates] = []
        self.steps = 0
        self.waiting = 0
        self.tokens = 0

    def warm_up(self) -> None: ...

    def close(self) -> None: ...

    def open(self, instruct: str, query: Query | None) -> "CountingVoice":
        self.query = query
        return self

    unspoken_reason = ""

    def push(self, tokens: Sequence[TextToken], hidden_states: HiddenStates | None) -> None:
        assert hidden_states is not None
        self.seen.append(hidden_states)
        self.waiting += len(tokens)

    def end(self) -> None: ...

    def step(self) -> Piece | None:
        if not self.waiting:
            return None
        self.steps += 1
        self.waiting -= 1
        self.tokens += 1
        mark = Mark(self.tokens, self.tokens * 1600)
        return Piece(np.zeros(1600, np.float32), (mark,), 0.07 if self.tokens == 1 else 0.0)


def matrix(values: np.ndarray) -> common_pb2.FloatMatrix:
    rows, columns = values.shape
    return common_pb2.FloatMatrix(data=values.astype("<f4").tobytes(), rows=rows, columns=columns)


def spoken(count: int, hidden: np.ndarray | None = None) -> Request:
    rows = np.ones((count, 4)) if hidden is None else hidden
    return Request(
        tokens=voice_decoder_pb2.TextTokens(
            tokens=[voice_decoder_pb2.TextToken(text="a ")] * count, hidden_states=matrix(rows)
        )
    )


CONFIG = Request(config=voice_decoder_pb2.DecodeConfig(format=FORMAT))
END = Request(end=voice_decoder_pb2.DecodeEnd())


async def decode(
    *requests: Request, voice: CountingVoice | None = None, **settings: float
) -> list[Response]:
    answers: list[Response] = []

    async def sent() -> AsyncIterator[Request]:
        for request in requests:
            yield request
        if requests[-1:] != (END,):
            await asyncio.sleep(30)

    async def write(response: Response) -> None:
        answers.append(response)

    with ThreadPoolExecutor(1) as executor:
        stream = DecodeStream(
            VoiceDecoderSettings(**settings),  # type: ignore[arg-type]
            {"counting": voice or CountingVoice()},
            executor,
            write,
        )
        await asyncio.wait_for(stream.run(sent()), 10)
    return answers


async def refusal(*requests: Request, **settings: float) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await decode(*requests, **settings)
    return caught.value


async def test_hidden_states_reach_a_voice_that_reads_them() -> None:
    voice = CountingVoice()
    query = np.arange(8.0).reshape(2, 4)
    config = Request(
        config=voice_decoder_pb2.DecodeConfig(
            format=FORMAT, query_embeddings=matrix(query + 8), query_hidden_states=matrix(query)
        )
    )
    rows = np.arange(12.0).reshape(3, 4)
    ready, *audio, done = await decode(config, spoken(3, rows), END, voice=voice)
    assert (ready.ready.reads_hidden_states, ready.ready.hidden_width) == (True, 4)
    assert voice.query is not None
    assert np.array_equal(voice.query.hidden_states, query)
    assert np.array_equal(voice.query.embeddings, query + 8)
    assert np.array_equal(np.concatenate(voice.seen), rows)
    assert [len(answer.audio.data) for answer in audio] == [3200] * 3
    assert [answer.audio.token2wav_ms for answer in audio] == pytest.approx([70, 0, 0])
    assert (done.done.token_count, done.done.sample_count) == (3, 4800)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (np.ones((2, 4)), "tokens.hidden_states.rows: is 2, for 3 tokens"),
        (np.ones((3, 5)), "tokens.hidden_states.columns: is 5"),
        (np.full((3, 4), np.nan), "tokens.hidden_states.data: row 0 holds NaN"),
        (np.full((3, 4), np.inf), "tokens.hidden_states.data: row 0 holds NaN or infinity"),
    ],
)
async def test_hidden_states_that_the_voice_cannot_read_are_refused(
    hidden: np.ndarray, message: str
) -> None:
    status = await refusal(CONFIG, spoken(3, hidden))
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in status.message


async def test_missing_hidden_states_are_refused_by_a_voice_that_reads_them() -> None:
    tokens = voice_decoder_pb2.TextTokens(tokens=[voice_decoder_pb2.TextToken(text="a")])
    status = await refusal(CONFIG, Request(tokens=tokens))
    assert "rows: is 0, for 1 tokens" in status.message


async def test_it_is_told_how_long_a_query_may_be() -> None:
    servicer = VoiceDecoderServicer(VoiceDecoderSettings(max_message_bytes=64 * 1024 + 32 * 90))
    asked = voice_decoder_pb2.ListVoicesRequest()
    voice = CountingVoice()
    servicer.voices = {"counting": voice}
    told = await servicer.ListVoices(asked, None)  # type: ignore[arg-type]
    assert told.reads_hidden_states
    # What a message holds, then what the voice reads.
    assert told.max_query_positions == 90
    voice.max_query_positions = 7
    told = await servicer.ListVoices(asked, None)  # type: ignore[arg-type]
    assert told.max_query_positions == 7
    voice.reads_hidden_states = False
    told = await servicer.ListVoices(asked, None)  # type: ignore[arg-type]
    assert (list(told.names), told.reads_hidden_states) == (["counting"], False)
    assert told.max_query_positions == 0


async def test_a_query_needs_its_embeddings_as_well() -> None:
    config = voice_decoder_pb2.DecodeConfig(
        format=FORMAT,
        query_embeddings=matrix(np.ones((2, 4))),
        query_hidden_states=matrix(np.ones((3, 4))),
    )
    status = await refusal(Request(config=config))
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "query_embeddings.rows: is 2, and config.query_hidden_states has 3" in status.message


async def test_a_matrix_that_is_not_as_large_as_it_says_is_refused() -> None:
    bad = common_pb2.FloatMatrix(data=bytes(15), rows=1, columns=4)
    config = voice_decoder_pb2.DecodeConfig(format=FORMAT, query_hidden_states=bad)
    status = await refusal(Request(config=config))
    assert "has 15 bytes; 1 rows of 4 columns of 4 bytes are 16" in status.message


async def test_a_stream_that_sends_no_configuration_is_ended() -> None:
    status = await refusal(config_deadline_seconds=0.05)
    assert status.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "configuration for 0.05 s" in status.message


async def test_a_stream_that_stops_sending_tokens_is_ended() -> None:
    status = await refusal(CONFIG, spoken(1), text_deadline_seconds=0.1)
    assert status.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_synthesis_waits_for_a_caller_that_does_not_read_and_then_ends() -> None:
    voice = CountingVoice()
    unread = asyncio.Event()

    async def sent() -> AsyncIterator[Request]:
        for request in (CONFIG, spoken(50), END):
            yield request

    async def write(response: Response) -> None:
        if response.HasField("audio"):
            await unread.wait()

    with ThreadPoolExecutor(1) as executor:
        settings = VoiceDecoderSettings(read_deadline_seconds=0.2)
        stream = DecodeStream(settings, {"counting": voice}, executor, write)
        with pytest.raises(StatusError, match=r"read nothing for 0\.2 s") as caught:
            await asyncio.wait_for(stream.run(sent()), 10)
    assert caught.value.reason == "READER_TOO_SLOW"
    assert voice.steps == 1


@given(
    st.sampled_from(SAMPLE_RATES_HZ),
    st.lists(st.integers(0, 20_000), max_size=6),
    st.integers(0, 1000),
    st.integers(0, 10**9),
)
def test_every_rate_keeps_length_order_and_marks(
    rate: int, lengths: list[int], first_token: int, first_sample: int
) -> None:
    output = AudioOutput(16000, PcmFormat(rate), first_token, first_sample)
    messages = []
    total = 0
    for number, length in enumerate(lengths):
        total += length
        piece = Piece(np.full(length, 0.1, np.float32), (Mark(number + 1, total),))
        messages += list(output.add(piece))
    messages += list(output.finish())
    position = first_sample
    marks = []
    for message in messages:
        assert message.first_sample == position
        samples = len(message.data) // 2
        assert samples <= rate // 5
        position += samples
        assert all(message.first_sample <= mark.sample <= position for mark in message.marks)
        marks += [(mark.token_count, mark.sample) for mark in message.marks]
    assert position == output.sample_count == first_sample + resampled_length(total, 16000, rate)
    assert [count for count, _ in marks] == [
        first_token + number + 1 for number in range(len(lengths))
    ]
    assert marks == sorted(marks)
    if lengths:
        assert marks[-1][1] == position
