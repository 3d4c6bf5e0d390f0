"""Calls of tools in what the model writes, found while it writes. No I/O.

What is said comes out piece by piece as it came in; from the first ``<tool_call>`` on nothing is
said any more. A call ends with its JSON, whether the closing mark follows or not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

from services.orchestrator.tool_format import CALL_END, CALL_START

MAX_CALL_CHARACTERS: Final = 8000
"""Longest call; a longer one is none."""
_OPENING: Final = "{["
_CLOSING: Final = "}]"


@dataclass
class Found:
    """What a piece of text brought.

    Attributes:
        said: how many pieces are known to be said, counted from the first one.
        calls: calls that are complete now, each a JSON object or what was written for one.
        over: nothing of use can follow.
    """

    said: int
    calls: list[str] = field(default_factory=list)
    over: bool = False


class CallParser:
    """Parts what is said from what is called, in pieces of text as they come.

    A piece is said as a whole or not at all, so that tokens and their hidden states stay together;
    where a call begins in the middle of a piece, the piece is not said.

    Args:
        written: the beginning of the answer, where it was written for the model.
    """

    def __init__(self, written: str = "") -> None:
        self._pieces = 0
        self._said = 0
        self._held: list[str] = []
        self._before = ""
        self._calling = False
        self._called = False
        self._body = _Json()
        if written:
            self.add(written)
            self._before, self._held = "".join(self._held), []
            self._pieces = self._said = 0

    def add(self, piece: str) -> Found:
        """Takes the next piece of text."""
        self._pieces += 1
        if self._calling:
            return self._go_on(piece)
        self._held.append(piece)
        text = self._before + "".join(self._held)
        start = text.find(CALL_START)
        certain = len(text[:start].rstrip()) if start >= 0 else _certainly_said(text)
        self._say(certain - len(self._before))
        if start >= 0:
            self._calling = True
            return self._go_on(text[start + len(CALL_START) :])
        return Found(self._said)

    def end(self) -> Found:
        """No more comes: what was held back is said, and a call that is open is none."""
        if self._calling:
            unfinished = self._body.take()
            return Found(self._said, [unfinished] if unfinished else [], over=True)
        self._said = self._pieces
        return Found(self._said, over=True)

    def _say(self, characters: int) -> None:
        """Of what is held, lets the pieces go that end within so many characters."""
        if characters > 0:
            self._before = ""
        while self._held and len(self._held[0]) <= characters:
            characters -= len(self._held.pop(0))
            self._said += 1

    def _go_on(self, text: str) -> Found:
        found = Found(self._said)
        for character in text:
            if self._body.add(character):
                found.calls += _calls(self._body.take())
                self._called = True
            elif self._body.length > MAX_CALL_CHARACTERS:
                found.calls.append(self._body.take())
                found.over = True
            elif self._body.stray:
                if not self._called:
                    found.calls.append(self._body.stray)
                found.over = True
            if found.over:
                break
        return found


class _Json:
    """One JSON value after another, with marks of a call between them."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._between = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.stray = ""
        """What came in the place of a value that is neither space nor a mark."""

    @property
    def length(self) -> int:
        """Characters of the value that is open."""
        return len(self._text)

    def take(self) -> str:
        """The value so far; the next one begins."""
        text, self._text = "".join(self._text), []
        self._depth, self._in_string, self._escaped = 0, False, False
        return text

    def add(self, character: str) -> bool:
        """Whether the value is complete with this character."""
        if not self._text and character not in _OPENING:
            self._between = (self._between + character).lstrip()
            for mark in (CALL_END, CALL_START):
                if self._between == mark:
                    self._between = ""
            if not any(mark.startswith(self._between) for mark in (CALL_END, CALL_START)):
                self.stray = self._between
            return False
        self._text.append(character)
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in _OPENING:
            self._depth += 1
        elif character in _CLOSING:
            self._depth -= 1
        return self._depth == 0


def _calls(value: str) -> list[str]:
    """The calls in a JSON value: itself, or its members where it is a list."""
    if not value.startswith("["):
        return [value]
    try:
        members = json.loads(value)
    except (ValueError, RecursionError):
        return [value]
    return [json.dumps(member, ensure_ascii=False) for member in members]


def _certainly_said(text: str) -> int:
    """Characters before what may be the beginning of a call's mark, or the space before one."""
    at = text.rfind("<")
    if at >= 0 and CALL_START.startswith(text[at:]):
        return len(text[:at].rstrip())
    return len(text) if text.strip() else 0
