"""How tools, calls and results are written in a prompt: the form that Qwen2.5 was trained on.

Models of the Hermes family know the same one. SmolLM2's small models were not trained on any; their
larger sibling writes a list of calls between the marks, which `tool_calls` reads as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from services.orchestrator.session_settings import Tool
from services.orchestrator.tools import schema_of

CALL_START: Final = "<tool_call>"
CALL_END: Final = "</tool_call>"
_RESULT_START: Final = "<tool_response>"
_RESULT_END: Final = "</tool_response>"


def system_text(system_prompt: str, tools: Sequence[Tool]) -> str:
    """The system prompt with the tools behind it."""
    if not tools:
        return system_prompt
    signatures = [
        json.dumps(
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": schema_of(tool.parameters_json),
                },
            },
            ensure_ascii=False,
        )
        for tool in tools
    ]
    return "\n".join(
        [
            system_prompt,
            "",
            "# Tools",
            "",
            "You may call one or more functions to assist with the user query.",
            "",
            "You are provided with function signatures within <tools></tools> XML tags:",
            "<tools>",
            *signatures,
            "</tools>",
            "",
            "For each function call, return a json object with function name and arguments within "
            f"{CALL_START}{CALL_END} XML tags:",
            CALL_START,
            '{"name": <function-name>, "arguments": <args-json-object>}',
            CALL_END,
        ]
    )


def call_text(name: str, arguments_json: str) -> str:
    """A call as the assistant writes it."""
    body = f'{{"name": {json.dumps(name)}, "arguments": {arguments_json}}}'
    return f"{CALL_START}\n{body}\n{CALL_END}"


def result_text(output: str) -> str:
    """What a tool returned, as a turn of the user tells it."""
    return f"{_RESULT_START}\n{output}\n{_RESULT_END}"


def forced_start(tools: Sequence[Tool]) -> str:
    """How an answer begins that must be a call of one of `tools`.

    Where there is but one, its name and its first required argument are written already.
    """
    start = f'{CALL_START}\n{{"name": "'
    if len(tools) != 1:
        return start
    (tool,) = tools
    start += f'{tool.name}", "arguments": {{'
    schema = schema_of(tool.parameters_json)
    required = schema.get("required") or []
    if not required:
        return start
    first = required[0]
    start += f"{json.dumps(first)}: "
    property_schema = schema.get("properties", {}).get(first)
    is_text = isinstance(property_schema, dict) and property_schema.get("type") == "string"
    return start + '"' if is_text else start
