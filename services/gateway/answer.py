"""A response of the protocol: the events from its beginning to its end, in their order."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any, Literal

from services.gateway.codecs import Encoder, encoder_of
from services.gateway.items import Item, Items
from services.gateway.session import SessionConfig

Event = dict[str, Any]
Status = Literal["completed", "cancelled", "failed", "incomplete"]

CONVERSATION_ID = "conv_minmo"
AUDIO_TOKEN_MS = 50
"""Length of assistant audio that is counted as a token."""


class Answer:
    """An answer that is under way.

    Args:
        response_id: names it to the client.
        config: settings in force.
        items: of the conversation; the answer's are added.
        metadata: of the client, to be sent back.
        text_only: whether it is written.
        max_tokens: limit that the client set; 0 is none.
        request_id: of the request that it answers; empty for none.
    """

    def __init__(
        self,
        response_id: str,
        config: SessionConfig,
        items: Items,
        *,
        metadata: Mapping[str, str] | None = None,
        text_only: bool = False,
        max_tokens: int = 0,
        request_id: str = "",
    ) -> None:
        self.response_id = response_id
        self.request_id = request_id
        self.utterance_id = ""
        self.turn = 0
        """Number that the turn probably gets, for the names of its items."""
        self.cancelled_by_client = False
        self.read_count = 0
        self.token_count = 0
        self._config = config
        self._items = items
        self._metadata = metadata
        self._text_only = text_only
        self._max_tokens = max_tokens
        self._output: list[Item] = []
        self._message: Item | None = None
        self._encoder: Encoder | None = None
        self._index = 0
        self._sent_samples = 0

    def is_of(self, utterance_id: str, request_id: str) -> bool:
        """Whether it is, or may become, the response of an utterance that a request led to."""
        if self.utterance_id:
            return self.utterance_id == utterance_id
        return self.request_id == request_id

    # --- beginning

    def created(self) -> list[Event]:
        """The response begins."""
        return [{"type": "response.created", "response": self._object("in_progress")}]

    # --- what is in it

    def say(self, text: str, token_index: int) -> list[Event]:
        """More text."""
        events = self._open_message()
        message = self._open
        message.text = (message.text or "") + text
        self.token_count = max(self.token_count, token_index + 1)
        kind = "output_text" if self._text_only else "output_audio_transcript"
        return [*events, self._part(f"response.{kind}.delta", delta=text)]

    def sound(self, pcm: bytes) -> list[Event]:
        """More audio, as 16-bit PCM at the rate of the output format."""
        if not pcm or self._text_only:
            return []
        events = self._open_message()
        self._sent_samples += len(pcm) // 2
        return [*events, *self._encoded(pcm)]

    def call(self, turn: int, call_id: str, name: str, arguments: str) -> list[Event]:
        """The call of a tool."""
        events = self._close_message("completed", whole=True)
        item = Item(
            self._items.new_id(turn),
            "function_call",
            status="in_progress",
            text="",
            turn=turn,
            utterance_id=self.utterance_id,
            call_id=call_id,
            name=name,
        )
        events += self._add(item)
        item.text, item.status = arguments, "completed"
        place = {"item_id": item.item_id, "output_index": self._index, "call_id": call_id}
        events += [
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event(
                "response.function_call_arguments.done", **place, name=name, arguments=arguments
            ),
            *self._item_done(item),
        ]
        return events

    # --- end

    def done(
        self, status: Status, *, reason: str = "", error: Mapping[str, str] | None = None
    ) -> list[Event]:
        """The response ends.

        Args:
            status: how.
            reason: ``turn_detected`` or ``client_cancelled``, of one that was cancelled.
            error: type, code and message, of one that failed.
        """
        whole = status == "completed"
        if whole and 0 < self._max_tokens <= self.token_count:
            status, reason = "incomplete", "max_output_tokens"
        closed: Literal["completed", "incomplete"] = (
            "completed" if status == "completed" else "incomplete"
        )
        events = self._close_message(closed, whole=whole)
        details: dict[str, Any] | None = None
        if status != "completed":
            details = {"type": status}
            if reason:
                details["reason"] = reason
            if error is not None:
                details["error"] = dict(error)
        response = self._object(status) | {"status_details": details, "usage": self._usage()}
        return [*events, {"type": "response.done", "response": response}]

    # --- parts

    @property
    def _open(self) -> Item:
        assert self._message is not None, "the message has been opened"
        return self._message

    def _open_message(self) -> list[Event]:
        if self._message is not None:
            return []
        item = Item(
            self._items.new_id(self.turn),
            role="assistant",
            content="output_text" if self._text_only else "output_audio",
            status="in_progress",
            utterance_id=self.utterance_id,
        )
        events = self._add(item)
        self._message = item
        self._encoder = None if self._text_only else encoder_of(self._config.output_format)
        return [*events, self._part("response.content_part.added", part=self._part_object())]

    def _close_message(
        self, status: Literal["completed", "incomplete"], *, whole: bool
    ) -> list[Event]:
        """Ends the message, if there is one; `whole` if all of its audio has come."""
        item = self._message
        if item is None:
            return []
        rest = self._encoded(b"", last=True) if whole else []
        text = item.text or ""
        item.text, item.status = text, status
        if self._text_only:
            events = [self._part("response.output_text.done", text=text)]
        else:
            events = [
                *rest,
                self._part("response.output_audio.done"),
                self._part("response.output_audio_transcript.done", transcript=text),
            ]
        events.append(self._part("response.content_part.done", part=self._part_object()))
        events += self._item_done(item)
        self._message = None
        return events

    def _encoded(self, pcm: bytes, *, last: bool = False) -> list[Event]:
        """The message's next audio in the client's format."""
        if self._encoder is None:
            return []
        data = self._encoder.encode(pcm, last=last)
        self._open.audio_ms = self._encoder.samples * 1000 // self._config.output_rate_hz
        if not data:
            return []
        delta = base64.b64encode(data).decode("ascii")
        return [self._part("response.output_audio.delta", delta=delta)]

    def _add(self, item: Item) -> list[Event]:
        before = self._items.add(item)
        self._index = len(self._output)
        self._output.append(item)
        made = item.to_object()
        return [
            self._event("response.output_item.added", output_index=self._index, item=made),
            {"type": "conversation.item.added", "previous_item_id": before, "item": made},
        ]

    def _item_done(self, item: Item) -> list[Event]:
        made = item.to_object()
        done = [self._event("response.output_item.done", output_index=self._index, item=made)]
        if self._items.get(item.item_id) is None:
            return done  # the client has deleted it meanwhile
        before = self._items.before(item.item_id)
        event = {"type": "conversation.item.done", "previous_item_id": before, "item": made}
        return [event, *done]

    def _part_object(self) -> dict[str, Any]:
        text = self._open.text or ""
        if self._text_only:
            return {"type": "text", "text": text}
        return {"type": "audio", "transcript": text}

    def _part(self, kind: str, **fields: Any) -> Event:
        place = {
            "item_id": self._open.item_id,
            "output_index": self._index,
            "content_index": 0,
        }
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "response_id": self.response_id, **fields}

    def _object(self, status: str) -> dict[str, Any]:
        return {
            "object": "realtime.response",
            "id": self.response_id,
            "status": status,
            "status_details": None,
            "output": [item.to_object() for item in self._output],
            "conversation_id": CONVERSATION_ID,
            "output_modalities": ["text"] if self._text_only else ["audio"],
            "max_output_tokens": self._max_tokens or "inf",
            "audio": {"output": self._config.output_object},
            "metadata": None if self._metadata is None else dict(self._metadata),
            "usage": None,
        }

    def _usage(self) -> dict[str, Any]:
        audio_ms = self._sent_samples * 1000 / self._config.output_rate_hz
        audio_tokens = math.ceil(audio_ms / AUDIO_TOKEN_MS)
        written = self.token_count + audio_tokens
        return {
            "total_tokens": self.read_count + written,
            "input_tokens": self.read_count,
            "output_tokens": written,
            "input_token_details": {
                "text_tokens": self.read_count,
                "audio_tokens": 0,
                "image_tokens": 0,
                "cached_tokens": 0,
                "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
            },
            "output_token_details": {
                "text_tokens": self.token_count,
                "audio_tokens": audio_tokens,
            },
        }
