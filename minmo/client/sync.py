"""The client without ``async``: the same conversation, called from any thread.

What each function and method does and raises stands in the module that it is named after here:
`minmo.client.conversation`, `talk`, `speech`, `sessions`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from minmo.audio.pcm import Samples
from minmo.client import conversation, sessions, speech, talk
from minmo.client.codecs import Codec
from minmo.client.commands import AddedRole
from minmo.client.events import Event
from minmo.client.loop_thread import shared
from minmo.client.recording import Recording
from minmo.client.talk import TalkTurn
from minmo.client.target import Target
from minmo.v1.conversation_pb2 import SessionSettings, ToolChoice

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _blocking(
    function: Callable[Arguments, Coroutine[Any, Any, Result]],
) -> Callable[Arguments, Result]:
    def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        shared.acquire()
        try:
            return shared.run(function(*arguments, **named))
        finally:
            shared.release()

    call.__doc__ = function.__doc__
    return call


say = _blocking(speech.say)
transcribe = _blocking(speech.transcribe)
list_sessions = _blocking(sessions.list_sessions)
get_session = _blocking(sessions.get_session)
delete_session = _blocking(sessions.delete_session)


class Conversation:
    """Talks in one session, over as many connections as it takes::

        with Conversation(target, input_rate_hz=16_000) as conversation:
            conversation.send_audio(samples)  # from this thread or another
            for event in conversation: ...

    The iteration waits for the next event; Ctrl-C ends it, and leaving ``with`` the conversation.
    Each event goes to one of the threads that iterate. Arguments, errors and methods are those of
    `minmo.client.Conversation`.
    """

    def __init__(
        self,
        target: Target,
        *,
        input_rate_hz: int,
        output_rate_hz: int = 24_000,
        codec: Codec = "pcm",
        session_id: str = "",
        settings: SessionSettings | None = None,
        take_over: bool = False,
        reconnect_seconds: float = 30.0,
        speed: float = 1.0,
    ) -> None:
        self._conversation = conversation.Conversation(
            target,
            input_rate_hz=input_rate_hz,
            output_rate_hz=output_rate_hz,
            codec=codec,
            session_id=session_id,
            settings=settings,
            take_over=take_over,
            reconnect_seconds=reconnect_seconds,
            speed=speed,
        )

    def __enter__(self) -> Self:
        """Connects. Raises StatusError: the server is not there or refuses."""
        shared.acquire()
        try:
            shared.run(self._conversation.__aenter__())
        except BaseException:
            shared.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            shared.run(self._conversation.__aexit__(kind, error, traceback))
        finally:
            shared.release()

    def __iter__(self) -> Iterator[Event]:
        """The events. The iteration ends after `finish`, or raises StatusError."""
        while (event := self.receive()) is not None:
            yield event

    @property
    def session_id(self) -> str:
        """The session that is talked in."""
        return self._conversation.session_id

    @property
    def mode(self) -> str:
        """The server's mode, "cascade" or "aligned"."""
        return self._conversation.mode

    @property
    def connected(self) -> bool:
        """Whether there is a stream to the server now."""
        return self._conversation.connected

    @property
    def dropped_samples(self) -> int:
        """Samples that were to be sent while there was no server."""
        return self._conversation.dropped_samples

    def receive(self, timeout_seconds: float | None = None) -> Event | None:
        """The next event; None after the last. Raises TimeoutError, StatusError."""
        return shared.run(self._conversation.receive(timeout_seconds))

    def ask(
        self,
        recording: Recording,
        *,
        speed: float = 1.0,
        deadline_seconds: float = 30.0,
        listener: Callable[[Event], None] = lambda _: None,
    ) -> list[TalkTurn]:
        """Plays a recording into the conversation until it is answered: `minmo.client.ask`.

        The listener is called on the client's thread, where it must not wait.
        """
        return shared.run(
            talk.ask(
                self._conversation,
                recording,
                speed=speed,
                deadline_seconds=deadline_seconds,
                listener=listener,
            )
        )

    def send_audio(self, samples: Samples) -> None:
        """Sends audio of the microphone, float32 [samples]; drops it while there is no server."""
        shared.run(self._conversation.send_audio(samples))

    def finish(self) -> None:
        """Says that no more comes: the open turn is answered, then the events end."""
        shared.run(self._conversation.finish())

    def send_text(self, text: str) -> str:
        """Sends what the user types; returns the request's id, as all of the following do."""
        return shared.run(self._conversation.send_text(text))

    def interrupt(self) -> str:
        """Tells that the user pressed stop: the assistant falls silent."""
        return shared.run(self._conversation.interrupt())

    def update_settings(self, settings: SessionSettings) -> str:
        """Has the session behave otherwise from the next turn on."""
        return shared.run(self._conversation.update_settings(settings))

    def commit_input(self) -> str:
        """Ends the user's turn with the audio sent so far."""
        return shared.run(self._conversation.commit_input())

    def clear_input(self) -> str:
        """Has the server forget the audio since the last turn."""
        return shared.run(self._conversation.clear_input())

    def create_response(
        self,
        *,
        instructions: str = "",
        max_answer_tokens: int = 0,
        tool_choice: ToolChoice | None = None,
        text_only: bool = False,
    ) -> str:
        """Asks for an answer to the history as it stands."""
        return shared.run(
            self._conversation.create_response(
                instructions=instructions,
                max_answer_tokens=max_answer_tokens,
                tool_choice=tool_choice,
                text_only=text_only,
            )
        )

    def add_turn(self, role: AddedRole, text: str) -> str:
        """Adds a turn to the history that nobody spoke."""
        return shared.run(self._conversation.add_turn(role, text))

    def delete_turn(self, turn_index: int) -> str:
        """Removes a turn from the history."""
        return shared.run(self._conversation.delete_turn(turn_index))

    def tool_result(self, call_id: str, output: str) -> str:
        """Tells what a tool returned."""
        return shared.run(self._conversation.tool_result(call_id, output))
