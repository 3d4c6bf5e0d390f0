"""How answers are made, and who decides on turns: a session's settings, defaults filled in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

from minmo.model.operating_points import OperatingPoint
from minmo.rpc.errors import invalid_argument
from minmo.settings import OrchestratorSettings
from services.orchestrator import history, tool_format
from services.orchestrator.duplex_turn_taking import DuplexTurnTaking
from services.orchestrator.mind import Sampling
from services.orchestrator.session_settings import Settings, Tool, ToolChoice
from services.orchestrator.turn_taking import ClientTurnTaking, SilenceTurnTaking, TurnTaking
from services.orchestrator.utterance import Voice

FULL: Final = 0.7
"""Share of the LLM's cache from which the history is cut."""


@dataclass(frozen=True)
class Manner:
    """How answers are made.

    Attributes:
        aligned: the LLM reads speech embeddings.
        context_length: positions that the LLM's cache holds.
        max_tokens: longest answer.
        sampling: how tokens are chosen.
        voice: how to speak.
        reports_playback: whether the client tells how far it has played.
        embed_seconds: longest wait for the last embeddings of a turn.
        system_prompt: who the assistant is.
        tools: what it may call.
        tool_choice: whether it may, or must.
        text_only: answers are written, not spoken.
    """

    aligned: bool
    context_length: int
    max_tokens: int
    sampling: Sampling
    voice: Voice
    reports_playback: bool
    embed_seconds: float
    system_prompt: str = ""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    text_only: bool = False

    @property
    def system_text(self) -> str:
        """What the LLM reads first."""
        return tool_format.system_text(
            self.system_prompt, () if self.tool_choice.forbids else self.tools
        )

    @property
    def prompt_limit(self) -> int:
        """Positions that the history may take when the LLM reads it anew."""
        return int(FULL * self.context_length) - self.max_tokens


@dataclass(frozen=True)
class Wishes:
    """How one answer is to differ from the others; what is unset is as always.

    Attributes:
        instructions: in the place of the system prompt.
        max_tokens: longest answer.
        tool_choice: whether it may, or must, call a tool.
        text_only: it is written, not spoken.
    """

    instructions: str = ""
    max_tokens: int = 0
    tool_choice: ToolChoice | None = None
    text_only: bool = False

    def to_json(self) -> str:
        """What the store keeps; empty if nothing is wished."""
        return "" if self == Wishes() else json.dumps(asdict(self))

    @classmethod
    def from_json(cls, stored: str) -> Self:
        """What the store kept."""
        values: dict[str, Any] = json.loads(stored) if stored else {}
        choice = values.pop("tool_choice", None)
        return cls(**values, tool_choice=None if choice is None else ToolChoice(**choice))

    def applied_to(self, manner: Manner) -> Manner:
        """How this answer is made."""
        return replace(
            manner,
            system_prompt=self.instructions or manner.system_prompt,
            max_tokens=self.max_tokens or manner.max_tokens,
            tool_choice=self.tool_choice or manner.tool_choice,
            text_only=self.text_only or manner.text_only,
        )


def manner_of(
    chosen: Settings,
    defaults: OrchestratorSettings,
    *,
    context_length: int,
    voice: Voice,
    reports_playback: bool,
) -> Manner:
    """How answers are made.

    Args:
        chosen: the session's settings.
        defaults: the orchestrator's.
        context_length: positions that the LLM's cache holds.
        voice: how to speak.
        reports_playback: whether the client tells how far it has played.

    Raises:
        StatusError: INVALID_ARGUMENT, the tools leave no room for a conversation.
    """
    manner = Manner(
        aligned=defaults.mode == "aligned",
        context_length=context_length,
        max_tokens=chosen.max_answer_tokens or defaults.max_answer_tokens,
        sampling=Sampling(chosen.temperature, seed=chosen.seed),
        voice=voice,
        reports_playback=reports_playback,
        embed_seconds=defaults.encoder_deadline_seconds,
        system_prompt=chosen.system_prompt or defaults.system_prompt,
        tools=chosen.tools,
        tool_choice=chosen.tool_choice,
        text_only=chosen.text_only,
    )
    size = history.size_of(history.told_by_system(manner.system_text))
    if chosen.tools and size > manner.prompt_limit // 2:
        raise invalid_argument(
            "settings.tools",
            f"take about {size} tokens with the system prompt",
            limit=f"{manner.prompt_limit // 2} tokens, as the LLM reads {context_length} at once",
        )
    return manner


def turn_taking_of(
    chosen: Settings, defaults: OrchestratorSettings, points: Sequence[OperatingPoint] = ()
) -> tuple[TurnTaking, int]:
    """Who decides on turns, and the silence in milliseconds that ends one by default.

    Args:
        chosen: the session's settings.
        defaults: the orchestrator's.
        points: thresholds of the full-duplex predictor; empty where there is none.
    """
    detection = chosen.turn_detection
    silence_ms = detection.silence_ms(
        chosen.end_of_turn_silence_ms or defaults.end_of_turn_silence_ms
    )
    if detection.by_client:
        return ClientTurnTaking(), silence_ms
    barge_in_ms = defaults.barge_in_ms if detection.interruptible else None
    by_silence = SilenceTurnTaking(silence_ms, barge_in_ms)
    if not points or detection.by_silence:
        return by_silence, silence_ms
    duplex = DuplexTurnTaking.of(
        points,
        detection.eagerness if detection.by_predictor else 0.0,
        longest_silence_ms=defaults.longest_silence_ms,
        without=by_silence,
        late_ms=defaults.predictor_late_ms,
    )
    return duplex, silence_ms
