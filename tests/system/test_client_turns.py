"""A client that decides itself when turns end, and edits the conversation while it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

from minmo.audio.pcm import PcmFormat
from minmo.client import Conversation, Recording, StatusError, Target, sessions
from minmo.rpc import client
from minmo.stack.stack import Stack
from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import (
    AddTurn,
    ClearInput,
    CommitInput,
    ConverseRequest,
    ConverseResponse,
    CreateResponse,
    DeleteTurn,
    SessionSettings,
    TextInput,
    Tool,
    ToolChoice,
    ToolResult,
    TurnDetection,
    TurnEventKind,
    UpdateSettings,
)
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub
from tests.system.conftest import QUESTION, QUESTION_TEXT, SAME_LOOP, recognise, word_error_rate

pytestmark = SAME_LOOP

RATE = 24_000
BY_CLIENT = TurnDetection(kind=TurnDetection.KIND_CLIENT)
WEATHER = Tool(
    name="get_weather",
    description="Get the current weather in a city.",
    parameters_json=json.dumps(
        {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        }
    ),
)


class Stream:
    """One stream of Converse, message by message."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self.call = call
        self.inbox: asyncio.Queue[ConverseResponse] = asyncio.Queue()
        self.reader = asyncio.create_task(self.read())
        self.session_id = ""
        self.voices: list[str] = []
        self.sequence = 0
        self.seen: list[ConverseResponse] = []

    async def read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            while (response := await self.call.read()) is not grpc.aio.EOF:
                self.inbox.put_nowait(response)

    async def send(self, **fields: object) -> None:
        """Sends a message."""
        await self.call.write(ConverseRequest(**fields))  # type: ignore[arg-type]

    async def say(self, recording: Recording) -> None:
        """Sends a recording as fast as it is taken."""
        samples = recording.samples
        encoded = PcmFormat(recording.rate_hz).encode(samples)
        for first in range(0, len(encoded), 6400):
            chunk = common_pb2.AudioChunk(
                sequence=self.sequence, data=encoded[first : first + 6400]
            )
            self.sequence += 1
            await self.send(audio=chunk)

    async def ask(self, kind: str, **fields: object) -> ConverseResponse:
        """Sends a request under an id of its own; the answer of a kind, which carries it."""
        request_id = f"request {len(self.seen)}"
        await self.send(**fields, request_id=request_id)
        while (response := await self.next(kind)).request_id != request_id:
            pass
        return response

    async def refusal(self, **fields: object) -> str:
        """Sends a request that is refused; why."""
        refused = (await self.ask("refused", **fields)).refused
        assert refused.message
        return refused.reason

    async def next(self, kind: str, seconds: float = 30) -> ConverseResponse:
        """The next message of a kind; what comes before it is kept in `seen`."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    response = await self.inbox.get()
                    self.seen.append(response)
                    if response.WhichOneof("message") == kind:
                        return response
        except TimeoutError:
            told = [message for message in self.seen if not message.HasField("audio")]
            raise AssertionError(f"no {kind} came, but {told[-10:]}") from None

    async def event(self, kind: TurnEventKind.ValueType) -> ConverseResponse:
        """The next event of a kind."""
        while True:
            response = await self.next("event")
            if response.event.kind == kind:
                return response

    async def nothing(self, kind: str, seconds: float) -> None:
        """Fails if a message of a kind comes within a time."""
        with pytest.raises(AssertionError, match=f"no {kind} came"):
            await self.next(kind, seconds)

    @property
    def audio(self) -> np.ndarray:
        """What was to be heard."""
        data = b"".join(message.audio.data for message in self.seen)
        return PcmFormat(RATE).decode(data)


@asynccontextmanager
async def stream(
    target: Target, settings: SessionSettings | None = None, session_id: str = ""
) -> AsyncIterator[Stream]:
    async with client.channel(target.address) as channel:
        call = ConversationServiceStub(channel).Converse(wait_for_ready=True)
        opened = Stream(call)
        await opened.send(
            config=conversation_pb2.ConverseConfig(
                session_id=session_id,
                settings=settings,
                input_format=PcmFormat(16_000).to_proto(),
                output_format=PcmFormat(RATE).to_proto(),
                take_over=True,
            )
        )
        ready = (await opened.next("ready")).ready
        opened.session_id, opened.voices = ready.session_id, list(ready.voices)
        try:
            yield opened
        finally:
            call.cancel()
            await asyncio.gather(opened.reader, return_exceptions=True)


async def test_the_client_ends_the_turn_and_asks_for_its_answer(target: Target) -> None:
    question = Recording.read(QUESTION)
    settings = SessionSettings(turn_detection=BY_CLIENT, max_answer_tokens=12)
    async with stream(target, settings) as talk:
        await talk.say(question)
        # Two seconds of silence, which would end the turn otherwise.
        await talk.say(Recording(QUESTION, np.zeros(32_000, np.float32), 16_000))
        await talk.send(commit_input=CommitInput(), request_id="commit")
        ended = await talk.event(TurnEventKind.TURN_EVENT_KIND_USER_TURN_ENDED)
        assert ended.request_id == "commit"
        while not (said := await talk.next("user_text")).user_text.final:
            pass
        assert said.request_id == "commit"
        assert word_error_rate(QUESTION_TEXT, said.user_text.text) <= 0.2
        await talk.nothing("assistant_text", 1.0)
        await talk.send(create_response=CreateResponse(), request_id="answer")
        report = await talk.next("report")
        assert report.request_id == "answer"
        assert report.report.user_turn_index == said.user_text.turn_index
        assert report.report.read_count > 20
        audible = [message for message in talk.seen if message.HasField("audio")]
        assert {message.request_id for message in audible} == {"answer"}
        heard = await recognise(target, talk.audio, RATE)
        assert word_error_rate(report.report.generated_text, heard) <= 0.4
        # A client that says late how much it played of it has the history corrected, either way.
        whole = report.report.heard_text
        for played, least, most in (
            (len(talk.audio) // 2, 1, len(whole) - 1),
            (len(talk.audio), len(whole), len(whole)),
        ):
            late = conversation_pb2.Playback(
                utterance_id=report.report.utterance_id, played_samples=played, finished=True
            )
            await talk.send(playback=late)
            changed = (await talk.next("turn_changed")).turn_changed
            assert changed.utterance_id == late.utterance_id
            assert changed.turn.outcome == conversation_pb2.TURN_OUTCOME_INTERRUPTED
            assert whole.startswith(changed.turn.text)
            assert least <= len(changed.turn.text) <= most
            assert (await sessions.get_session(target, talk.session_id)).turns[1] == changed.turn
        # What is cleared is in no turn, and there is nothing left to commit.
        await talk.say(question)
        await talk.send(clear_input=ClearInput(), request_id="clear")
        cleared = await talk.event(TurnEventKind.TURN_EVENT_KIND_INPUT_CLEARED)
        assert cleared.request_id == "clear"
        await talk.send(commit_input=CommitInput(), request_id="too early")
        refused = await talk.next("refused")
        assert (refused.refused.reason, refused.request_id) == ("NO_INPUT", "too early")
        session = await sessions.get_session(target, talk.session_id)
    assert [turn.role for turn in session.turns] == [2, 3]


async def test_a_turn_that_silence_ends_waits_for_its_answer_too(target: Target) -> None:
    detection = TurnDetection(wait_for_create_response=True)
    settings = SessionSettings(turn_detection=detection, text_only=True, max_answer_tokens=12)
    async with stream(target, settings) as talk:
        await talk.say(Recording.read(QUESTION))
        await talk.say(Recording(QUESTION, np.zeros(16_000, np.float32), 16_000))
        await talk.event(TurnEventKind.TURN_EVENT_KIND_USER_TURN_ENDED)
        # An answer that is asked for at once waits for the words.
        report = await talk.ask("report", create_response=CreateResponse())
        texts = [message.user_text for message in talk.seen if message.HasField("user_text")]
        assert texts[-1].final
        assert word_error_rate(QUESTION_TEXT, texts[-1].text) <= 0.2
        assert report.report.heard_text == report.report.generated_text != ""
        assert not talk.audio.size
        session = await sessions.get_session(target, talk.session_id)
    assert [turn.role for turn in session.turns] == [2, 3]


async def test_the_history_is_edited_and_the_llm_reads_what_it_is(target: Target) -> None:
    settings = SessionSettings(turn_detection=BY_CLIENT, text_only=True, max_answer_tokens=16)
    brief = CreateResponse(max_answer_tokens=2)
    async with stream(target, settings) as talk:
        question = AddTurn(role=common_pb2.ROLE_USER, text="What is the capital of France?")
        first = (await talk.ask("turn_added", add_turn=question)).turn_added.turn
        assert (first.index, first.text) == (0, question.text)
        report = (await talk.ask("report", create_response=CreateResponse())).report
        assert "Paris" in report.generated_text
        assert report.token_count > 2
        one_turn = report.read_count
        for role, text in (
            (common_pb2.ROLE_USER, "And of Italy?"),
            (common_pb2.ROLE_ASSISTANT, "That is Rome."),
            (common_pb2.ROLE_SYSTEM, "Be brief from here on."),
            (common_pb2.ROLE_USER, "And of Spain?"),
        ):
            await talk.ask("turn_added", add_turn=AddTurn(role=role, text=text))
        report = (await talk.ask("report", create_response=brief)).report
        assert report.token_count == 2
        with_all = report.read_count
        assert with_all > one_turn + 20
        for index in (1, 2, 3, 4):
            deleted = await talk.ask("turn_deleted", delete_turn=DeleteTurn(turn_index=index))
            assert deleted.turn_deleted.turn_index == index
        report = (await talk.ask("report", create_response=brief)).report
        assert one_turn < report.read_count < with_all
        session = await sessions.get_session(target, talk.session_id)
    assert [turn.index for turn in session.turns] == [0, 5, 6, 7]
    assert [turn.role for turn in session.turns] == [2, 2, 3, 3]


async def test_settings_change_in_the_middle_and_stay_changed(target: Target) -> None:
    brief = CreateResponse(max_answer_tokens=2)
    async with stream(target, SessionSettings(text_only=True)) as talk:
        await talk.ask("turn_added", add_turn=AddTurn(role=common_pb2.ROLE_USER, text="Hello."))
        before = (await talk.ask("report", create_response=brief)).report.read_count
        other = SessionSettings(
            system_prompt="You are the keeper of a lighthouse, and you answer as such. " * 3,
            instruct="whispering",
            max_answer_tokens=1,
            text_only=True,
            turn_detection=BY_CLIENT,
        )
        updated = await talk.ask("settings_updated", update_settings=UpdateSettings(settings=other))
        assert updated.settings_updated.settings.SerializeToString() == other.SerializeToString()
        after = (await talk.ask("report", create_response=CreateResponse())).report
        assert after.read_count > before + 15
        assert after.token_count == 1
        # For one answer alone there may be other instructions.
        own = CreateResponse(instructions="Be kind.", max_answer_tokens=2)
        alone = (await talk.ask("report", create_response=own)).report
        assert alone.read_count < after.read_count
        again = (await talk.ask("report", create_response=brief)).report
        assert again.read_count > after.read_count
        session_id = talk.session_id
    async with stream(target, session_id=session_id) as talk:
        session = await sessions.get_session(target, session_id)
        assert session.settings.instruct == "whispering"
        resumed = (await talk.ask("report", create_response=brief)).report
    assert resumed.read_count > again.read_count


async def test_what_is_refused_leaves_the_stream_alive(target: Target) -> None:
    long = "x" * 4001
    user = common_pb2.ROLE_USER
    named = ToolChoice(kind=ToolChoice.KIND_NAMED, name="nobody")
    async with stream(target, SessionSettings(turn_detection=BY_CLIENT)) as talk:
        assert await talk.refusal(commit_input=CommitInput()) == "NO_INPUT"
        assert await talk.refusal(text=TextInput(text=" ")) == "BAD_REQUEST"
        assert await talk.refusal(text=TextInput(text=long)) == "TOO_LONG"
        assert await talk.refusal(add_turn=AddTurn(role=user, text=long)) == "TOO_LONG"
        assert await talk.refusal(add_turn=AddTurn(role=common_pb2.ROLE_TOOL, text="hm")) == (
            "BAD_REQUEST"
        )
        assert await talk.refusal(delete_turn=DeleteTurn(turn_index=7)) == "NO_TURN"
        assert await talk.refusal(tool_result=ToolResult(call_id="none", output="1")) == "NO_CALL"
        for settings, field in (
            (SessionSettings(temperature=3), "temperature"),
            (SessionSettings(tools=[Tool(name="a b")]), "tools[0].name"),
            (SessionSettings(tools=[Tool(name="a", parameters_json="[1]")]), "tools[0].parameters"),
            (SessionSettings(tools=[WEATHER], tool_choice=named), "tool_choice.name"),
            (
                SessionSettings(
                    tools=[Tool(name=f"t{n}", description="blah " * 100) for n in range(40)]
                ),
                "tools",
            ),
            (SessionSettings(voice="nobody"), "voice"),
        ):
            update = UpdateSettings(settings=settings)
            refused = (await talk.ask("refused", update_settings=update)).refused
            assert refused.reason == "BAD_SETTINGS"
            assert field in refused.field, refused
        assert refused.message.endswith(f"there are: {', '.join(talk.voices)}")
        assert await talk.refusal(create_response=CreateResponse(tool_choice=named)) == (
            "BAD_REQUEST"
        )
        await talk.send(text=TextInput(text="Tell me a long story about a ship."))
        await talk.event(TurnEventKind.TURN_EVENT_KIND_ASSISTANT_STARTED)
        assert await talk.refusal(create_response=CreateResponse()) == "ANSWERING"
        assert await talk.refusal(delete_turn=DeleteTurn(turn_index=0)) == "ANSWERING"
        await talk.send(interrupt=conversation_pb2.Interrupt())
        report = (await talk.next("report")).report
    assert report.outcome == conversation_pb2.TURN_OUTCOME_INTERRUPTED


async def test_no_session_is_made_with_a_voice_that_is_none(target: Target) -> None:
    nobody = SessionSettings(voice="nobody")
    with pytest.raises(StatusError) as refused:
        async with Conversation(target, input_rate_hz=16_000, settings=nobody):
            pass
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.reason == "VOICE_NOT_FOUND"


async def test_a_named_tool_is_called_and_its_result_is_read(target: Target) -> None:
    settings = SessionSettings(
        turn_detection=BY_CLIENT, tools=[WEATHER], max_answer_tokens=40, temperature=0
    )
    named = ToolChoice(kind=ToolChoice.KIND_NAMED, name="get_weather")
    async with stream(target, settings) as talk:
        question = AddTurn(role=common_pb2.ROLE_USER, text="What is the weather like in Paris?")
        await talk.ask("turn_added", add_turn=question)
        call = (
            await talk.ask("tool_call", create_response=CreateResponse(tool_choice=named))
        ).tool_call
        assert call.name == "get_weather"
        assert "Paris" in json.loads(call.arguments_json)["city"]
        called = (await talk.next("report")).report
        assert called.assistant_turn_index == call.turn_index == 1
        assert not talk.audio.size
        assert called.generated_text == ""
        result = ToolResult(call_id=call.call_id, output='{"sky": "sunny", "celsius": 21}')
        added = (await talk.ask("turn_added", tool_result=result)).turn_added.turn
        assert added.role == common_pb2.ROLE_TOOL
        assert await talk.refusal(tool_result=result) == "NO_CALL"
        spoken = CreateResponse(
            tool_choice=ToolChoice(kind=ToolChoice.KIND_NONE), max_answer_tokens=12
        )
        answer = (await talk.ask("report", create_response=spoken)).report
        assert answer.generated_text
        session_id = talk.session_id
    async with stream(target, session_id=session_id) as talk:
        again = (
            await talk.ask(
                "report", create_response=CreateResponse(max_answer_tokens=2, text_only=True)
            )
        ).report
        session = await sessions.get_session(target, session_id)
    assert again.read_count > called.read_count + 30
    asked, call_turn, result_turn, said, _ = session.turns
    assert (asked.role, call_turn.role, result_turn.role, said.role) == (2, 3, 4, 3)
    assert call_turn.tool_call.arguments_json == call.arguments_json
    assert result_turn.tool_call.call_id == call.call_id
    assert result_turn.text == result.output


async def test_a_turn_that_the_client_ended_survives_the_orchestrator(
    target: Target, stack: Stack
) -> None:
    settings = SessionSettings(turn_detection=BY_CLIENT, max_answer_tokens=12)
    async with stream(target, settings) as talk:
        await talk.say(Recording.read(QUESTION))
        await talk.send(commit_input=CommitInput())
        while not (await talk.next("user_text")).user_text.final:
            pass
        await stack.kill("orchestrator")
        session_id = talk.session_id
    await stack.wait_ready("orchestrator")
    async with stream(target, session_id=session_id) as talk:
        # Nobody has asked for an answer yet.
        await talk.nothing("assistant_text", 1.0)
        await talk.send(create_response=CreateResponse(instructions="Sing.", max_answer_tokens=5))
        await talk.next("assistant_text")
    async with stream(target, session_id=session_id) as talk:
        # Now somebody has: the next stream gives it, as it was asked for.
        report = (await talk.next("report")).report
        assert report.token_count == 5
        session = await sessions.get_session(target, session_id)
    assert word_error_rate(QUESTION_TEXT, session.turns[0].text) <= 0.2
    assert session.turns[1].text == report.heard_text != ""
    assert [turn.role for turn in session.turns] == [2, 3]
