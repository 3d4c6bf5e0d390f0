"""What the voice decoder counts that its voices do not count themselves."""

import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from minmo.engine.voice import SpeakingError
from minmo.rpc import metrics
from minmo.rpc.errors import StatusError
from minmo.settings import VoiceDecoderSettings
from minmo.v1 import common_pb2, voice_decoder_pb2
from services.voice_decoder.stream import DecodeStream
from services.voice_decoder.workload import CountingExecutor

Request = voice_decoder_pb2.DecodeRequest
DEADLINE_SECONDS = 10.0


def test_an_executor_knows_what_it_works_on_and_what_waits() -> None:
    began, go_on = threading.Semaphore(0), threading.Event()

    def work() -> str:
        began.release()
        assert go_on.wait(DEADLINE_SECONDS)
        return "done"

    with CountingExecutor(2, "test") as executor:
        running = [executor.submit(work) for _ in range(2)]
        for _ in running:
            assert began.acquire(timeout=DEADLINE_SECONDS)
        waiting = [executor.submit(work) for _ in range(3)]
        assert (executor.slots, executor.slots_in_use, executor.waiting) == (2, 2, 3)
        assert waiting[0].cancel()
        assert (executor.slots_in_use, executor.waiting) == (2, 2)
        assert executor.compute_seconds == 0
        go_on.set()
        assert [future.result(DEADLINE_SECONDS) for future in running] == ["done"] * 2
    assert (executor.slots_in_use, executor.waiting) == (0, 0)
    assert executor.compute_seconds > 0


class HoarseVoice:
    """It takes text, and fails at it."""

    name = "hoarse"
    sample_rate_hz = 16_000
    reads_hidden_states = False
    hidden_width = 0
    max_query_positions = 0
    unspoken_reason = ""

    def open(self, instruct: str, query: object) -> "HoarseVoice":
        return self

    def push(self, tokens: object, hidden_states: object) -> None:
        pass

    def end(self) -> None:
        pass

    def step(self) -> None:
        raise SpeakingError("it is hoarse")

    def close(self) -> None:
        pass


async def test_an_utterance_that_the_voice_fails_at_is_counted() -> None:
    async def requests() -> AsyncIterator[Request]:
        audio_format = common_pb2.AudioFormat(encoding=1, sample_rate_hz=16_000, channels=1)
        yield Request(config=voice_decoder_pb2.DecodeConfig(format=audio_format))
        yield Request(
            tokens=voice_decoder_pb2.TextTokens(tokens=[voice_decoder_pb2.TextToken(text="Hi")])
        )
        yield Request(end=voice_decoder_pb2.DecodeEnd())

    async def write(response: voice_decoder_pb2.DecodeResponse) -> None:
        pass

    failed = metrics.VOICE_FAILED._value.get()
    came = metrics.VOICE_UTTERANCES._value.get()
    with ThreadPoolExecutor(1) as executor:
        voices = {"hoarse": HoarseVoice()}
        stream = DecodeStream(VoiceDecoderSettings(), voices, executor, write)  # type: ignore[arg-type]
        with pytest.raises(StatusError, match="hoarse"):
            await stream.run(requests())
    assert metrics.VOICE_FAILED._value.get() - failed == 1
    assert metrics.VOICE_UTTERANCES._value.get() - came == 1
