"""From the text of a message to a checked event, or to an error that the client understands."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from services.gateway import client_events as events
from services.gateway.errors import EventError

# An honest large event is one long string; one of many small values would keep the process busy.
_LARGE_BYTES = 256 * 1024
_MAX_VALUES_OF_LARGE = 20_000

EVENTS: dict[str, type[events.ClientEvent]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(events.ClientEvent)
}
"""The classes of the events, by their type."""

# Pydantic names the variant of a union within the path of a field; the client knows no such part.
_VARIANTS = frozenset(
    {
        "server_vad",
        "semantic_vad",
        "message",
        "function_call",
        "function_call_output",
        "str",
        "VoiceId",
        "NamedTool",
        "Minmo",
        "bool",
        "constrained-str",
        "constrained-int",
        "int",
        "dict[str,any]",
    }
)


def parse(text: str) -> events.ClientEvent:
    """Reads an event.

    Raises:
        EventError: it is no JSON, no known event, or has a wrong field; the first is named.
    """
    raw = _json(text)
    if not isinstance(raw, dict):
        raise EventError("invalid_json", "The event must be a JSON object.")
    given = raw.get("event_id")
    event_id = given[: events.MAX_ID_CHARACTERS] if isinstance(given, str) else None
    kind = raw.get("type")
    if kind is None:
        raise _missing("type", event_id)
    event = EVENTS.get(kind) if isinstance(kind, str) else None
    if event is None:
        supported = ", ".join(f"'{name}'" for name in EVENTS if not name.startswith("minmo."))
        raise EventError(
            "invalid_value",
            f"Invalid value: {_shown(kind)}. Supported values are: {supported}.",
            param="type",
            event_id=event_id,
        )
    try:
        return event.model_validate(raw)
    except ValidationError as error:
        raise _explained(error.errors(include_url=False)[0], event_id) from None


def audio_bytes(encoded: str, param: str) -> bytes:
    """Decodes base64. Raises `EventError`."""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise EventError(
            "invalid_value",
            f"Invalid '{param}'. Expected base64-encoded audio bytes, but got a value that is not "
            "base64.",
            param=param,
        ) from None


def _json(text: str) -> Any:
    if len(text) > _LARGE_BYTES:
        values = text.count(",") + text.count("[") + text.count("{")
        if values > _MAX_VALUES_OF_LARGE:
            raise EventError(
                "event_too_complex",
                f"The event has more than {_MAX_VALUES_OF_LARGE} values in {len(text)} characters.",
            )
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise EventError(
            "invalid_json", f"The event is not valid JSON: {_cut(str(error), 200)}."
        ) from None


def _explained(problem: ErrorDetails, event_id: str | None) -> EventError:
    param = _path(problem["loc"])
    kind = problem["type"]
    value = _shown(problem["input"])
    context = problem.get("ctx", {})
    if kind == "missing":
        return _missing(param, event_id)
    if kind == "extra_forbidden":
        code, message = "unknown_parameter", f"Unknown parameter: '{param}'."
    elif kind == "union_tag_not_found":
        return _missing(f"{param}.type", event_id)
    elif kind == "union_tag_invalid":
        param = f"{param}.type"
        code = "invalid_value"
        message = (
            f"Invalid value: {_shown(context.get('tag'))}. Supported values are: "
            f"{context.get('expected_tags')}."
        )
    elif kind == "literal_error":
        code = "invalid_value"
        message = f"Invalid value: {value}. Supported values are: {context.get('expected')}."
    elif kind in ("string_too_long", "too_long"):
        code = "string_above_max_length" if kind == "string_too_long" else "array_above_max_length"
        message = f"Invalid '{param}': too long. {problem['msg']}."
    elif kind in ("greater_than_equal", "greater_than"):
        code = "integer_below_min_value"
        message = f"Invalid '{param}': {problem['msg'].lower()}, but got {value}."
    elif kind in ("less_than_equal", "less_than"):
        code = "integer_above_max_value"
        message = f"Invalid '{param}': {problem['msg'].lower()}, but got {value}."
    elif kind.endswith(("_type", "_parsing")):
        code = "invalid_type"
        message = f"Invalid type for '{param}': {problem['msg'].lower()}, but got {value}."
    else:
        code, message = "invalid_value", f"Invalid '{param}': {problem['msg']}."
    return EventError(code, message, param=param, event_id=event_id)


def _missing(param: str, event_id: str | None) -> EventError:
    return EventError(
        "missing_required_parameter",
        f"Missing required parameter: '{param}'.",
        param=param,
        event_id=event_id,
    )


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _VARIANTS and not part.startswith(("literal[", "function-", "union[")):
            path += f".{part}" if path else _cut(part, 100)
    return path


def _shown(value: object) -> str:
    """A value as an error may repeat it: short, and never the audio."""
    if isinstance(value, str | int | float | bool | None):
        return _cut(repr(value), 80)
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list) else type(value).__name__


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
