"""The LLM as the product prompts it, with its chat format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from minmo.engine.prompt import TEXT_END, ChatFormat
from minmo.model.llm import Llm
from minmo.settings import OrchestratorSettings
from minmo.training.data.errors import DataError
from minmo.triton.host import load_model
from minmo.weights.load import weights_folder
from minmo.weights.modules import module_sha256


@dataclass(frozen=True)
class Assistant:
    """An LLM and how it is talked to.

    Attributes:
        llm: the model.
        chat: its format.
        stop: tokens that end its turn.
        preset: whose it is.
        sha256: of its weights.
    """

    llm: Llm
    chat: ChatFormat
    stop: frozenset[int]
    preset: str
    sha256: str

    @classmethod
    def load(cls, preset: str, threads: int) -> Assistant:
        """Loads the LLM of a preset.

        Raises:
            PresetError: there is no such preset.
            WeightsError: its weights are not here, or damaged.
            DataError: its tokenizer knows no turns.
        """
        torch.set_num_threads(threads)
        folder = weights_folder(preset, "llm")
        try:
            chat = ChatFormat.from_folder(folder)
        except ValueError as error:
            raise DataError(f"the LLM of {preset} cannot answer: {error}") from error
        stop, sha256 = _stop_tokens(folder, chat), module_sha256(preset, "llm")
        return cls(load_model(folder), chat, stop, preset, sha256)

    def opening(self, system_prompt: str | None = None) -> list[int]:
        """What every conversation begins with; None for the product's own system prompt."""
        told = product_system_prompt() if system_prompt is None else system_prompt
        chat = self.chat
        return [*chat.role_start("system"), *chat.text(told), *chat.turn_end()]

    def question(self, text: str) -> list[int]:
        """A user's turn, up to where the assistant begins to answer."""
        chat = self.chat
        turn = [*chat.role_start("user"), *chat.text(text), *chat.turn_end()]
        return [*turn, *chat.role_start("assistant")]

    def text(self, tokens: list[int]) -> str:
        """Text of what it wrote."""
        return b"".join(map(self.chat.token_bytes, tokens)).decode("utf-8", "replace").strip()


def product_system_prompt() -> str:
    """What the LLM is told before the first turn of a conversation, unless somebody changes it."""
    return str(OrchestratorSettings.model_fields["system_prompt"].default)


def _stop_tokens(folder: Path, chat: ChatFormat) -> frozenset[int]:
    stated = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id", [])
    listed = stated if isinstance(stated, list) else [stated]
    added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    ends = [token["id"] for token in added if token["content"] == TEXT_END]
    return frozenset({*listed, chat.end_token, *ends})
