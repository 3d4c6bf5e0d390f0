"""Every metric that is named has data: people talk with the real services, and things go wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator

import grpc
import httpx
import numpy as np
import pytest_asyncio
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from minmo.audio.pcm import PcmFormat
from minmo.bench.realtime import append_events, connect
from minmo.client import Conversation, Recording, Target
from minmo.client.events import Happening, StopPlayback, TurnReport
from minmo.client.microphone import Microphone
from minmo.rpc import metrics
from minmo.rpc.catalogue import Exporter
from minmo.stack.replicas import kind_of
from minmo.stack.stack import Stack
from minmo.v1 import common_pb2, encoder_pb2, llm_pb2
from minmo.v1.conversation_pb2 import CommitInput, SessionSettings, TextInput, ToolChoice
from minmo.v1.encoder_pb2_grpc import EncoderServiceStub
from minmo.v1.llm_pb2_grpc import LlmServiceStub
from tests.system.conftest import QUESTION, SAME_LOOP
from tests.system.test_client_turns import WEATHER, stream
from tests.system.test_conversation import LONG, collect

pytestmark = SAME_LOOP

EVERY_SECONDS = 0.5
CALL_SECONDS = 20.0
# What `mini` does not show, since Pico speaks: where it is seen.
ELSEWHERE = {
    **dict.fromkeys(
        (
            *("minmo_voice_token_steps_total", "minmo_voice_token_step_seconds_total"),
            *("minmo_voice_speech_tokens_total", "minmo_voice_chunk_steps_total"),
            *("minmo_voice_chunk_step_seconds_total", "minmo_voice_chunks_total"),
            "minmo_voice_refused_total",
        ),
        "tests/service/test_voice_decoder_neural.py",
    ),
    "minmo_voice_failed_total": "tests/unit/test_metrics_voice.py",
    "minmo_probes_total": "tests/system/test_duplex.py",
    "minmo_llm_probes_total": "tests/service/test_llm_probes.py",
    "minmo_drafted_tokens_total": "tests/unit/test_drafting.py",
}
# They are above 0 for moments, which a scrape may miss: it is enough that they are there.
MOMENTARY = {
    *("minmo_encoder_slots_in_use", "minmo_encoder_waiting", "minmo_llm_waiting"),
    *("minmo_voice_slots_in_use", "minmo_voice_waiting"),
}


class Watcher:
    """Reads the metrics of all processes again and again, as Prometheus does.

    Attributes:
        samples: what was read, by process.
        pages: the same as text.
        session_id: of a session that there was.
    """

    def __init__(self, urls: dict[str, str]) -> None:
        self._urls = urls
        self.samples: dict[str, list[Sample]] = defaultdict(list)
        self.pages: list[str] = []
        self.session_id = ""

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(EVERY_SECONDS)

    async def read(self) -> None:
        """Once; who is not there now is passed over."""
        async with httpx.AsyncClient() as http:
            for name, url in self._urls.items():
                with contextlib.suppress(httpx.TransportError):
                    self._note(name, (await http.get(url)).text)

    def _note(self, name: str, page: str) -> None:
        self.pages.append(page)
        for family in text_string_to_metric_families(page):
            self.samples[name] += family.samples

    def value(self, process: str, name: str, **labels: str) -> float:
        """The latest value of a sample."""
        found = [
            sample.value
            for sample in self.samples[process]
            if sample.name == name and sample.labels.items() >= labels.items()
        ]
        return found[-1] if found else 0.0


async def fill_the_encoder(stack: Stack) -> None:
    """Opens more streams than it takes."""
    async with grpc.aio.insecure_channel(stack.addresses["encoder"]) as channel:
        stub = EncoderServiceStub(channel)
        config = encoder_pb2.EncodeConfig(format=PcmFormat(16_000).to_proto())
        calls = [stub.Encode(timeout=CALL_SECONDS) for _ in range(70)]
        refused = 0
        for call in calls:
            try:
                await call.write(encoder_pb2.EncodeRequest(config=config))
                await call.read()
            except (grpc.RpcError, asyncio.InvalidStateError):
                assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                refused += 1
        assert 0 < refused < len(calls)
        for call in calls:
            call.cancel()


async def ask_the_llm_for_nonsense(stack: Stack) -> None:
    """An operation that cannot be carried out."""
    async with grpc.aio.insecure_channel(stack.addresses["llm"]) as channel:
        call = LlmServiceStub(channel).Run(timeout=CALL_SECONDS)
        await call.write(llm_pb2.RunRequest(prefill=llm_pb2.Prefill()))
        answer = await call.read()
        assert isinstance(answer, llm_pb2.RunResponse)
        assert answer.error.reason == "BAD_CONTENT"
        call.cancel()


async def ask_for_what_cannot_be_had(target: Target) -> None:
    """A turn that has no audio, a voice that cannot sing, a frame that is none; and a tool."""
    choice = ToolChoice(kind=ToolChoice.KIND_NAMED, name="get_weather")
    async with stream(target, SessionSettings(tools=[WEATHER], tool_choice=choice)) as talk:
        assert await talk.refusal(commit_input=CommitInput()) == "NO_INPUT"
        await talk.send(text=TextInput(text="What is the weather in Paris?"))
        await talk.next("report")
    async with stream(target, SessionSettings(instruct="sing an aria")) as talk:
        await talk.send(text=TextInput(text="What is the capital of France?"))
        assert (await talk.next("report")).report.detail
        await talk.send(audio=common_pb2.AudioChunk(data=b"odd"))
        assert await talk.call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def talk_over_answers(target: Target) -> str:
    """Goes on right after the turn seemed to have ended, and speaks over the answer to that."""
    question = Recording.read(QUESTION)
    pause = np.zeros(int(0.35 * question.rate_hz), np.float32)
    both = np.concatenate([question.samples, pause, question.samples])
    async with Conversation(target, input_rate_hz=16_000) as conversation:
        for said, then in (
            (Recording(QUESTION, both, question.rate_hz), Happening.ASSISTANT_STARTED),
            (question, StopPlayback),
        ):
            speaking = asyncio.create_task(Microphone(conversation, said, 1.0).run())
            await collect(conversation, then)
            if then is StopPlayback:
                await collect(conversation, TurnReport)
            speaking.cancel()
        return conversation.session_id


async def use_the_gateway(stack: Stack) -> None:
    """A turn, an event that is none; then the orchestrator dies."""
    frames = append_events(Recording.read(QUESTION))
    address = stack.addresses["gateway"]
    async with ClientSession() as web, connect(address, web, max_output_tokens=12) as client:
        speaking = asyncio.create_task(client.speak(frames))
        await client.next("response.done")
        speaking.cancel()
        await client.send({"type": "input_audio_buffer.commit"})
        await client.send({"type": "nonsense"})
        while (await client.events.get())["type"] != "error":
            pass
        await stack.kill("orchestrator")
        await stack.wait_ready("orchestrator")
        async with asyncio.timeout(CALL_SECONDS):
            while not await reconnected(stack):
                await asyncio.sleep(0.1)


async def reconnected(stack: Stack) -> bool:
    watcher = Watcher({"gateway": stack.metrics_urls["gateway"]})
    await watcher.read()
    return watcher.value("gateway", "minmo_gateway_reconnects_total") > 0


async def lose_triton(stack: Stack, target: Target) -> None:
    """The LLM dies in the middle of an answer, which then comes late."""
    async with Conversation(target, input_rate_hz=16_000, settings=LONG, speed=2) as conversation:
        await conversation.send_text("Tell me a long story about a ship.")
        await collect(conversation, Happening.ASSISTANT_STARTED)
        await stack.kill("triton")
        await collect(conversation, TurnReport, 90)
    await stack.wait_ready("triton")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def watched(stack: Stack, target_of_all: Target) -> AsyncIterator[Watcher]:
    """All that was read of the metrics while all that happened."""
    watcher = Watcher(stack.metrics_urls)
    reading = asyncio.create_task(watcher.run())
    try:
        await fill_the_encoder(stack)
        async with asyncio.TaskGroup() as doing:
            talking = doing.create_task(talk_over_answers(target_of_all))
            doing.create_task(ask_the_llm_for_nonsense(stack))
            doing.create_task(ask_for_what_cannot_be_had(target_of_all))
        await lose_triton(stack, target_of_all)
        await watcher.read()
        await use_the_gateway(stack)
        await watcher.read()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    watcher.session_id = talking.result()
    yield watcher


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def target_of_all(stack: Stack) -> Target:
    return Target(stack.addresses["orchestrator"])


def base_of(sample: Sample) -> str:
    """The metric that a sample is of."""
    for suffix in ("_bucket", "_sum", "_count"):
        if sample.name.removesuffix(suffix) in metrics.METRICS:
            return sample.name.removesuffix(suffix)
    return sample.name


async def test_every_metric_has_data(watched: Watcher) -> None:
    there: set[str] = set()
    moved: set[str] = set()
    for samples in watched.samples.values():
        for sample in samples:
            there.add(base_of(sample))
            if sample.value > 0:
                moved.add(base_of(sample))
    expected = metrics.METRICS.keys() - ELSEWHERE.keys()
    assert expected - moved - MOMENTARY == set()
    assert expected - there == set()


async def test_a_process_exports_what_is_named_as_its_own_and_nothing_else(
    watched: Watcher,
) -> None:
    for process, samples in watched.samples.items():
        kind: Exporter = kind_of(process)  # type: ignore[assignment]
        for name in {base_of(sample) for sample in samples}:
            if name in metrics.METRICS:
                exporters = metrics.METRICS[name].exporters
            else:
                # The parser adds a suffix to Triton's own counters.
                known = name if name in metrics.FOREIGN else name.removesuffix("_total")
                assert known in metrics.FOREIGN, f"{process} exports {name}"
                exporters = metrics.FOREIGN[known][0]
            assert kind in exporters, f"{process} exports {name}"


async def test_labels_say_what_is_named_and_nothing_that_anybody_chose(watched: Watcher) -> None:
    for samples in watched.samples.values():
        for sample in samples:
            named = metrics.METRICS.get(base_of(sample))
            if named is None:
                continue
            labels = sample.labels.keys() - {"le"}
            assert labels == named.labels.keys(), sample
            for label, values in named.labels.items():
                if isinstance(values, tuple):
                    assert sample.labels[label] in values, sample
    for page in watched.pages:
        assert watched.session_id not in page
        assert "Paris" not in page


async def test_what_went_wrong_is_told_by_its_name(watched: Watcher) -> None:
    seen = {
        (process, sample.name, *sorted(sample.labels.values()))
        for process, samples in watched.samples.items()
        for sample in samples
        if sample.value > 0
    }
    assert seen >= {
        ("encoder", "minmo_rpc_rejected_total", "TOO_MANY_STREAMS"),
        ("llm", "minmo_llm_operation_errors_total", "BAD_CONTENT"),
        ("llm", "minmo_hop_errors_total", "UNAVAILABLE", "triton"),
        ("llm", "minmo_not_ready", "triton"),
        ("orchestrator", "minmo_requests_refused_total", "NO_INPUT"),
        ("orchestrator", "minmo_turn_failures_total", "INVALID_ARGUMENT"),
        ("orchestrator", "minmo_audio_in_lost_frames_total", "refused"),
        ("orchestrator", "minmo_turn_decisions_total", "stop"),
        ("orchestrator", "minmo_turn_regrets_total", "answered_too_early"),
        ("orchestrator", "minmo_outages_total", "llm"),
        ("orchestrator", "minmo_sessions", "listening"),
        ("orchestrator", "minmo_sessions", "speaking"),
        ("gateway", "minmo_outages_total", "orchestrator"),
    }
