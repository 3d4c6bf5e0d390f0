"""What callers send, checked and in the words of the model on Triton."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from minmo.engine.prompt import ChatFormat, Role, TextStream
from minmo.triton import codec
from minmo.v1 import common_pb2, llm_pb2

_MAX_ID_CHARACTERS: Final = 128
_MAX_PARTS: Final = 4096
# What a response carries besides its hidden states.
_RESPONSE_OVERHEAD_BYTES: Final = 64 * 1024
_ROLES: Final[dict[int, Role]] = {
    common_pb2.ROLE_SYSTEM: "system",
    common_pb2.ROLE_USER: "user",
    common_pb2.ROLE_ASSISTANT: "assistant",
    # ChatML has no role of its own for tools: Qwen2.5 reads what they return in the user's place.
    common_pb2.ROLE_TOOL: "user",
}


@dataclass(frozen=True)
class PromptReader:
    """Checks requests, and turns what they say into token ids.

    Attributes:
        chat: the model's chat format.
        width: of its embeddings.
        max_text_characters: of one part.
        max_message_bytes: of a response.
    """

    chat: ChatFormat
    width: int
    max_text_characters: int
    max_message_bytes: int

    def read(self, request: llm_pb2.RunRequest) -> llm_pb2.RunRequest:
        """The request as the model on Triton takes it.

        Raises:
            ValueError: it cannot be carried out; says what is wrong, and the limit.
        """
        self._check_names(request)
        if request.WhichOneof("operation") == "prefill":
            request = self._tokenised(request)
            self._check_response_size(request.prefill)
        if request.WhichOneof("operation") == "probe":
            self._check_probe(request.probe)
        codec.operation_of(request)
        return request

    def pieces(self, request: llm_pb2.RunRequest) -> Iterator[llm_pb2.TextPiece]:
        """The tokens of a prefill's parts that are text, in order, with their text."""
        written = TextStream(self.chat)
        for part in request.prefill.parts:
            for token in self.chat.text(part.text):
                yield llm_pb2.TextPiece(id=token, text=written.add(token))

    def _check_names(self, request: llm_pb2.RunRequest) -> None:
        may_be_empty = request.WhichOneof("operation") in ("cancel", "close")
        for field in ("operation_id", "session_id", "branch"):
            value = getattr(request, field)
            if not value and not (field == "branch" and may_be_empty):
                raise ValueError(f"{field} is empty; give one")
            if len(value) > _MAX_ID_CHARACTERS:
                limit = _MAX_ID_CHARACTERS
                raise ValueError(
                    f"{field} has {len(value)} characters; at most {limit} are allowed"
                )

    def _tokenised(self, request: llm_pb2.RunRequest) -> llm_pb2.RunRequest:
        prefill = request.prefill
        if len(prefill.parts) > _MAX_PARTS:
            raise ValueError(
                f"there are {len(prefill.parts)} parts; at most {_MAX_PARTS} are allowed"
            )
        made = llm_pb2.RunRequest(
            operation_id=request.operation_id,
            session_id=request.session_id,
            branch=request.branch,
            epoch=request.epoch,
        )
        made.prefill.position = prefill.position
        made.prefill.return_hidden_states = prefill.return_hidden_states
        made.prefill.return_embeddings = prefill.return_embeddings
        made.prefill.return_last = min(prefill.return_last, self._returned_limit(prefill))
        for index, part in enumerate(prefill.parts):
            field = f"parts[{index}]"
            if part.WhichOneof("part") == "embeddings":
                self._check_embeddings(f"{field}.embeddings", part.embeddings)
                made.prefill.parts.add().embeddings.CopyFrom(part.embeddings)
            else:
                made.prefill.parts.add().tokens.ids.extend(self._tokens(field, part))
        return made

    def _tokens(self, field: str, part: llm_pb2.PromptPart) -> list[int]:
        match part.WhichOneof("part"):
            case "text":
                return self._text(field, part.text)
            case "tokens":
                return list(part.tokens.ids)
            case "role_start":
                if part.role_start not in _ROLES:
                    raise ValueError(f"{field}.role_start is {part.role_start}; it must be a role")
                return self.chat.role_start(_ROLES[part.role_start])
            case "turn_end":
                return self.chat.turn_end()
            case "interruption":
                return self.chat.interruption()
        raise ValueError(f"{field} is empty; set one of its fields")

    def _text(self, field: str, text: str) -> list[int]:
        if len(text) > self.max_text_characters:
            raise ValueError(
                f"{field}.text has {len(text)} characters; at most {self.max_text_characters} are "
                "allowed"
            )
        return self.chat.text(text)

    def _check_probe(self, probe: llm_pb2.Probe) -> None:
        if probe.embedding.rows != 1:
            raise ValueError(f"probe.embedding has {probe.embedding.rows} rows; it must have 1")
        self._check_embeddings("probe.embedding", probe.embedding)

    def _check_embeddings(self, field: str, embeddings: common_pb2.FloatMatrix) -> None:
        matrix = codec.matrix_of(field, embeddings)
        if embeddings.columns != self.width:
            raise ValueError(
                f"{field} has {embeddings.columns} columns; the model's width is {self.width}"
            )
        if not np.isfinite(matrix).all():
            row = int(np.argmin(np.isfinite(matrix).all(axis=1)))
            raise ValueError(f"{field} has NaN or infinity in row {row}; send finite numbers")

    def _check_response_size(self, prefill: llm_pb2.Prefill) -> None:
        if prefill.return_last or not (prefill.return_hidden_states or prefill.return_embeddings):
            return
        rows = sum(len(part.tokens.ids) + part.embeddings.rows for part in prefill.parts)
        limit = self._returned_limit(prefill)
        if rows > limit:
            raise ValueError(
                f"the hidden states of {rows} positions do not fit a message; ask for those of at "
                f"most {limit} at a time"
            )

    def _returned_limit(self, prefill: llm_pb2.Prefill) -> int:
        """Positions whose hidden states and embeddings fit a response."""
        matrices = max(1, prefill.return_hidden_states + prefill.return_embeddings)
        room = self.max_message_bytes - _RESPONSE_OVERHEAD_BYTES
        return max(1, room // (4 * self.width * matrices))
