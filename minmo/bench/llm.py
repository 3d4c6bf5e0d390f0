"""How fast the LLM is, and how far from what memory allows.

    python -m minmo.bench.llm --threads 2
    python -m minmo.bench.llm --address 127.0.0.1:7102   # adds the way through the service

Reading the weights once is the least that a step can take; the floor is that time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Literal

import grpc
import numpy as np
import torch

from minmo.engine.engine import Engine, EngineOptions
from minmo.engine.operations import (
    Close,
    Event,
    Failed,
    Generate,
    Operation,
    Prefill,
    TokenDrawn,
    is_last,
)
from minmo.model.llm import Llm, random_llm
from minmo.model.packed import PackedLinear
from minmo.presets import load_preset
from minmo.triton.host import compute_kind, load_model
from minmo.v1 import llm_pb2
from minmo.v1.llm_pb2_grpc import LlmServiceStub
from minmo.weights.load import weights_folder

Dtype = Literal["auto", "float32", "bfloat16"]

SESSIONS = 8
PROMPT = 40
TOKENS = 64
_REPEATS = 5
_ROUND_TRIPS = 300
_DEADLINE_SECONDS = 120.0


@dataclass(frozen=True)
class LlmReport:
    """What was measured.

    Attributes:
        dtype: number type of computation.
        weight_bytes: that a step reads.
        threads: that computed.
        bandwidth_gb_s: reading memory, in 10^9 bytes a second.
        floor_ms: of a step: the time to read the weights.
        alone_ms_per_token: one session.
        alone_tokens_s: one session.
        eight_tokens_s: eight sessions, all together.
        ratio: `eight_tokens_s` over `alone_tokens_s`.
        exact: whether each of the eight got the tokens that it gets alone.
        prefill_ms: of 40 positions.
        first_five_ms: one session, from its last three embeddings, on top of those 40 positions,
            to the fifth token.
        round_trip_ms: median of a message to the model and back, through the service and Triton;
            None where no service was given.
        service_ms_per_token: one session, through the service and Triton.
        service_eight_tokens_s: eight sessions, all together, through the service and Triton.
    """

    dtype: str
    weight_bytes: int
    threads: int
    bandwidth_gb_s: float
    floor_ms: float
    alone_ms_per_token: float
    alone_tokens_s: float
    eight_tokens_s: float
    ratio: float
    exact: bool
    prefill_ms: float
    first_five_ms: float
    round_trip_ms: float | None = None
    service_ms_per_token: float | None = None
    service_eight_tokens_s: float | None = None


def measure(
    preset: str = "mini",
    dtype: Dtype = "auto",
    threads: int = 2,
    address: str | None = None,
    untrained: bool = False,
) -> LlmReport:
    """Measures the engine in this process, and the service at `address` if one is given.

    Args:
        preset: whose LLM.
        dtype: number type of computation.
        threads: that compute.
        address: of a running llm service.
        untrained: whether random weights of the preset's sizes will do: as fast as trained ones,
            except that on a CPU they are not packed.

    Raises:
        WeightsError: the preset's weights are not prepared.
        RuntimeError: an operation failed.
    """
    torch.set_num_threads(threads)
    bandwidth = memory_bandwidth()
    if untrained:
        model = random_llm(load_preset(preset).llm, 0, *compute_kind(dtype)).requires_grad_(False)
    else:
        model = load_model(weights_folder(preset, "llm"), dtype)
    # Without stop tokens every session runs as long as the others.
    engine = Engine(model, EngineOptions(frozenset(), slots=SESSIONS + 1, context=512))
    engine.start()
    try:
        alone = [_run(engine, [seed]) for seed in range(SESSIONS)]
        together = _run(engine, list(range(SESSIONS)))
        first_five = [_first_five_ms(engine, seed) for seed in range(SESSIONS)]
    finally:
        engine.stop()
    alone_ms = statistics.median(run.token_ms for run in alone)
    eight = SESSIONS * 1000 / together.token_ms
    report = LlmReport(
        dtype=str(model.dtype).removeprefix("torch."),
        weight_bytes=weight_bytes(model),
        threads=threads,
        bandwidth_gb_s=bandwidth / 1e9,
        floor_ms=weight_bytes(model) / bandwidth * 1000,
        alone_ms_per_token=alone_ms,
        alone_tokens_s=1000 / alone_ms,
        eight_tokens_s=eight,
        ratio=eight * alone_ms / 1000,
        exact=together.tokens == [run.tokens[0] for run in alone],
        prefill_ms=statistics.median(run.prefill_ms for run in alone),
        first_five_ms=statistics.median(first_five),
    )
    if address is None:
        return report
    round_trip, per_token, together_s = asyncio.run(_through_service(address))
    return replace(
        report,
        round_trip_ms=round_trip,
        service_ms_per_token=per_token,
        service_eight_tokens_s=together_s,
    )


def memory_bandwidth(device: str = "cpu") -> float:
    """Bytes a second that a sum over much of a device's memory reads, the best of several."""
    numbers = torch.ones(64 * 1024 * 1024, device=device)
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        # To read the sum waits for the device.
        float(numbers.sum())
        seconds.append(time.perf_counter() - began)
    return numbers.nbytes / min(seconds)


