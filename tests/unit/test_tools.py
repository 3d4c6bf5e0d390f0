"""Schemas that clients send, calls that models write, and how both stand in a prompt."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minmo.rpc.errors import StatusError
from minmo.v1 import conversation_pb2
from services.orchestrator import checks, history, tool_format
from services.orchestrator.session_settings import Settings, Tool, ToolChoice, TurnDetection
from services.orchestrator.store import StoredTurn
from services.orchestrator.tools import BadCallError, check_schema, checked_call

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Tool("get_weather", "Get the weather.", json.dumps(SCHEMA))
TIME = Tool("get_time")


def call(name: object = "get_weather", **arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def test_a_call_that_fits_its_schema_passes() -> None:
    assert checked_call(call(city="Paris", days=2), [TIME, WEATHER]) == (
        "get_weather",
        '{"city": "Paris", "days": 2}',
    )
    assert checked_call('{"name": "get_time"}', [TIME]) == ("get_time", "{}")


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("get_weather(Paris)", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no name"),
        (call(3), "no name"),
        (call("get_wether", city="Paris"), "no tool 'get_wether'"),
        ('{"name": "get_weather", "arguments": "Paris"}', "not an object"),
        (call(), "'city' is a required property"),
        (call(city="Paris", days=0), "days"),
        (call(city="Paris", planet="Earth"), "planet"),
    ],
)
def test_a_call_that_does_not_is_refused(written: str, why: str) -> None:
    with pytest.raises(BadCallError, match=why):
        checked_call(written, [WEATHER, TIME])


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "http://127.0.0.1:1/elsewhere.json"},
        {"$ref": "#/$defs/missing"},
        {
            "$ref": "#/$defs/d0",
            "$defs": {
                **{f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)},
                "d40": {},
            },
        },
        {"prefixItems": 3, "dependentRequired": 3},
    ],
)
def test_a_schema_cannot_keep_the_process_busy(schema: dict[str, object]) -> None:
    began = time.monotonic()
    with pytest.raises(BadCallError, match="cannot be checked"):
        checked_call(call("t"), [Tool("t", "", json.dumps({"type": "object", **schema}))])
    assert time.monotonic() - began < 2


def test_expressions_of_a_schema_are_not_tried() -> None:
    slow = {"pattern": "(a+)+$"}
    schema = {
        "type": "object",
        "properties": {"a": slow},
        "patternProperties": {"(a+)+$": slow},
        "additionalProperties": False,
        "unevaluatedProperties": False,
    }
    tool = Tool("t", "", json.dumps(schema))
    began = time.monotonic()
    checked_call(call("t", a="a" * 60 + "b", **{"a" * 60 + "b": 1}), [tool])
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "schema", ["{", "[1]", '{"type": "string"}', '{"properties": 3}', "[" * 8000, "null"]
)
def test_what_is_no_schema_of_an_object_is_refused(schema: str) -> None:
    with pytest.raises(ValueError, match=r"^is "):
        check_schema(schema)


@given(st.text(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_a_schema_or_refused(text: str) -> None:
    try:
        check_schema(text)
    except ValueError:
        return
    assert not text.strip() or isinstance(json.loads(text), dict)


@given(st.text(max_size=200))
def test_any_text_is_a_call_or_refused(text: str) -> None:
    with pytest.raises(BadCallError):
        checked_call(text, [WEATHER])


# --- settings


def settings(**fields: object) -> Settings:
    return checks.session_settings(conversation_pb2.SessionSettings(**fields))  # type: ignore[arg-type]


def test_settings_come_back_from_the_store_as_they_were() -> None:
    kept = Settings(
        "Be brief.",
        turn_detection=TurnDetection(2, True, True, 0.5),
        tools=(WEATHER, TIME),
        tool_choice=ToolChoice(3, "get_time"),
        text_only=True,
    )
    assert Settings.from_json(kept.to_json()) == kept
    # A session from before there were tools.
    assert Settings.from_json('{"system_prompt": "Hi", "seed": 7}') == Settings("Hi", seed=7)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [conversation_pb2.Tool(name="a")] * 2}, "tools[1].name"),
        ({"tools": [conversation_pb2.Tool(name="ä")]}, "tools[0].name"),
        ({"tools": [conversation_pb2.Tool(name=f"t{n}") for n in range(65)]}, "tools"),
        (
            {"tools": [conversation_pb2.Tool(name="a", description="x" * 1001)]},
            "tools[0].description",
        ),
        (
            {
                "tools": [
                    conversation_pb2.Tool(name=f"t{n}", description="x" * 1000) for n in range(33)
                ]
            },
            "tools",
        ),
        ({"tool_choice": conversation_pb2.ToolChoice(kind=2)}, "tool_choice.kind"),
        ({"tool_choice": conversation_pb2.ToolChoice(kind=3, name="a")}, "tool_choice.name"),
        ({"tool_choice": conversation_pb2.ToolChoice(kind=9)}, "tool_choice.kind"),
        ({"turn_detection": conversation_pb2.TurnDetection(kind=9)}, "turn_detection.kind"),
        (
            {"turn_detection": conversation_pb2.TurnDetection(eagerness=1.5)},
            "turn_detection.eagerness",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_their_field(
    fields: dict[str, object], field: str
) -> None:
    with pytest.raises(StatusError) as refused:
        settings(**fields)
    assert list(refused.value.violations) == [f"settings.{field}"]


@pytest.mark.parametrize(
    ("kind", "eagerness", "silence_ms"),
    [(0, 1, 600), (1, 1, 600), (2, 0, 600), (2, 0.5, 600), (2, 1, 300), (2, 0.25, 849)],
)
def test_eagerness_scales_the_silence_where_there_is_no_predictor(
    kind: int, eagerness: float, silence_ms: int
) -> None:
    assert TurnDetection(kind, eagerness=eagerness).silence_ms(600) == silence_ms


# --- the prompt


def read(turns: list[StoredTurn]) -> str:
    """What the LLM reads of turns."""
    marks = {"role_start": "<{}>", "turn_end": "</>", "interruption": "-"}
    parts = [item.part for item in history.told(turns)]
    return "".join(
        part.text
        if part.HasField("text")
        else marks[str(part.WhichOneof("part"))].format(part.role_start)
        for part in parts
    )


def test_calls_and_results_are_told_in_the_form_of_the_chat_template() -> None:
    def called(index: int, arguments: str) -> StoredTurn:
        return StoredTurn(
            index, "assistant", "", call_id=f"c{index}", call_name="f", call_arguments=arguments
        )

    turns = [
        StoredTurn(0, "user", "Well?"),
        StoredTurn(1, "assistant", "Let me see."),
        called(2, "{}"),
        called(3, '{"a": 1}'),
        StoredTurn(4, "tool", "one", call_id="c2", call_name="f"),
        StoredTurn(5, "tool", "", call_id="c3", call_name="f"),
        StoredTurn(6, "assistant", "Both", outcome="interrupted"),
        StoredTurn(7, "system", "Be kind."),
    ]
    assert read(turns) == (
        "<2>Well?</>"
        '<3>Let me see.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
        '\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call></>'
        "<4><tool_response>\none\n</tool_response>\n<tool_response>\n\n</tool_response></>"
        "<3>Both-</>"
        "<1>Be kind.</>"
    )


def test_the_system_prompt_carries_the_schemas() -> None:
    assert tool_format.system_text("Hi.", []) == "Hi."
    text = tool_format.system_text("Hi.", [WEATHER, TIME])
    signatures = text.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    functions = [json.loads(line)["function"] for line in signatures]
    assert [function["name"] for function in functions] == ["get_weather", "get_time"]
    assert functions[0]["parameters"] == SCHEMA


def test_a_forced_call_is_begun_as_far_as_it_is_known() -> None:
    start = '<tool_call>\n{"name": "'
    assert tool_format.forced_start([WEATHER, TIME]) == start
    assert tool_format.forced_start([TIME]) == start + 'get_time", "arguments": {'
    assert tool_format.forced_start([WEATHER]) == start + 'get_weather", "arguments": {"city": "'
