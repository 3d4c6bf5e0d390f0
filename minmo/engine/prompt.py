"""The chat format: turns to token ids, tokens to text. No tensors, so that a service can use it."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Final, Literal

from tokenizers import Tokenizer

Role = Literal["system", "user", "assistant"]

TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
TEXT_END: Final = "<|endoftext|>"
# How written speech shows that somebody was cut off; models have read it in countless dialogues.
INTERRUPTION: Final = "—"


class ChatFormat:
    """ChatML, as SmolLM2 and Qwen2.5 were trained on it.

    Raises:
        ValueError: the tokenizer lacks the tokens of this format.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Otherwise "<|im_end|>" in what a user says would end the user's turn.
        tokenizer.encode_special_tokens = True
        self._start, self.end_token = self._mark(TURN_START), self._mark(TURN_END)
        self._turn_end = [self.end_token, *self.text("\n")]
        self._interruption = self.text(INTERRUPTION)
        self._bytes: dict[int, bytes] = {}
        self._special = {
            token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special
        }

    @classmethod
    def from_folder(cls, folder: Path) -> ChatFormat:
        """Reads `tokenizer.json` of a folder of weights.

        Raises:
            ValueError: it is not there, no tokenizer, or not one of ChatML.
        """
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more particular
            raise ValueError(f"cannot read the tokenizer {path}: {error}") from error
        return cls(tokenizer)

    def _mark(self, mark: str) -> int:
        token: int | None = self._tokenizer.token_to_id(mark)
        if token is None:
            raise ValueError(f"the tokenizer has no token {mark!r}: it is not one of ChatML")
        return token

    def role_start(self, role: Role) -> list[int]:
        """Tokens that open a turn."""
        return [self._start, *self.text(f"{role}\n")]

    def turn_end(self) -> list[int]:
        """Tokens that close a turn."""
        return list(self._turn_end)

    def interruption(self) -> list[int]:
        """Tokens that say that the user cut the assistant off."""
        return list(self._interruption)

    def text(self, text: str) -> list[int]:
        """Tokens of a text, special tokens in it read as plain text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes that a token stands for; none for special tokens and unknown ids."""
        found = self._bytes.get(token)
        if found is None:
            written = None if token in self._special else self._tokenizer.id_to_token(token)
            found = bytes(_BYTE_OF[character] for character in written or "")
            self._bytes[token] = found
        return found


class TextStream:
    """Text of a row of tokens that arrive one by one."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """Text that this token completes; "" while a character is incomplete."""
        return self._decoder.decode(self._chat.token_bytes(token))


def _byte_of() -> dict[str, int]:
    """The printable character that byte-level tokenizers write for each byte, turned around."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = printable + [256 + number for number in range(len(others))]
    return {chr(c): byte for c, byte in zip(characters, printable + others, strict=True)}


_BYTE_OF = _byte_of()
