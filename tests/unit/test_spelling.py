"""Text without token ids is read aloud as well."""

from __future__ import annotations

import numpy as np

from minmo.engine.prompt import ChatFormat
from minmo.engine.voice import Mark, Piece, TextToken
from minmo.engine.voice_decoder.spelling import Spelling
from tests.unit.test_prompt import tokenizer

CHAT = ChatFormat(tokenizer())


def test_words_become_the_tokens_that_the_llm_would_have_written() -> None:
    spelling = Spelling(CHAT)
    spelled = spelling.spell([TextToken(0, "the"), TextToken(0, " zebra")])
    assert [token.id for token in spelled] == CHAT.text("the") + CHAT.text(" zebra")
    assert "".join(token.text for token in spelled) == "the zebra"


def test_tokens_with_ids_stay_as_they_are() -> None:
    (first,) = CHAT.text("!")
    tokens = [TextToken(7, "x"), TextToken(0, ""), TextToken(first, "!")]
    assert Spelling(CHAT).spell(tokens) == tokens


def test_marks_count_what_the_caller_has_sent() -> None:
    spelling = Spelling(CHAT)
    read = len(spelling.spell([TextToken(0, "zebra")]))
    total = read + len(spelling.spell([TextToken(9, "t"), TextToken(0, " zoo")]))
    assert read > 1
    piece = Piece(np.zeros(3, np.float32), (Mark(1, 10), Mark(read, 20), Mark(total, 30)), 0.07)
    counted = spelling.counted(piece)
    assert counted.marks == (Mark(1, 20), Mark(3, 30))
    assert counted.token2wav_seconds == 0.07
