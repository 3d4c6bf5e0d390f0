"""Calls are found in what the model writes, however it is cut into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.tool_calls import MAX_CALL_CHARACTERS, CallParser, Found
from services.orchestrator.tool_format import CALL_START, call_text

CALL = call_text("get_weather", '{"city": "Paris"}')
OBJECT = '{"name": "get_weather", "arguments": {"city": "Paris"}}'


def parse(pieces: list[str], written: str = "") -> tuple[str, list[str]]:
    """What is said and what is called; parsing stops where the parser says so."""
    parser = CallParser(written)
    said, calls = 0, []
    for piece in pieces:
        found = parser.add(piece)
        assert found.said >= said
        said, calls = found.said, calls + found.calls
        if found.over:
            break
    else:
        found = parser.end()
        said, calls = found.said, calls + found.calls
    return "".join(pieces[:said]), calls


def test_what_is_no_call_is_said_at_once() -> None:
    parser = CallParser()
    assert parser.add("Two is") == Found(1)
    assert parser.add(" < three") == Found(2)


def test_what_may_begin_a_call_is_held_back_until_it_does_not() -> None:
    parser = CallParser()
    assert parser.add("a <").said == 0
    assert parser.add("tool").said == 0
    assert parser.add("box>").said == 3


def test_nothing_of_a_call_is_said() -> None:
    said, calls = parse(
        ["Let me", " look.", "\n", "<tool", "_call>", "\n", OBJECT, "\n</tool_call>"]
    )
    assert said == "Let me look."
    assert calls == [OBJECT]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (CALL, [OBJECT]),
        (f"{CALL_START}{OBJECT}", [OBJECT]),
        (f"{CALL}\n{CALL}", [OBJECT, OBJECT]),
        (f"{CALL_START}[{OBJECT}, {OBJECT}]</tool_call>", [OBJECT, OBJECT]),
        (f"{CALL} And that is that. {CALL}", [OBJECT]),
        (f"{CALL_START}get_weather('Paris')</tool_call>", ["g"]),
        (f'{CALL_START}{{"name": "a{{\\"]}}"}}', ['{"name": "a{\\"]}"}']),
        (f'{CALL_START}{{"name": "never', ['{"name": "never']),
        (f"{CALL_START}", []),
    ],
)
def test_calls_are_found(text: str, calls: list[str]) -> None:
    for pieces in ([text], list(text)):
        assert parse(pieces) == ("", calls)


def test_the_beginning_that_was_written_for_the_model_belongs_to_the_call() -> None:
    written = f'{CALL_START}\n{{"name": "get_weather", "arguments": {{"city": "'
    assert parse(["Par", 'is"', "}}", "\n</tool_call>"], written) == ("", [OBJECT])
    assert CallParser(written).add('Rome"}}').calls == [OBJECT.replace("Paris", "Rome")]


def test_a_call_without_end_is_given_up() -> None:
    parser = CallParser()
    parser.add(f'{CALL_START}{{"name": "')
    found = Found(0)
    for _ in range(MAX_CALL_CHARACTERS):
        found = parser.add("x")
        if found.over:
            break
    assert found.over
    assert len(found.calls) == 1


fragments = st.sampled_from(
    [
        CALL,
        OBJECT,
        CALL_START,
        "</tool_call>",
        "<",
        "<tool",
        "_call>",
        "{",
        "}",
        "[",
        '"',
        "\\",
        " ",
    ]
) | st.text(max_size=8)


def test_a_sign_that_only_resembled_the_mark_is_said() -> None:
    parser = CallParser()
    assert parser.add("<") == Found(0)
    assert parser.add("<tool") == Found(1)
    assert parser.add("_call>" + OBJECT) == Found(1, [OBJECT])


@given(st.lists(fragments, max_size=12).map("".join), st.data())
def test_how_the_text_is_cut_makes_no_difference(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    said, calls = parse(pieces)
    letters, calls_of_letters = parse(list(text))
    assert calls == calls_of_letters
    # Said letter by letter, all but the space before a call is said; pieces are said as a whole.
    before = text.split(CALL_START, 1)[0]
    assert CALL_START not in said
    assert before.startswith(said)
    assert before.startswith(letters)
    assert before.strip() == letters.strip()


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers(), max_size=4))
def test_what_is_written_is_read(words: str, arguments: dict[str, object]) -> None:
    if "<" in words:
        words = words.replace("<", "")
    written = json.dumps(arguments, ensure_ascii=False)
    _, (call,) = parse([words, call_text("tool", written)])
    assert json.loads(call) == {"name": "tool", "arguments": arguments}
