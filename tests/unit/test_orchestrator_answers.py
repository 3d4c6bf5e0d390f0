"""Answers that a client asks for: what the LLM reads, what is called, what the history keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from minmo.rpc.errors import StatusError
from minmo.rpc.queues import StreamClosedError
from minmo.v1.common_pb2 import AUDIO_ENCODING_PCM_S16LE, AudioFormat
from minmo.v1.conversation_pb2 import Playback, ToolChoice, TurnEventKind
from services.orchestrator.answering import Answer, Answering
from services.orchestrator.branches import Branches
from services.orchestrator.link import Link
from services.orchestrator.manner import Manner, Wishes
from services.orchestrator.mind import Context, Epoch, Sampling
from services.orchestrator.record import Record
from services.orchestrator.session_settings import Settings, Tool
from services.orchestrator.session_settings import ToolChoice as Choice
from services.orchestrator.store import StoredSession, StoredTurn
from services.orchestrator.user_turn import Speech, UserTurn
from services.orchestrator.utterance import Voice
from services.orchestrator.waterfall import Waterfall
from tests.unit.fake_llm import FakeLlm, served
from tests.unit.fake_voice_decoder import FakeVoiceDecoder
from tests.unit.fake_voice_decoder import served as spoken_by

TOOL = Tool(
    "look",
    "",
    '{"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}',
)
HEAD = "<role_start>Be kind.<turn_end>"
QUESTION = "<role_start>Well?<turn_end>"


class Store:
    """Turns that are kept in memory."""

    def __init__(self) -> None:
        self.turns: dict[int, StoredTurn] = {}

    async def put_turn(self, session_id: str, stream_id: str, turn: StoredTurn) -> None:
        self.turns[turn.index] = turn

    async def drop_turn(self, session_id: str, stream_id: str, index: int) -> None:
        self.turns.pop(index, None)


class NoVoice:
    """Speaks nothing."""

    def stream_stream(self, *_: Any, **__: Any) -> None: ...

    def unary_unary(self, *_: Any, **__: Any) -> None: ...


class Told:
    """Responses that are noted, by their kind."""

    def __init__(self) -> None:
        self.all: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, kind: str) -> Any:
        async def note(*arguments: Any, **named: Any) -> None:
            self.all.append((kind, arguments, named))

        return note

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [arguments for told, arguments, _ in self.all if told == kind]

    @property
    def text(self) -> str:
        return "".join(arguments[2] for arguments in self.of("assistant_text"))


class Setup:
    def __init__(self, llm: FakeLlm, link: Link, *turns: StoredTurn, **manner: Any) -> None:
        self.llm, self.told, self.store = llm, Told(), Store()
        self.ended: asyncio.Queue[tuple[Answer, StatusError | None]] = asyncio.Queue()
        self.epoch = 0
        self.background: list[asyncio.Future[None]] = []

        async def advance() -> int:
            self.epoch += 1
            return self.epoch

        async def on_outage(lost: bool) -> None: ...

        async def on_ended(answer: Answer, error: StatusError | None) -> None:
            await self.ended.put((answer, error))

        def in_background(work: Awaitable[None]) -> None:
            self.background.append(asyncio.ensure_future(work))

        self.context = Context(
            link, Epoch(0, advance), "main", recovery_seconds=2, on_outage=on_outage
        )
        self.manner = Manner(
            aligned=False,
            context_length=2000,
            max_tokens=50,
            sampling=Sampling(),
            voice=Voice(
                NoVoice(), AudioFormat(sample_rate_hz=24_000), "", "", 1, reads_hidden_states=False
            ),  # type: ignore[arg-type]
            reports_playback=True,
            embed_seconds=0.2,
            system_prompt="Be kind.",
            text_only=True,
            **manner,
        )
        session = StoredSession("s", "me", Settings(""), 0, 0, 0, turns=turns)
        self.store.turns = {turn.index: turn for turn in turns}
        self.record = Record(self.store, session, "stream", self.manner.system_text)  # type: ignore[arg-type]
        self.answering = Answering(
            "s",
            self.manner,
            record=self.record,
            branches=Branches(self.context, in_background, "stream"),
            responses=self.told,  # type: ignore[arg-type]
            on_ended=on_ended,
        )
        self.context.replace(self.record.prompt(self.manner.prompt_limit))

    @property
    def read(self) -> str:
        return "".join(self.llm.branches.get("main", []))

    def begin(self, **wishes: Any) -> None:
        self.answering.begin_to_history(Waterfall(0.0), Wishes(**wishes), request_id="r")

    async def answer(self, **wishes: Any) -> None:
        """An answer, to its end, and all of it read."""
        self.begin(**wishes)
        answer, error = await asyncio.wait_for(self.ended.get(), 5)
        assert error is None
        await self.answering.ended(answer, error)
        await self.context.sync()
        await asyncio.gather(*self.background)


@pytest.fixture
async def link() -> AsyncIterator[tuple[FakeLlm, Link]]:
    llm = FakeLlm()
    async with served(llm) as channel:
        link = Link(channel, "s", deadline_seconds=2)
        yield llm, link
        await link.close()


WELL = StoredTurn(0, "user", "Well?", waits=True)


async def test_an_answer_to_the_history_is_read_behind_it(link: tuple[FakeLlm, Link]) -> None:
    setup = Setup(*link, WELL)
    setup.llm.script = ["So", " it", " is."]
    await setup.answer()
    assert setup.told.text == "So it is."
    assert setup.store.turns[1].text == "So it is."
    assert setup.read.startswith(f"{HEAD}{QUESTION}<role_start>#")
    assert setup.read.endswith("<turn_end>")
    (report,) = [named for kind, _, named in setup.told.all if kind == "report"]
    assert report["read_count"] == len(setup.llm.branches["main"]) - 3 - 1
    assert report["request_id"] == "r"


async def test_instructions_of_one_answer_leave_the_conversations_cache_alone(
    link: tuple[FakeLlm, Link],
) -> None:
    setup = Setup(*link, WELL)
    setup.llm.script = ["Arr."]
    await setup.context.sync()
    epoch = setup.epoch
    setup.llm.gate.clear()
    setup.begin(instructions="Be a pirate.")
    async with asyncio.timeout(5):
        while "generate" not in setup.llm.operations:
            await asyncio.sleep(0.01)
    seen = ["".join(units) for name, units in setup.llm.branches.items() if name != "main"]
    setup.llm.gate.set()
    answer, error = await asyncio.wait_for(setup.ended.get(), 5)
    await setup.answering.ended(answer, error)
    await setup.context.sync()
    await asyncio.gather(*setup.background)
    assert seen == [f"<role_start>Be a pirate.<turn_end>{QUESTION}<role_start>"]
    assert setup.read == f"{HEAD}{QUESTION}<role_start>Arr.<turn_end>"
    assert list(setup.llm.branches) == ["main"]
    assert setup.epoch == epoch


async def test_a_call_is_told_not_said_and_stays_in_the_history(link: tuple[FakeLlm, Link]) -> None:
    setup = Setup(*link, WELL, tools=(TOOL,))
    setup.llm.script = [
        "One", " moment.", "\n<tool", "_call>", '{"name": "look", "argu', 'ments": {"at": "it"}}',
        "</tool_call>", " Then", " more",
    ]  # fmt: skip
    await setup.answer()
    assert setup.told.text == "One moment."
    ((call,),) = setup.told.of("tool_call")
    assert (call.index, call.call_name, call.call_arguments) == (2, "look", '{"at": "it"}')
    assert setup.store.turns[1].text == "One moment."
    assert setup.store.turns[2] == call
    assert setup.read.endswith(
        '<role_start>One moment.\n<tool_call>\n{"name": "look", "arguments": {"at": "it"}}'
        "\n</tool_call><turn_end>"
    )
    assert setup.record.call_without_result(call.call_id) == call
    result = StoredTurn(3, "tool", "seen", call_id=call.call_id)
    await setup.record.put(result)
    assert setup.record.call_without_result(call.call_id) is None


async def test_a_forced_call_is_begun_for_the_model_and_ends_the_answer(
    link: tuple[FakeLlm, Link],
) -> None:
    setup = Setup(*link, WELL, tools=(TOOL, Tool("other")))
    setup.llm.script = ['th', 'at"', "}}", " and so on", " and on"]  # fmt: skip
    choice = Choice(ToolChoice.KIND_NAMED, "look")
    await setup.answer(tool_choice=choice)
    ((call,),) = setup.told.of("tool_call")
    assert (call.index, call.call_arguments) == (1, '{"at": "that"}')
    assert setup.told.text == ""
    assert [turn.index for turn in setup.record.turns] == [0, 1]
    assert setup.read.count("<tool_call>\n{") == 2  # in the instructions, and the call itself


async def test_a_call_that_does_not_fit_is_dropped_and_said_so(link: tuple[FakeLlm, Link]) -> None:
    setup = Setup(*link, WELL, tools=(TOOL,))
    setup.llm.script = ["Well.", "<tool_call>", '{"name": "look", "arguments": {}}']
    await setup.answer()
    assert setup.told.of("tool_call") == []
    dropped = TurnEventKind.TURN_EVENT_KIND_TOOL_CALL_DROPPED
    (why,) = [
        named["detail"]
        for kind, arguments, named in setup.told.all
        if kind == "event" and arguments == (dropped,)
    ]
    assert "'at' is a required property" in why
    assert [turn.text for turn in setup.record.turns] == ["Well?", "Well."]
    assert setup.read.endswith("<role_start>Well.<turn_end>")


async def test_without_tools_a_mark_is_text(link: tuple[FakeLlm, Link]) -> None:
    setup = Setup(*link, WELL)
    setup.llm.script = ["<tool_call>", "{}"]
    await setup.answer()
    assert setup.told.text == "<tool_call>{}"


async def test_what_is_added_meanwhile_is_read_when_the_answer_has_ended(
    link: tuple[FakeLlm, Link],
) -> None:
    setup = Setup(*link, WELL)
    setup.llm.script = ["Yes."]
    setup.llm.gate.clear()
    setup.begin()
    async with asyncio.timeout(5):
        while "generate" not in setup.llm.operations:
            await asyncio.sleep(0.01)
    added = StoredTurn(setup.record.next_index, "user", "And?")
    assert added.index == 2
    await setup.record.put(added)
    setup.answering.read_on(added)
    setup.llm.gate.set()
    answer, error = await asyncio.wait_for(setup.ended.get(), 5)
    await setup.answering.ended(answer, error)
    await setup.context.sync()
    assert setup.read == (f"{HEAD}{QUESTION}<role_start>Yes.<turn_end><role_start>And?<turn_end>")


async def test_an_answer_that_is_stopped_before_its_first_word_can_be_asked_for_again(
    link: tuple[FakeLlm, Link],
) -> None:
    setup = Setup(*link, StoredTurn(0, "user", "Well?"))
    setup.llm.gate.clear()
    setup.begin()
    async with asyncio.timeout(5):
        while "generate" not in setup.llm.operations:
            await asyncio.sleep(0.01)
    setup.llm.gate.set()
    await setup.answering.stop("the user pressed stop")
    await setup.context.sync()
    assert [turn.waits for turn in setup.record.turns] == [True]
    assert setup.answering.unheard is None
    assert setup.read == f"{HEAD}{QUESTION}"
    assert setup.told.of("report")
    setup.llm.script = ["Yes."]
    await setup.answer()
    assert setup.store.turns[1].text == "Yes."


async def test_a_turn_that_waits_is_written_down_and_read(link: tuple[FakeLlm, Link]) -> None:
    setup = Setup(*link)
    turn = UserTurn(0, checkpoint=3, speech=[Speech(1, "Well?")])
    settled = await setup.answering.settle(turn, 500, request_id="commit")
    assert settled is not None
    assert (settled.text, settled.waits, settled.index) == ("Well?", True, 0)
    assert setup.read == f"{HEAD}{QUESTION}"
    nothing = UserTurn(0, checkpoint=6, speech=[Speech(2, "")])
    assert await setup.answering.settle(nothing, 500, request_id="commit") is None
    assert (await setup.record.close_open_answer()) is None
    assert setup.read == f"{HEAD}{QUESTION}"


async def test_an_answer_is_cut_late_while_it_is_the_latest_turn(
    link: tuple[FakeLlm, Link],
) -> None:
    setup = Setup(*link, WELL)
    setup.llm.script = ["One", " two"]
    await setup.answer()
    utterance = setup.answering._latest
    assert utterance is not None
    # As if it had been spoken: a second of audio, of which half a second is the first word.
    utterance._text_only, utterance._samples, utterance._marks = False, 24_000, [(12_000, 1)]
    late = Playback(utterance_id=utterance.utterance_id, played_samples=13_000, finished=True)
    assert setup.answering.corrects(late)
    assert await setup.answering.correct(late) == setup.store.turns[1]
    assert await setup.answering.correct(late) is None
    assert (setup.store.turns[1].text, setup.store.turns[1].outcome) == ("One", "interrupted")
    await setup.answering.reread(None)
    await setup.context.sync()
    assert setup.read.endswith("<role_start>One<interruption><turn_end>")


async def test_an_interrupted_answer_is_made_longer_late_also_behind_the_next_question(
    link: tuple[FakeLlm, Link],
) -> None:
    setup = Setup(*link, WELL)
    setup.llm.script = ["One", " two"]
    await setup.answer()
    utterance = setup.answering._latest
    assert utterance is not None
    utterance._text_only, utterance._samples = False, 24_000
    utterance._marks = [(12_000, 1), (20_000, 2)]
    cut, longer = (
        Playback(utterance_id=utterance.utterance_id, played_samples=played, finished=True)
        for played in (13_000, 21_000)
    )
    await setup.answering.correct(cut)
    await setup.record.put(StoredTurn(2, "user", "And?"))
    corrected = await setup.answering.correct(longer)
    assert corrected is not None
    assert (corrected.text, corrected.outcome) == ("One two", "interrupted")
    assert [turn.text for turn in setup.record.turns] == ["Well?", "One two", "And?"]
    # Another turn has got the number of one that was removed: it is left alone.
    await setup.record.drop(setup.store.turns[1])
    await setup.record.put(StoredTurn(1, "assistant", "Else", started=1.0))
    assert await setup.answering.correct(cut) is None
    assert setup.store.turns[1].text == "Else"


async def test_how_an_answer_was_asked_for_is_kept_until_it_is_given(
    link: tuple[FakeLlm, Link],
) -> None:
    wishes = Wishes("Sing.", 5, Choice(ToolChoice.KIND_NAMED, "look"), text_only=True)
    assert Wishes.from_json(wishes.to_json()) == wishes
    assert Wishes.from_json(Wishes().to_json()) == Wishes()
    for role in ("user", "tool"):
        asked = StoredTurn(0, role, "Well?", wishes=wishes.to_json())
        setup = Setup(*link, asked)
        assert await setup.record.close_open_answer() == asked
        setup.llm.gate.clear()
        setup.begin(instructions="Sing.")
        async with asyncio.timeout(5):
            while "generate" not in setup.llm.operations:
                await asyncio.sleep(0.01)
        setup.llm.gate.set()
        await setup.answering.stop("the user pressed stop")
        # Who stopped it asks again, and may wish for something else.
        assert (setup.store.turns[0].waits, setup.store.turns[0].wishes) == (True, "")
        assert await setup.record.close_open_answer() is None
        setup.llm.operations.clear()


async def test_a_client_that_is_gone_is_no_failure(link: tuple[FakeLlm, Link]) -> None:
    setup = Setup(*link, WELL)

    async def gone(*_: Any, **__: Any) -> None:
        raise StreamClosedError("nobody reads")

    setup.told.assistant_text = gone
    with capture_logs() as logs:
        setup.begin()
        answer = setup.answering.current
        assert answer is not None
        assert answer.task is not None
        await asyncio.wait_for(answer.task, 5)
    assert not [line for line in logs if line["log_level"] == "error"]
    assert setup.ended.empty()


async def test_the_voice_reads_how_to_speak_and_then_what_the_user_said(
    link: tuple[FakeLlm, Link],
) -> None:
    setup, decoder = Setup(*link, WELL), FakeVoiceDecoder()
    setup.context.query_positions = 50
    audio = AudioFormat(encoding=AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=24_000, channels=1)
    async with spoken_by(decoder) as channel:
        voice = Voice(channel, audio, "", "sadly", 5, True, 50)
        setup.answering.manner = replace(
            setup.manner, text_only=False, reports_playback=False, voice=voice
        )
        await setup.answer()
        await setup.answer()
        setup.answering.manner = replace(
            setup.answering.manner, voice=replace(voice, instruct="gladly")
        )
        await setup.answer()
        await setup.answer(text_only=True)
    queries = [(c.query_embeddings.rows, c.query_hidden_states.rows) for c in decoder.configs]
    rows = len("sadly") + len("Well?")
    assert queries == [(rows, rows), (rows, rows), (rows + 1, rows + 1)]
    assert decoder.configs[0].query_embeddings == decoder.configs[1].query_embeddings
    texts = [part.text for prefill in setup.llm.prefills for part in prefill.parts]
    # The LLM reads an instruction once, on a branch of its own.
    assert (texts.count("sadly"), texts.count("gladly")) == (1, 1)
    assert list(setup.llm.branches) == ["main"]
    assert "sadly" not in setup.read
