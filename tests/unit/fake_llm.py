"""An LLM service in this process that counts instead of thinking.

Its cache is a list of units a branch: one for each byte of text, each token, each role. The next
token's id is the number of units read, so a token tells what the LLM had read when it made it.
Hidden states and embeddings tell their position.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
from grpc_status import rpc_status

from minmo.rpc.errors import unavailable
from minmo.v1 import llm_pb2
from minmo.v1.common_pb2 import FloatMatrix
from minmo.v1.llm_pb2_grpc import LlmServiceServicer, add_LlmServiceServicer_to_server

WIDTH, HIDDEN, EMBEDDING = 4, 1, 2


def rows_of(positions: range, kind: int) -> FloatMatrix:
    """A row for each position, which tells the position and of what kind it is."""
    rows = [[position, kind, 0, 0] for position in positions]
    data = np.array(rows, "<f4").tobytes()
    return FloatMatrix(data=data, rows=len(rows), columns=WIDTH)


def units_of(part: llm_pb2.PromptPart) -> list[str]:
    kind = part.WhichOneof("part")
    if kind == "text":
        return list(part.text)
    if kind == "tokens":
        return [f"#{token}" for token in part.tokens.ids]
    if kind == "embeddings":
        return ["~"] * part.embeddings.rows
    return [f"<{kind}>"]


class FakeLlm(LlmServiceServicer):
    """Keeps `branches`; `stop_after` tokens end an answer, or the end of a `script` of texts."""

    def __init__(self) -> None:
        self.branches: dict[str, list[str]] = {}
        self.operations: list[str] = []
        self.prefills: list[llm_pb2.Prefill] = []
        self.stop_after = 5
        self.script: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.probed: list[str] = []
        self.probe_gate = asyncio.Event()
        self.probe_gate.set()
        self.refuse: list[str] = []
        self.break_stream = 0
        self.epoch = 0
        self.streams = 0
        self._draining = asyncio.Event()

    def lose_cache(self) -> None:
        self.branches.clear()

    def drain(self) -> None:
        """Ends the streams that are open, as a replica does that stops."""
        self._draining.set()
        self._draining = asyncio.Event()

    async def Run(
        self,
        request_iterator: AsyncIterator[llm_pb2.RunRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[llm_pb2.RunResponse]:
        answers: asyncio.Queue[llm_pb2.RunResponse] = asyncio.Queue()
        running: dict[str, asyncio.Task[None]] = {}

        async def read() -> None:
            async for request in request_iterator:
                kind = str(request.WhichOneof("operation"))
                self.operations.append(kind)
                if kind == "cancel":
                    running[request.cancel.operation_id].cancel()
                    continue
                running[request.operation_id] = asyncio.create_task(
                    self.carry_out(request, answers)
                )

        self.streams += 1
        reader = asyncio.create_task(read())
        draining = asyncio.create_task(self._draining.wait())
        try:
            while True:
                next_answer = asyncio.create_task(answers.get())
                await asyncio.wait({next_answer, draining}, return_when=asyncio.FIRST_COMPLETED)
                if draining.done():
                    next_answer.cancel()
                    status = unavailable("the server stops", reason="DRAINING").to_status()
                    await context.abort_with_status(rpc_status.to_status(status))
                answer = next_answer.result()
                if self.break_stream and answer.HasField("token"):
                    self.break_stream -= 1
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server died")
                yield answer
        finally:
            reader.cancel()
            draining.cancel()
            for task in running.values():
                task.cancel()

    async def carry_out(
        self, request: llm_pb2.RunRequest, answers: asyncio.Queue[llm_pb2.RunResponse]
    ) -> None:
        kind = request.WhichOneof("operation")
        answer = llm_pb2.RunResponse(
            operation_id=request.operation_id, branch=request.branch, replica_id="fake"
        )

        def fail(reason: str) -> None:
            answer.error.CopyFrom(
                llm_pb2.OperationError(code=9, reason=reason, message=f"{kind}: {reason}")
            )
            answers.put_nowait(answer)

        if request.epoch < self.epoch:
            return fail("STALE_EPOCH")
        self.epoch = request.epoch
        if self.refuse:
            return fail(self.refuse.pop())
        cache = self.branches.get(request.branch)
        if kind == "close":
            for name in [request.branch] if request.branch else list(self.branches):
                self.branches.pop(name, None)
            answer.branch_done.position = 0
        elif kind == "prefill":
            if cache is None and request.prefill.position:
                return fail("CACHE_LOST")
            cache = self.branches.setdefault(request.branch, [])
            if len(cache) != request.prefill.position:
                return fail("WRONG_POSITION")
            done, prefill = answer.prefill_done, request.prefill
            self.prefills.append(prefill)
            for part in prefill.parts:
                cache += units_of(part)
                done.part_positions.append(len(cache))
                if prefill.return_tokens:
                    done.tokens.extend(
                        llm_pb2.TextPiece(id=ord(unit), text=unit) for unit in part.text
                    )
            done.position = len(cache)
            read = range(prefill.position, len(cache))[-prefill.return_last :]
            if prefill.return_hidden_states:
                done.hidden_states.CopyFrom(rows_of(read, HIDDEN))
            if prefill.return_embeddings:
                done.embeddings.CopyFrom(rows_of(read, EMBEDDING))
        elif kind == "fork":
            source = self.branches.get(request.fork.source)
            if source is None:
                return fail("CACHE_LOST")
            self.branches[request.branch] = source[: request.fork.position]
            answer.branch_done.position = request.fork.position
        elif kind == "probe":
            if cache is None:
                return fail("CACHE_LOST")
            if len(cache) != request.probe.position:
                return fail("WRONG_POSITION")
            self.probed.append("".join(cache))
            await self.probe_gate.wait()
            # The share of the branch that was read, which tells probes apart.
            answer.probe_done.position = len(cache)
            answer.probe_done.turn.assistant_turn = len(cache) / 100
        elif kind == "truncate":
            if cache is None:
                return fail("CACHE_LOST")
            del cache[request.truncate.position :]
            answer.branch_done.position = len(cache)
        elif kind == "generate":
            if cache is None:
                return fail("CACHE_LOST")
            if len(cache) != request.generate.position:
                return fail("WRONG_POSITION")
            await self.generate(request, cache, answers)
            return None
        answers.put_nowait(answer)
        return None

    async def generate(
        self,
        request: llm_pb2.RunRequest,
        cache: list[str],
        answers: asyncio.Queue[llm_pb2.RunResponse],
    ) -> None:
        made = last = 0
        reason = llm_pb2.FINISH_REASON_STOP
        try:
            script = list(self.script)
            stop_after = len(script) if script else self.stop_after
            while made < min(stop_after, request.generate.max_tokens):
                await self.gate.wait()
                await asyncio.sleep(0)
                if made:
                    cache.append(f"#{last}")
                last = len(cache)
                text = script[made] if script else f" {last}"
                token = llm_pb2.Token(index=made, id=last, text=text)
                if request.generate.return_hidden_states:
                    token.hidden_state = rows_of(range(last - 1, last), HIDDEN).data
                answers.put_nowait(
                    llm_pb2.RunResponse(operation_id=request.operation_id, token=token)
                )
                made += 1
            cache.append(f"#{last}")
        except asyncio.CancelledError:
            reason = llm_pb2.FINISH_REASON_CANCELLED
        answers.put_nowait(
            llm_pb2.RunResponse(
                operation_id=request.operation_id,
                generate_done=llm_pb2.GenerateDone(
                    reason=reason, token_count=made, position=len(cache)
                ),
            )
        )

    async def GetModel(
        self, request: llm_pb2.GetModelRequest, context: grpc.aio.ServicerContext
    ) -> llm_pb2.GetModelResponse:
        return llm_pb2.GetModelResponse(width=WIDTH, context_length=100, slots=4, replica_id="fake")


@asynccontextmanager
async def served(llm: FakeLlm) -> AsyncIterator[grpc.aio.Channel]:
    """The service on a port of this machine, and a channel to it."""
    server = grpc.aio.server()
    add_LlmServiceServicer_to_server(llm, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)
