"""How a session behaves, as the store keeps it: the contract's SessionSettings, checked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from minmo.v1.conversation_pb2 import ToolChoice as ToolChoiceProto
from minmo.v1.conversation_pb2 import TurnDetection as TurnDetectionProto

SILENCE_MS = (200, 5000)
"""Shortest and longest silence that may end a turn."""


@dataclass(frozen=True)
class TurnDetection:
    """Who decides that a turn of the user has ended; the contract says what the fields mean."""

    kind: int = TurnDetectionProto.KIND_UNSPECIFIED
    wait_for_create_response: bool = False
    keep_talking: bool = False
    eagerness: float = 0.0

    @property
    def by_client(self) -> bool:
        """Whether the client ends the turns."""
        return self.kind == TurnDetectionProto.KIND_CLIENT

    @property
    def by_silence(self) -> bool:
        """Whether a silence ends them, also where there is a full-duplex predictor."""
        return self.kind == TurnDetectionProto.KIND_SILENCE

    @property
    def by_predictor(self) -> bool:
        """Whether the full-duplex predictor is asked for, with an eagerness."""
        return self.kind == TurnDetectionProto.KIND_SEMANTIC

    @property
    def waits(self) -> bool:
        """Whether a turn that has ended is not answered until the client asks for it."""
        return self.by_client or self.wait_for_create_response

    @property
    def interruptible(self) -> bool:
        """Whether the user's speech stops an answer."""
        return not (self.by_client or self.keep_talking)

    def silence_ms(self, default_ms: int) -> int:
        """The silence that ends a turn where silence decides.

        Eagerness scales it: 0.5 leaves it as it is, 1 halves it, and near 0 it doubles.
        """
        if not (self.by_predictor and self.eagerness):
            return default_ms
        low, high = SILENCE_MS
        return min(max(round(default_ms * 2 ** (1 - 2 * self.eagerness)), low), high)


@dataclass(frozen=True)
class Tool:
    """What the assistant may call; `parameters_json` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters_json: str = ""


@dataclass(frozen=True)
class ToolChoice:
    """Whether an answer may, or must, call a tool."""

    kind: int = ToolChoiceProto.KIND_UNSPECIFIED
    name: str = ""

    @property
    def forbids(self) -> bool:
        """Whether it must not."""
        return self.kind == ToolChoiceProto.KIND_NONE

    @property
    def forces(self) -> bool:
        """Whether it must."""
        return self.kind in (ToolChoiceProto.KIND_REQUIRED, ToolChoiceProto.KIND_NAMED)


@dataclass(frozen=True)
class Settings:
    """How a session behaves; 0 and empty mean the server's default."""

    system_prompt: str
    voice: str = ""
    instruct: str = ""
    max_answer_tokens: int = 0
    end_of_turn_silence_ms: int = 0
    temperature: float = 0.0
    seed: int = 0
    turn_detection: TurnDetection = field(default_factory=TurnDetection)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    text_only: bool = False

    def to_json(self) -> str:
        """What the store keeps."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, stored: str | bytes) -> Settings:
        """What the store kept, also before there were some of the fields."""
        values: dict[str, Any] = json.loads(stored)
        return cls(
            **{
                **values,
                "turn_detection": TurnDetection(**values.get("turn_detection", {})),
                "tools": tuple(Tool(**tool) for tool in values.get("tools", ())),
                "tool_choice": ToolChoice(**values.get("tool_choice", {})),
            }
        )
