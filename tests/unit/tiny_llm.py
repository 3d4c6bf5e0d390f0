"""A random LLM, small enough to compute with by the thousand, and a desk to give it work at."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from minmo.engine.engine import Engine, EngineOptions
from minmo.engine.operations import (
    Action,
    Event,
    Failed,
    Generate,
    Generated,
    Matrix,
    Operation,
    Prefill,
    Prefilled,
    TokenDrawn,
    Tokens,
    is_last,
)
from minmo.engine.runner import TurnPredictor
from minmo.model.llm import Llm, LlmCache, LlmConfig, Segment

STOP_TOKEN = 96
WAIT_SECONDS = 20.0

CONFIG = LlmConfig(
    vocabulary_size=97,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    norm_epsilon=1e-5,
    rope_theta=10000.0,
    qkv_bias=False,
    tied_embeddings=False,
    max_context=512,
)


def random_state(config: LlmConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights with Hugging Face's names, with values that float16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) / shape[-1] ** 0.5
        return values.half().float()

    state = {
        "model.embed_tokens.weight": matrix(config.vocabulary_size, config.width) * 4,
        "model.norm.weight": 1 + 0.1 * matrix(config.width),
    }
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    for number in range(config.layers):
        layer = f"model.layers.{number}"
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            state[f"{layer}.self_attn.{name}_proj.weight"] = matrix(rows, config.width)
            if config.qkv_bias:
                state[f"{layer}.self_attn.{name}_proj.bias"] = matrix(rows)
        state[f"{layer}.self_attn.o_proj.weight"] = matrix(config.width, queries)
        for name in ("gate", "up"):
            state[f"{layer}.mlp.{name}_proj.weight"] = matrix(config.mlp_width, config.width)
        state[f"{layer}.mlp.down_proj.weight"] = matrix(config.width, config.mlp_width)
        for name in ("input", "post_attention"):
            state[f"{layer}.{name}_layernorm.weight"] = 1 + 0.1 * matrix(config.width)
    if not config.tied_embeddings:
        state["lm_head.weight"] = matrix(config.vocabulary_size, config.width)
    return state


def tiny_llm(packed: bool = True) -> Llm:
    return Llm.from_state_dict(CONFIG, random_state(CONFIG), packed=packed)


def tokens(*ids: int) -> Tokens:
    return np.array(ids, dtype=np.int64)


def embeddings(rows: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((rows, CONFIG.width)).astype(np.float32)


def recompute(model: Llm, parts: Sequence[Tokens | Matrix]) -> Matrix:
    """Last hidden states of a content, read at once into an empty cache."""
    rows = [
        model.embed(torch.from_numpy(part)) if part.ndim == 1 else torch.from_numpy(part)
        for part in parts
    ]
    with torch.inference_mode():
        content = torch.cat(rows)
        cache = LlmCache(model.config, 1, model.config.max_context)
        found: Matrix = model(content, [Segment(0, 0, len(content))], cache).numpy()
    return found


def greedy(model: Llm, content: Sequence[int], count: int) -> list[int]:
    """Tokens that follow a content, each found by reading everything again."""
    read, drawn = list(content), []
    for _ in range(count):
        hidden = recompute(model, [tokens(*read)])
        token = int(model.logits(torch.from_numpy(hidden[-1:])).argmax())
        if token == STOP_TOKEN:
            break
        drawn.append(token)
        read.append(token)
    return drawn


OPTIONS = {
    "stop_tokens": frozenset([STOP_TOKEN]),
    "slots": 4,
    "context": 64,
    "piece": 8,
    "budget": 16,
    "shared_budget": 8,
}


class Ticket:
    """An operation that was handed in."""

    def __init__(self, hook: Callable[[Event], None] | None = None) -> None:
        self.events: list[Event] = []
        self._hook = hook
        self._done = threading.Event()

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        if self._hook:
            self._hook(event)
        if is_last(event):
            self._done.set()

    def wait(self) -> Event:
        """The last event."""
        assert self._done.wait(WAIT_SECONDS), "the engine did not answer"
        return self.events[-1]

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events if isinstance(event, TokenDrawn)]


class Desk:
    """An engine that runs, and short ways to ask it."""

    def __init__(
        self,
        model: Llm | None = None,
        predictor: TurnPredictor | None = None,
        **options: Any,
    ) -> None:
        self.model = model or tiny_llm()
        self.engine = Engine(self.model, EngineOptions(**(OPTIONS | options)), predictor)
        self.engine.start()
        self._ids = itertools.count()

    def hand_in(
        self,
        action: Action,
        session: str = "s",
        branch: str = "main",
        epoch: int = 0,
        operation_id: str | None = None,
        hook: Callable[[Event], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> Ticket:
        ticket = Ticket(hook)
        name = operation_id or f"operation-{next(self._ids)}"
        operation = Operation(name, session, branch, epoch, action)
        self.engine.submit(operation, ticket.on_event, is_cancelled)
        return ticket

    def ask(self, action: Action, **where: Any) -> Event:
        return self.hand_in(action, **where).wait()

    def prefill(self, *ids: int, position: int = 0, **where: Any) -> Prefilled:
        event = self.ask(Prefill(position, (tokens(*ids),)), **where)
        assert isinstance(event, Prefilled), event
        return event

    def generate(self, position: int, count: int = 8, **where: Any) -> list[int]:
        ticket = self.hand_in(Generate(position, count), **where)
        assert isinstance(ticket.wait(), Generated), ticket.events
        return ticket.tokens

    def fails(self, action: Action, **where: Any) -> Failed:
        event = self.ask(action, **where)
        assert isinstance(event, Failed), event
        return event
