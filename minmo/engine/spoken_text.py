"""A text as the LLM reads it that is to be spoken: as if it had answered with it.

The voice reads what the LLM makes of its own words. For a text that it has not written itself, a
typed one or one that training has audio of, it reads a conversation in which it has (teacher
forcing), in the very tokens that a conversation of the product has.
"""

from __future__ import annotations

from typing import NamedTuple

from minmo.engine.prompt import ChatFormat


class SpokenText(NamedTuple):
    """What the LLM reads of a text.

    Attributes:
        tokens: all that it reads, in order.
        query: positions of the user's words, which the voice reads first; none without any.
        said: positions of the text's tokens.
    """

    tokens: list[int]
    query: range
    said: range

    @property
    def said_tokens(self) -> list[int]:
        """The text's tokens."""
        return self.tokens[self.said.start : self.said.stop]

    @property
    def predicting(self) -> range:
        """Positions whose hidden states predicted the text's tokens, which travel with them."""
        return range(self.said.start - 1, self.said.stop - 1)


def spoken_text(
    chat: ChatFormat, text: str, query: str = "", system_prompt: str = ""
) -> SpokenText:
    """Lays out a conversation that ends with a text.

    Args:
        chat: the LLM's format.
        text: to be spoken, as it is written.
        query: what the user has said before, with an instruction how to speak if there is one;
            empty for nothing.
        system_prompt: who the LLM is told it is; empty for nothing.
    """
    tokens: list[int] = []
    if system_prompt:
        tokens += [*chat.role_start("system"), *chat.text(system_prompt), *chat.turn_end()]
    asked = chat.text(query)
    if asked:
        tokens += chat.role_start("user")
    first = len(tokens)
    tokens += asked
    if asked:
        tokens += chat.turn_end()
    tokens += chat.role_start("assistant")
    said = chat.text(text)
    begin = len(tokens)
    return SpokenText(
        tokens + said, range(first, first + len(asked)), range(begin, begin + len(said))
    )