def weight_bytes(model: Llm) -> int:
    """Bytes of weights that a step reads."""
    config = model.config
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = config.width * (queries + 2 * keys) + queries * config.width
    block = attention + 3 * config.width * config.mlp_width
    count = config.layers * block + config.vocabulary_size * config.width
    return count * (2 if isinstance(model.lm_head, PackedLinear) else model.dtype.itemsize)


@dataclass(frozen=True)
class _Run:
    tokens: list[list[int]]
    token_ms: float
    prefill_ms: float


def _prompt(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 40_000, PROMPT)


def _run(engine: Engine, seeds: Sequence[int]) -> _Run:
    """Prefills all, then lets all generate; one session for each seed."""
    began = time.perf_counter()
    _carry_out(engine, [Prefill(0, (_prompt(seed),)) for seed in seeds])
    read = time.perf_counter()
    tokens = _carry_out(engine, [Generate(PROMPT, TOKENS) for _ in seeds])
    done = time.perf_counter()
    for number in range(len(seeds)):
        engine.submit(_operation(number, "close", Close(), ""), lambda _: None)
    return _Run(tokens, (done - read) * 1000 / TOKENS, (read - began) * 1000)


def _first_five_ms(engine: Engine, seed: int) -> float:
    """An answer's first group of tokens, which the voice waits for."""
    _carry_out(engine, [Prefill(0, (_prompt(seed),))])
    width = engine.model_config.width
    last = np.random.default_rng(seed).standard_normal((3, width)).astype(np.float32)
    began = time.perf_counter()
    _carry_out(engine, [Prefill(PROMPT, (last,))], "last")
    _carry_out(engine, [Generate(PROMPT + len(last), 5)])
    passed = time.perf_counter() - began
    engine.submit(_operation(0, "close", Close(), ""), lambda _: None)
    return passed * 1000


def _operation(
    number: int, name: str, action: Prefill | Generate | Close, branch: str = "main"
) -> Operation:
    return Operation(name, f"bench-{number}", branch, 0, action)


def _carry_out(
    engine: Engine, actions: Sequence[Prefill | Generate], name: str = ""
) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in actions]
    failures: list[Failed] = []
    left, done = [len(actions)], threading.Event()

    def listen(number: int) -> None:
        def on_event(event: Event) -> None:
            if isinstance(event, TokenDrawn):
                tokens[number].append(event.token)
            if isinstance(event, Failed):
                failures.append(event)
            if is_last(event):
                left[0] -= 1
                if left[0] == 0:
                    done.set()

        action = actions[number]
        operation_id = name or type(action).__name__
        engine.submit(_operation(number, operation_id, action), on_event)

    for number in range(len(actions)):
        listen(number)
    if not done.wait(_DEADLINE_SECONDS):
        raise RuntimeError(f"the engine has not answered after {_DEADLINE_SECONDS:g} s")
    if failures:
        raise RuntimeError(f"the engine failed: {failures[0].message}")
    return tokens


