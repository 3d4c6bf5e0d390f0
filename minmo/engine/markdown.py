"""What is to be read of a text in Markdown: its words, without the marks.

A text that has no marks comes through as it is. Code is read as it stands, HTML stays for others to
drop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

# Indented text is rarely code, and people write HTML to be read.
_OFF = ("code", "html_block", "html_inline")
_BETWEEN_CELLS = ", "


def paragraphs(text: str) -> list[str]:
    """The paragraphs, headings, items and rows of a text, in order; none if it has no words.

    The cells of a row have commas between them, numbered items keep their number.
    """
    return [found for found in _blocks(_parser().parse(text)) if found.strip()]


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable(list(_OFF))


def _blocks(tokens: Sequence[Token]) -> Iterator[str]:
    number = ""
    cells: list[str] | None = None
    for token in tokens:
        match token.type:
            case "list_item_open" if token.info:
                number = f"{token.info}{token.markup} "
            case "tr_open":
                cells = []
            case "tr_close":
                yield _BETWEEN_CELLS.join(cells or ())
                cells = None
            case "inline":
                words = "".join(_inline(token.children or ()))
                if cells is not None:
                    cells += [words] if words else []
                else:
                    yield number + words
                    number = ""
            case "fence":
                yield token.content


def _inline(tokens: Sequence[Token]) -> Iterator[str]:
    for token in tokens:
        match token.type:
            case "text" | "code_inline":
                yield token.content
            case "softbreak" | "hardbreak":
                yield "\n"
            case "image":
                yield token.content
