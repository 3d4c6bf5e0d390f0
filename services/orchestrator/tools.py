"""Tools: the schemas that clients send, and whether a call fits them.

Schemas come from clients and arguments from the model, so checking one against the other must not
be a way to stop the process: references to other documents are not followed, regular expressions
are not tried (`pattern` and its kin let anything pass), and the work has a bound.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

from jsonschema import Draft7Validator, Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry

from services.orchestrator.session_settings import Tool

_MAX_CHECKS: Final = 500
_WITH_EXPRESSIONS: Final = ("pattern", "patternProperties", "unevaluatedProperties")
_Check = Callable[[Validator, Any, Any, dict[str, Any]], Iterator[ValidationError] | None]


class BadCallError(ValueError):
    """A call that cannot be carried out; says why."""


def new_call_id() -> str:
    """Names a call."""
    return f"call_{uuid.uuid4().hex[:16]}"


def check_schema(parameters_json: str) -> None:
    """Checks what a client sends as the schema of a tool's arguments.

    Raises:
        ValueError: it is not the JSON schema of an object.
    """
    try:
        schema = schema_of(parameters_json)
        if not isinstance(schema, dict) or schema.get("type", "object") != "object":
            raise ValueError('is not the schema of an object: give {"type": "object", ...}')
        # The latest draft's schema of schemas takes five times as long, and asks hardly more. The
        # formats in it are expressions again.
        Draft7Validator.check_schema(schema, format_checker=FormatChecker(()))
    except SchemaError as error:
        raise ValueError(f"is not a JSON schema: {error.message[:200]}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def schema_of(parameters_json: str) -> dict[str, Any]:
    """A tool's schema; an empty text means a tool without arguments.

    Raises:
        ValueError: it is not JSON.
    """
    if not parameters_json.strip():
        return {"type": "object", "properties": {}}
    try:
        schema: dict[str, Any] = json.loads(parameters_json)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    return schema


def checked_call(call: str, tools: Sequence[Tool]) -> tuple[str, str]:
    """The tool's name and its arguments, as JSON, of a call that the model has written.

    Args:
        call: what it wrote: a JSON object with ``name`` and ``arguments``.
        tools: those that there are.

    Raises:
        BadCallError: there is no such tool, or the arguments do not fit.
    """
    try:
        parsed = json.loads(call)
    except (ValueError, RecursionError) as error:
        raise BadCallError(f"the call is not JSON: {error}") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("name"), str):
        raise BadCallError("the call has no name")
    name = parsed["name"]
    tool = next((tool for tool in tools if tool.name == name), None)
    if tool is None:
        raise BadCallError(f"there is no tool {name[:64]!r}")
    arguments = parsed.get("arguments", {})
    if not isinstance(arguments, dict):
        raise BadCallError(f"the arguments of {name} are not an object")
    _check_arguments(arguments, tool)
    return name, json.dumps(arguments, ensure_ascii=False)


def _check_arguments(arguments: dict[str, Any], tool: Tool) -> None:
    try:
        validator = _bounded_validator()(schema_of(tool.parameters_json), registry=Registry())
        error = next(iter(validator.iter_errors(arguments)), None)
    except Exception as failure:
        # A reference to nowhere, too many steps, or a keyword with a value that makes no sense.
        raise BadCallError(
            f"the arguments of {tool.name} cannot be checked: {type(failure).__name__}"
        ) from None
    if error is not None:
        raise BadCallError(
            f"the arguments of {tool.name} do not fit at {error.json_path}: {error.message[:200]}"
        )


class _TooMuchWorkError(Exception):
    """A check took too many steps."""


def _bounded_validator() -> type[Validator]:
    """A validator that tries no expressions and gives up after a number of steps."""
    steps = 0

    def bounded(check: _Check) -> _Check:
        def counted(
            validator: Validator, value: Any, instance: Any, schema: dict[str, Any]
        ) -> Iterator[ValidationError] | None:
            nonlocal steps
            steps += 1
            if steps > _MAX_CHECKS:
                raise _TooMuchWorkError
            return check(validator, value, instance, schema)

        return counted

    known = cast(dict[str, _Check], Draft202012Validator.VALIDATORS)
    checks = {keyword: bounded(check) for keyword, check in known.items()}
    additional = checks["additionalProperties"]

    def without_patterns(
        validator: Validator, value: Any, instance: Any, schema: dict[str, Any]
    ) -> Iterator[ValidationError] | None:
        if "patternProperties" in schema:
            return None
        return additional(validator, value, instance, schema)

    checks["additionalProperties"] = without_patterns
    checks.update({keyword: lambda *_: None for keyword in _WITH_EXPRESSIONS})
    return cast(
        type[Validator],
        extend(Draft202012Validator, checks),  # type: ignore[no-untyped-call]
    )
