"""The client without ``async``: the same conversation, called from any thread.

What each function and method does and raises stands in the module that it is named after here:
`minmo.client.conversation`, `talk`, `speech`, `sessions`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from minmo.client import conversation, sessions, speech, talk
from minmo.client.events import Event
from minmo.client.loop_thread import shared

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _blocking(
    function: Callable[Arguments, Coroutine[Any, Any, Result]],
) -> Callable[Arguments, Result]:
    """The same function, called from a thread that waits for it."""

    @wraps(function)
    def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        shared.acquire()
        try:
            return shared.run(function(*arguments, **named))
        finally:
            shared.release()

    return call


def _opening(
    made: Callable[Arguments, conversation.Conversation],
) -> Callable[
    [Callable[[Conversation, conversation.Conversation], None]],
    Callable[Concatenate[Conversation, Arguments], None],
]:
    """Makes an ``__init__`` that takes what the conversation inside takes."""

    def decorate(
        init: Callable[[Conversation, conversation.Conversation], None],
    ) -> Callable[Concatenate[Conversation, Arguments], None]:
        def construct(
            self: Conversation, /, *arguments: Arguments.args, **named: Arguments.kwargs
        ) -> None:
            init(self, made(*arguments, **named))

        return construct

    return decorate


def _waiting(
    method: Callable[
        Concatenate[conversation.Conversation, Arguments], Coroutine[Any, Any, Result]
    ],
) -> Callable[Concatenate[Conversation, Arguments], Result]:
    """The same method, called from a thread that waits for it."""

    @wraps(method)
    def call(
        self: Conversation, /, *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Result:
        return shared.run(method(self._conversation, *arguments, **named))

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

    @_opening(conversation.Conversation)
    def __init__(self, inside: conversation.Conversation) -> None:
        self._conversation = inside

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

    receive = _waiting(conversation.Conversation.receive)
    ask = _waiting(talk.ask)
    send_audio = _waiting(conversation.Conversation.send_audio)
    finish = _waiting(conversation.Conversation.finish)
    send_text = _waiting(conversation.Conversation.send_text)
    interrupt = _waiting(conversation.Conversation.interrupt)
    update_settings = _waiting(conversation.Conversation.update_settings)
    commit_input = _waiting(conversation.Conversation.commit_input)
    clear_input = _waiting(conversation.Conversation.clear_input)
    create_response = _waiting(conversation.Conversation.create_response)
    add_turn = _waiting(conversation.Conversation.add_turn)
    delete_turn = _waiting(conversation.Conversation.delete_turn)
    tool_result = _waiting(conversation.Conversation.tool_result)
