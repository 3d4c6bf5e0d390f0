"""Probes through the service and a real Triton, with a small predictor of random weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import cast

import grpc
import numpy as np
import pytest
import torch

from minmo import weights
from minmo.model.duplex_predictor import DuplexPredictor
from minmo.v1 import common_pb2, llm_pb2
from minmo.v1.llm_pb2_grpc import LlmServiceStub
from minmo.weights.modules import random_module
from tests.duplex import POINTS, duplex_home
from tests.service.llm_processes import (
    DEADLINE_SECONDS,
    Caller,
    LlmProcess,
    Response,
    TritonProcess,
    caller,
    matrix,
    prefill,
    text,
)

WIDTH = 576


@pytest.fixture(scope="module")
def predictor() -> DuplexPredictor:
    """As it is stored: in float16."""
    predictor = cast("DuplexPredictor", random_module("mini", "duplex_predictor"))
    torch.nn.init.normal_(predictor.head.weight, generator=torch.Generator().manual_seed(1))
    return predictor.half().float()


@pytest.fixture(scope="module")
def triton(
    predictor: DuplexPredictor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonProcess]:
    weights.ensure("mini")
    folder = duplex_home(tmp_path_factory.mktemp("duplex") / "home", predictor)
    triton = TritonProcess(MINMO_HOME=str(folder))
    triton.start()
    try:
        triton.wait_ready()
        yield triton
    finally:
        triton.stop()


@pytest.fixture(scope="module")
def address(triton: TritonProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    service = LlmProcess(tmp_path_factory.mktemp("llm"), triton.grpc_port)
    yield service.start()
    assert service.stop() == 0


@pytest.fixture
async def line(address: str) -> AsyncIterator[Caller]:
    async with caller(address) as made:
        yield made
        await made.done(branch="", epoch=1000, close=llm_pb2.Close())


def probe(position: int, seed: int = 0, rows: int = 1, width: int = WIDTH) -> llm_pb2.Probe:
    numbers = 0.1 * np.random.default_rng(seed).standard_normal((rows, width))
    content = numbers.astype("<f4").tobytes()
    return llm_pb2.Probe(
        position=position,
        embedding=common_pb2.FloatMatrix(data=content, rows=rows, columns=width),
    )


def said(answer: Response) -> tuple[float, float]:
    turn = answer.probe_done.turn
    return turn.assistant_turn, turn.user_turn


async def test_says_with_which_thresholds_it_predicts(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        model = await LlmServiceStub(channel).GetModel(llm_pb2.GetModelRequest(), timeout=10)
    points = [(p.eagerness, p.assistant_turn, p.user_turn) for p in model.operating_points]
    np.testing.assert_allclose(
        points, [(p.eagerness, p.assistant_turn, p.user_turn) for p in POINTS], atol=1e-6
    )


async def test_a_probe_is_answered_as_the_predictor_answers_to_what_was_read(
    line: Caller, predictor: DuplexPredictor
) -> None:
    """What the LLM makes of a probe is what it makes of the same embedding when it keeps it."""
    question = text("What do you think of that?")
    read = await line.done(prefill=prefill(question, return_hidden_states=True))
    end = read.prefill_done.position
    answer = await line.done(probe=probe(end))
    assert answer.probe_done.position == end
    assert answer.probe_done.elapsed_ms > 0
    kept = llm_pb2.PromptPart(embeddings=probe(end).embedding)
    await line.done(branch="kept", prefill=prefill(question))
    again = await line.done(
        branch="kept", prefill=prefill([kept], position=end, return_hidden_states=True)
    )
    states = [
        matrix(read.prefill_done.hidden_states.data),
        matrix(again.prefill_done.hidden_states.data),
    ]
    expected = predictor.probabilities(torch.from_numpy(np.concatenate(states)))
    np.testing.assert_allclose(said(answer), expected, atol=1e-4)
    assert said(answer) == pytest.approx(
        (again.prefill_done.turn.assistant_turn, again.prefill_done.turn.user_turn), abs=1e-4
    )


async def test_the_same_tokens_with_and_without_probes(line: Caller) -> None:
    question = text("Tell me something about the sea.\n")
    read = await line.done(prefill=prefill(question))
    end = read.prefill_done.position
    plain = await line.tokens(end, 12)
    await line.done(branch="probed", prefill=prefill(question))
    answers = [await line.done(branch="probed", probe=probe(end, seed)) for seed in range(3)]
    assert len({said(answer) for answer in answers}) == 3
    what = llm_pb2.Generate(position=end, max_tokens=12)
    events = await line.events(await line.send(branch="probed", generate=what))
    assert [event.token.id for event in events[:-1]] == plain
    assert events[-1].generate_done.position == end + len(plain)


async def test_probes_that_wait_for_a_prefill_are_answered_after_it(line: Caller) -> None:
    read = await line.send(prefill=prefill(text("a question of some length " * 20)))
    end = (await line.next(read)).prefill_done.position
    more = await line.send(prefill=prefill(text(" and more"), position=end))
    # Nobody knows the position yet where the probe belongs: it is refused, and says it.
    early = await line.ask(probe=probe(end))
    assert (early.error.reason, early.error.code) == ("WRONG_POSITION", 9)
    assert early.error.position == (await line.next(more)).prefill_done.position


async def test_what_is_no_probe_is_refused_with_what_was_wrong(line: Caller) -> None:
    await line.done(prefill=prefill(text("hi")))
    for what, message in [
        (probe(1, rows=2), "has 2 rows; it must have 1"),
        (probe(1, width=8), "has 8 columns; the model's width is 576"),
        (llm_pb2.Probe(position=1), "has 0 rows"),
    ]:
        answer = await line.ask(probe=what)
        assert (answer.error.reason, answer.error.code) == ("BAD_CONTENT", 3)
        assert message in answer.error.message


async def test_probes_are_counted(line: Caller, triton: TritonProcess) -> None:
    before = triton.metric("minmo_llm_probes_total")
    read = await line.done(prefill=prefill(text("hi")))
    await line.done(probe=probe(read.prefill_done.position))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while triton.metric("minmo_llm_probes_total") <= before:
            await asyncio.sleep(0.05)