async def _through_service(address: str) -> tuple[float, float, float]:
    """Milliseconds of a round trip and of a token alone; tokens a second of eight sessions."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(_DEADLINE_SECONDS):
        trip_ms = await _round_trip_ms(channel)
        arrived = await _answer(channel, 0)
        gaps = [(after - before) * 1000 for before, after in pairwise(arrived)]
        answers = await asyncio.gather(*(_answer(channel, number) for number in range(SESSIONS)))
    # From when all of them answer: before that, some are still reading their prompts.
    begun = max(times[0] for times in answers)
    later = [moment for times in answers for moment in times if moment > begun]
    return trip_ms, statistics.median(gaps), len(later) / (max(later) - begun)


async def _round_trip_ms(channel: grpc.aio.Channel) -> float:
    call = LlmServiceStub(channel).Run()
    trips = []
    for number in range(_ROUND_TRIPS):
        cancel = llm_pb2.RunRequest(operation_id=f"cancel-{number}", session_id="bench")
        cancel.cancel.operation_id = "none"
        began = time.perf_counter()
        await call.write(cancel)
        await _read(call)
        trips.append((time.perf_counter() - began) * 1000)
    await call.done_writing()
    return statistics.median(trips)


async def _answer(channel: grpc.aio.Channel, number: int) -> list[float]:
    """Lets a session of its own answer; when each token came, in seconds."""
    session = f"bench-{number}-{time.time_ns()}"

    def request(name: str, branch: str = "main") -> llm_pb2.RunRequest:
        return llm_pb2.RunRequest(operation_id=name, session_id=session, branch=branch)

    call = LlmServiceStub(channel).Run()
    prefill = request("prefill")
    prefill.prefill.parts.add().tokens.ids.extend(int(token) for token in _prompt(number))
    await call.write(prefill)
    await _read(call)
    generate = request("generate")
    generate.generate.position, generate.generate.max_tokens = PROMPT, TOKENS
    generate.generate.return_hidden_states = True
    await call.write(generate)
    arrived = []
    while (await _read(call)).HasField("token"):
        arrived.append(time.perf_counter())
    close = request("close", branch="")
    close.close.SetInParent()
    await call.write(close)
    await _read(call)
    await call.done_writing()
    return arrived


async def _read(
    call: grpc.aio.StreamStreamCall[llm_pb2.RunRequest, llm_pb2.RunResponse],
) -> llm_pb2.RunResponse:
    response = await call.read()
    if not isinstance(response, llm_pb2.RunResponse) or response.HasField("error"):
        raise RuntimeError(f"the service failed: {response}")
    return response


def lines(report: LlmReport) -> list[str]:
    """The report for people."""
    found = [
        f"{report.dtype}, {report.threads} threads, {report.weight_bytes / 1e6:.0f} MB of weights",
        f"memory      {report.bandwidth_gb_s:8.1f} GB/s: no step below {report.floor_ms:.1f} ms",
        f"alone       {report.alone_tokens_s:8.1f} tokens/s ({report.alone_ms_per_token:.1f} ms)",
        f"with eight  {report.eight_tokens_s:8.1f} tokens/s ({report.ratio:.1f} times), "
        + ("each as alone" if report.exact else "NOT what each gets alone"),
        f"prefill     {report.prefill_ms:8.1f} ms for {PROMPT} positions",
        f"first five  {report.first_five_ms:8.1f} ms from the last embeddings to the fifth token",
    ]
    if report.service_eight_tokens_s is not None:
        found.append(
            f"service     {report.service_ms_per_token:8.1f} ms a token alone, "
            f"{report.service_eight_tokens_s:.1f} tokens/s with eight; "
            f"{report.round_trip_ms:.2f} ms for a message to the model and back"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="How fast the LLM is.")
    parser.add_argument("--preset", default="mini", help="whose LLM")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2, help="that compute")
    parser.add_argument("--address", help="gRPC address of a running llm service")
    parser.add_argument("--untrained", action="store_true", help="measure random weights")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    report = measure(given.preset, given.dtype, given.threads, given.address, given.untrained)
    print(json.dumps(asdict(report)) if given.json else "\n".join(lines(report)))


if __name__ == "__main__":
    main()
