"""What clients ask for in the middle of a conversation, carried out in order.

A request that cannot be carried out is refused, and the conversation goes on. One that needs
something that is under way waits for it: the words of a turn that has just ended, or the end of an
answer that is only being played.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from minmo.rpc.errors import StatusError
from minmo.v1.conversation_pb2 import TurnEventKind
from services.orchestrator import requests
from services.orchestrator.answering import Answering
from services.orchestrator.record import Record
from services.orchestrator.requests import RefusedError, Request
from services.orchestrator.responses import Responses
from services.orchestrator.store import StoredTurn
from services.orchestrator.turn_taking import FloorEvent, FloorState, milliseconds
from services.orchestrator.waterfall import Waterfall

if TYPE_CHECKING:
    from services.orchestrator.conversation import Conversation

_LEAST_INPUT_MS = 100.0
_MAX_WAITING_REQUESTS = 64


class Commands:
    """Carries out requests of one stream.

    Args:
        talk: the conversation.
        record: its history.
        responses: to the client.
        max_turns: turns after which nothing is added any more.
    """

    def __init__(
        self, talk: Conversation, record: Record, responses: Responses, *, max_turns: int
    ) -> None:
        self._talk = talk
        self._record = record
        self._responses = responses
        self._max_turns = max_turns
        self.waiting: deque[Request | FloorEvent] = deque()
        """Requests that wait, and turns that ended meanwhile."""
        self._handlers: dict[str, Callable[[Request, Answering], Awaitable[None]]] = {
            "playback": self._correct,
            "text": self._typed,
            "interrupt": self._interrupt,
            "update_settings": self._update,
            "commit_input": self._commit,
            "clear_input": self._clear,
            "create_response": self._create,
            "add_turn": self._add_turn,
            "tool_result": self._add_result,
            "delete_turn": self._delete,
        }

    async def take(self, request: Request, answering: Answering) -> None:
        """Carries a request out, or puts it behind those that wait for their turn."""
        settling = self._talk.settling is not None
        now = request.kind == "interrupt" or (request.kind == "text" and not settling)
        if now:
            await self.give_up_waiting("the answer before it was stopped")
        if not now and (self.waiting or settling):
            if len(self.waiting) < _MAX_WAITING_REQUESTS:
                self.waiting.append(request)
            else:
                await self._responses.refused(
                    "TOO_MANY",
                    f"{_MAX_WAITING_REQUESTS} requests wait already",
                    request_id=request.message.request_id[: requests.MAX_REQUEST_ID_CHARACTERS],
                )
            return
        await self._carry_out(request, answering)
        if now:
            await self.go_on(answering)

    async def go_on(self, answering: Answering) -> None:
        """Does what has waited for a turn to be written down, or for an answer to be played."""
        while self.waiting and self._talk.settling is None:
            if not isinstance(self.waiting[0], FloorEvent) and self._must_wait(
                self.waiting[0], answering
            ):
                return
            waiting = self.waiting.popleft()
            if isinstance(waiting, FloorEvent):
                await self._talk.end_turn(waiting, answering)
            else:
                await self._carry_out(waiting, answering)

    def _must_wait(self, request: Request, answering: Answering) -> bool:
        """An answer that is only being played is waited for, as it needs nothing more."""
        return request.kind == "create_response" and answering.only_plays

    async def give_up_waiting(self, why: str) -> None:
        """Refuses the answers that were to follow one that is stopped."""
        kept = [
            waiting
            for waiting in self.waiting
            if isinstance(waiting, FloorEvent) or waiting.kind != "create_response"
        ]
        given_up = [waiting for waiting in self.waiting if waiting not in kept]
        self.waiting = deque(kept)
        for waiting in given_up:
            if isinstance(waiting, Request):
                await self._responses.refused(
                    "INTERRUPTED", why, request_id=waiting.message.request_id
                )

    async def _carry_out(self, request: Request, answering: Answering) -> None:
        request_id = ""
        try:
            request_id = requests.request_id(request.message)
            await self._handlers[request.kind](request, answering)
        except RefusedError as refused:
            await self._responses.refused(
                refused.reason, str(refused), field=refused.field, request_id=request_id
            )

    async def _interrupt(self, request: Request, answering: Answering) -> None:
        await answering.stop("the user pressed stop")
        await self._talk.give_floor_back(answering)

    async def _correct(self, request: Request, answering: Answering) -> None:
        playback = request.message.playback
        turn = await answering.correct(playback)
        if turn is not None:
            await self._reread(answering)
            await self._responses.turn_changed(turn, playback.utterance_id)

    async def _typed(self, request: Request, answering: Answering) -> None:
        words = requests.text(request.message.text.text, "text.text")
        self._check_room()
        await answering.stop("the user typed")
        await self._talk.drop_turn(answering)
        self._talk.floor.assistant_starts()
        turn = self._talk.new_turn(request.position, answering, began=request.arrived)
        user = await answering.commit_user(
            f"{turn.carried} {words}".strip(), 0, request_id=request.message.request_id
        )
        answering.begin(
            Waterfall(time.monotonic()),
            user=user,
            spoken=turn,
            request_id=request.message.request_id,
        )

    async def _update(self, request: Request, answering: Answering) -> None:
        # Schemas may take a while, and others talk meanwhile.
        chosen = await asyncio.to_thread(requests.settings, request.message.update_settings)
        field = "update_settings.settings.voice"
        try:
            await self._talk.check_voice(chosen.voice, field)
            field = "update_settings.settings.tools"
            manner = self._talk.manner_of(chosen)
        except StatusError as error:
            raise RefusedError("BAD_SETTINGS", error.message, field) from None
        await self._record.put_settings(chosen)
        answering.manner = manner
        self._talk.use(chosen)
        if manner.system_text != self._record.system_text:
            self._record.system_text = manner.system_text
            await self._reread(answering)
        await self._responses.settings_updated(chosen, request_id=request.message.request_id)

    async def _commit(self, request: Request, answering: Answering) -> None:
        length_ms = milliseconds(request.position - self._talk.floor.input_start)
        if length_ms < _LEAST_INPUT_MS:
            raise RefusedError(
                "NO_INPUT",
                f"{max(0.0, length_ms):.0f} ms of audio came since the last turn; at least "
                f"{_LEAST_INPUT_MS:.0f} ms are needed",
            )
        self._check_room()
        if answering.current is not None:
            if self._talk.chosen.turn_detection.interruptible:
                await answering.stop("the user's turn was ended")
                await self._talk.stop_listening_over_answer()
                self._talk.floor.assistant_ends()
            elif self._talk.aligned:
                raise RefusedError(
                    "ANSWERING", "an answer is given, and the LLM cannot listen meanwhile"
                )
        input_start = self._talk.floor.input_start
        event = self._talk.floor.commit(request.position)
        turn = await self._talk.open_turn(event.start, answering)
        assert turn is not None, "no turn is being written down while a request is carried out"
        turn.latest = request.position
        if not self._talk.aligned:
            turn.earliest = input_start
        await self._talk.end_turn(event, answering, request)

    async def _clear(self, request: Request, answering: Answering) -> None:
        self._talk.floor.clear(request.position)
        await self._talk.drop_turn(answering)
        if answering.current is not None:
            await self._talk.stop_listening_over_answer()
        elif self._talk.floor.state is FloorState.USER:
            await self._talk.open_turn(request.position, answering)
        await self._responses.event(
            TurnEventKind.TURN_EVENT_KIND_INPUT_CLEARED,
            position=request.position,
            request_id=request.message.request_id,
        )

    async def _create(self, request: Request, answering: Answering) -> None:
        wishes = requests.wishes(request.message.create_response, self._talk.chosen)
        if answering.current is not None:
            if self._must_wait(request, answering):
                self.waiting.append(request)
                return
            raise RefusedError("ANSWERING", "an answer is given; interrupt it, or wait for its end")
        self._check_room()
        await self._talk.drop_turn(answering)
        if answering.unheard is not None:
            await self._reread(answering)
        last = self._record.turns[-1] if self._record.turns else None
        if last is not None and last.waits:
            # A stream that goes on with the session after this one was lost gives the answer.
            await self._record.put(replace(last, waits=False, wishes=wishes.to_json()))
        self._talk.floor.assistant_starts()
        waterfall = Waterfall(request.arrived)
        answering.begin_to_history(waterfall, wishes, request_id=request.message.request_id)

    async def _add_turn(self, request: Request, answering: Answering) -> None:
        self._check_room()
        turn = requests.added_turn(request.message.add_turn, self._record.next_index)
        if turn.call_id and self._record.has_call(turn.call_id):
            field = "add_turn.tool_call.call_id"
            raise RefusedError("BAD_REQUEST", f"{field} is that of another call", field)
        await self._add(turn, request, answering)

    async def _add_result(self, request: Request, answering: Answering) -> None:
        result = request.message.tool_result
        output = requests.text(result.output, "tool_result.output", may_be_empty=True)
        self._check_room()
        call = self._record.call_without_result(result.call_id)
        if call is None:
            raise RefusedError(
                "NO_CALL",
                f"the history has no call {result.call_id[:64]!r} that waits for its result",
                "tool_result.call_id",
            )
        turn = StoredTurn(
            self._record.next_index,
            "tool",
            output,
            started=time.time(),
            call_id=call.call_id,
            call_name=call.call_name,
            utterance_id=call.utterance_id,
            waits=True,
        )
        await self._add(turn, request, answering)

    async def _add(self, turn: StoredTurn, request: Request, answering: Answering) -> None:
        await self._record.put(turn)
        if self._talk.turn is None and answering.unheard is None:
            answering.read_on(turn)
            if answering.current is None:
                self._talk.read_soon()
        else:
            await self._reread(answering)
        await self._responses.turn_added(turn, request_id=request.message.request_id)

    async def _delete(self, request: Request, answering: Answering) -> None:
        index = request.message.delete_turn.turn_index
        turn = self._record.find(index)
        answer = answering.current
        if answer is not None and answer.concerns(index):
            raise RefusedError("ANSWERING", f"turn {index} is being answered, or the answer")
        if turn is None:
            raise RefusedError(
                "NO_TURN", f"the history has no turn {index}", "delete_turn.turn_index"
            )
        await self._record.drop(turn)
        await self._reread(answering)
        await self._responses.turn_deleted(index, request_id=request.message.request_id)

    async def _reread(self, answering: Answering) -> None:
        await answering.reread(self._talk.turn)
        if answering.current is None:
            self._talk.read_soon()

    def _check_room(self) -> None:
        limit = self._max_turns
        if len(self._record) >= limit:
            raise RefusedError(
                "TOO_MANY", f"the session has {len(self._record)} turns; the limit is {limit}"
            )
