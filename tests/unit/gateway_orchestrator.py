"""An orchestrator that does what the contract says, step by step, for a gateway's connection."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from minmo.v1.conversation_pb2 import ConverseRequest, Refused
from services.gateway.errors import EventError
from tests.unit.gateway_states import READY, Dialogue

WORDS = ("One", " two", " three")


@dataclass
class Answer:
    """An answer; its stages: ``words`` (of its question), ``thinking``, ``speaking``, ``sent``."""

    request_id: str
    stage: str
    utterance: str = ""
    tokens: int = 0
    sounds: int = 0


class Orchestrator:
    """What a user, a client and the models do is asked for by name, out of what is possible.

    Attributes:
        told: of each utterance that was heard to its end, its text.
        answered: turns that must have a response, whatever becomes of it.
        unfinished: turns that may go on, as they were stopped before their words were known.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.told: dict[str, str] = {}
        self.answered = 0
        self.unfinished = 0
        self._answer: Answer | None = None
        self._waiting: deque[str] = deque()
        self._inbox: deque[ConverseRequest] = deque()
        self._speaking = False
        self._turn_open = False
        self._turn = 0
        self._utterances = 0
        self._position = 0

    @property
    def possible(self) -> list[str]:
        """What can happen now."""
        answer = self._answer
        stage = "" if answer is None else answer.stage
        begun = answer is not None and answer.tokens > 0
        whole = answer is not None and answer.tokens == len(WORDS)
        over = self._speaking and stage != ""
        conditions = {
            "serve": bool(self._inbox),
            "speak": not self._speaking,
            "hush": self._speaking,
            "barge_in": over,
            "end_turn": self._turn_open and not self._speaking and not stage,
            "words": stage == "words",
            "nothing": stage == "words",
            "fail": stage in ("words", "thinking", "speaking"),
            "token": stage in ("thinking", "speaking") and not whole,
            "sound": stage in ("thinking", "speaking") and begun,
            "final": stage in ("thinking", "speaking") and whole,
            "heard": stage == "sent",
        }
        happens = [name for name, can in conditions.items() if can]
        return [*happens, "create", "cancel", "commit", "truncate", "lose"]

    def do(self, action: str) -> None:
        """Something happens that is possible."""
        self._position += 100
        getattr(self, f"_{action}")()
        self._inbox += self.dialogue.requests
        self.dialogue.requests.clear()

    def settle(self) -> None:
        """All that is under way comes to its end, and the user is silent."""
        order = ("serve", "hush", "end_turn", "words", "final", "token", "heard")
        for _ in range(200):
            ways = [action for action in order if action in self.possible]
            if not ways:
                break
            self.do(ways[0])
            self.dialogue.play(0.5)
        self.dialogue.play(10)

    # --- the client

    def _create(self) -> None:
        self._asks("response.create", response={"metadata": {"asked": "yes"}})

    def _lose(self) -> None:
        """The stream is lost, and what it said; another goes on with the session."""
        if self._answer is not None and self._answer.stage == "words":
            self.answered += self.dialogue.state.answer is None
        self.dialogue.events += self.dialogue.from_server.lost()
        self._answer, self._turn_open, self._speaking = None, False, False
        self._inbox.clear()
        self._waiting.clear()
        self.dialogue.server(ready=READY)

    def _cancel(self) -> None:
        self._asks("response.cancel")

    def _commit(self) -> None:
        self._asks("input_audio_buffer.commit")

    def _truncate(self) -> None:
        item = self.dialogue.state.items.last_id or "none"
        self._asks("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=0)

    def _asks(self, kind: str, **fields: object) -> None:
        try:
            self.dialogue.client(kind, **fields)
        except EventError:
            return

    # --- the user

    def _speak(self) -> None:
        self._speaking = True
        self._turn_open = self._turn_open or self._answer is None
        self.dialogue.happens("user_speech_started", self._position)

    def _hush(self) -> None:
        self._speaking = False
        self.dialogue.happens("user_speech_stopped", self._position)

    def _barge_in(self) -> None:
        self._give_up_waiting()
        self._stop()
        self._turn_open = True

    def _end_turn(self) -> None:
        self._turn_open = False
        self.dialogue.happens("user_turn_ended", self._position)
        self._answer = Answer("", "words")

    # --- the models

    @property
    def _current(self) -> Answer:
        assert self._answer is not None
        return self._answer

    def _words(self) -> None:
        self.dialogue.user_says("What?", self._turn, request_id=self._current.request_id)
        self._turn += 1
        self.answered += 1
        self._current.stage = "thinking"

    def _nothing(self) -> None:
        self.dialogue.happens("nothing_said", request_id=self._current.request_id)
        self._over()

    def _fail(self) -> None:
        answer = self._current
        # One that was asked for and is on its way will do.
        self.answered += answer.stage == "words" and self.dialogue.state.answer is None
        self.dialogue.report("failed", answer.utterance, answer.request_id, detail="lost")
        self._over()

    def _token(self) -> None:
        answer = self._current
        if not answer.utterance:
            self._utterances += 1
            answer.utterance = f"u{self._utterances}"
        self.dialogue.assistant_says(
            WORDS[answer.tokens],
            utterance=answer.utterance,
            first=answer.tokens,
            request_id=answer.request_id,
        )
        answer.tokens += 1

    def _sound(self, *, final: bool = False) -> None:
        answer = self._current
        self.dialogue.sound(
            first=answer.sounds * 24_000,
            utterance=answer.utterance,
            final=final,
            request_id=answer.request_id,
        )
        answer.sounds += 1
        answer.stage = "sent" if final else "speaking"

    def _final(self) -> None:
        self._sound(final=True)

    def _heard(self) -> None:
        answer, text = self._current, "".join(WORDS)
        self.told[answer.utterance] = text
        self.dialogue.report(
            "completed",
            answer.utterance,
            answer.request_id,
            heard_text=text,
            assistant_turn_index=self._turn,
        )
        self._turn += 1
        self._over()

    # --- requests

    def _serve(self) -> None:
        request = self._inbox.popleft()
        match request.WhichOneof("message"):
            case "create_response":
                self._asked(request.request_id)
            case "interrupt":
                self._give_up_waiting()
                self._stop()
            case "commit_input":
                self._committed(request.request_id)

    def _asked(self, request_id: str) -> None:
        if self._answer is None:
            self._turn_open = False
            self._answer = Answer(request_id, "thinking")
        elif self._answer.stage == "sent":
            self._waiting.append(request_id)
        else:
            self._refuse(request_id, "ANSWERING")

    def _committed(self, request_id: str) -> None:
        if not self._turn_open and not self._speaking:
            self._refuse(request_id, "NO_INPUT")
            return
        self._stop()
        self._turn_open = False
        self.dialogue.happens("user_turn_ended", self._position, request_id)
        self._answer = Answer(request_id, "words")

    def _refuse(self, request_id: str, reason: str) -> None:
        self.dialogue.server(request_id, refused=Refused(reason=reason, message="no"))

    def _give_up_waiting(self) -> None:
        while self._waiting:
            self._refuse(self._waiting.popleft(), "INTERRUPTED")

    def _stop(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        self.unfinished += answer.stage == "words"
        if answer.sounds:
            self.dialogue.stop(answer.utterance)
        if answer.utterance or answer.request_id:
            self.dialogue.report("interrupted", answer.utterance, answer.request_id)
        self.dialogue.happens(
            "interrupted", self._position, answer.request_id, utterance_id=answer.utterance
        )

    def _over(self) -> None:
        self._answer = None
        self._turn_open = self._turn_open or self._speaking
        if self._waiting:
            self._asked(self._waiting.popleft())
