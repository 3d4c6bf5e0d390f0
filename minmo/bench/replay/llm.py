"""An LLM that gives the answers that a real one gave, and keeps count of every branch."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc

from minmo.bench.replay.recording import Recording, token_place
from minmo.bench.replay.settings import LlmSettings
from minmo.rpc.queues import BoundedStream
from minmo.v1 import common_pb2, llm_pb2, llm_pb2_grpc

_LIMIT = 4096
_CHARACTERS_A_TOKEN = 4
_SIZES = {"role_start": 3, "turn_end": 2, "interruption": 4}


class RefusedError(Exception):
    """An operation cannot be carried out; `code` and `reason` are the contract's."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.position = position


@dataclass(frozen=True)
class _Part:
    """What was read: positions, and what it was if that matters."""

    size: int
    user_text: str = ""
    token_id: int = 0


@dataclass
class Branch:
    """What was read on a branch. No I/O and no clock."""

    parts: list[_Part] = field(default_factory=list)
    role: int = common_pb2.ROLE_UNSPECIFIED

    @property
    def length(self) -> int:
        """Positions."""
        return sum(part.size for part in self.parts)

    def read(self, prefill: llm_pb2.Prefill) -> list[int]:
        """Reads content; gives the length after each part. Raises RefusedError."""
        self.check(prefill.position)
        ends = []
        for part in prefill.parts:
            self._append(part)
            ends.append(self.length)
        return ends

    def check(self, position: int) -> None:
        """Raises RefusedError if the branch does not end at a position."""
        if position != self.length:
            raise RefusedError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "WRONG_POSITION",
                f"position is {position} where the branch ends at {self.length}",
                self.length,
            )

    def cut(self, position: int) -> None:
        """Forgets what stands behind a position."""
        kept: list[_Part] = []
        for part in self.parts:
            room = position - sum(before.size for before in kept)
            if room <= 0:
                break
            kept.append(part if part.size <= room else _Part(room, part.user_text))
        self.parts = kept

    def next_token(self, recording: Recording) -> tuple[int, int]:
        """Number of the answer that is to be given, and of the token in it that comes next."""
        last = self.parts[-1].token_id if self.parts else 0
        place = token_place(last)
        if place is not None:
            return place[0], place[1] + 1
        text = next((part.user_text for part in reversed(self.parts) if part.user_text), "")
        return recording.answer_to(text), 0

    def add(self, token_id: int) -> None:
        """Takes a token that was made."""
        self.parts.append(_Part(1, token_id=token_id))

    def _append(self, part: llm_pb2.PromptPart) -> None:
        kind = part.WhichOneof("part") or ""
        match kind:
            case "text":
                size = max(1, len(part.text) // _CHARACTERS_A_TOKEN)
                is_user = self.role == common_pb2.ROLE_USER
                self.parts.append(_Part(size, part.text if is_user else ""))
            case "tokens":
                for token_id in part.tokens.ids:
                    self.add(token_id)
            case "embeddings":
                self.parts.append(_Part(part.embeddings.rows))
            case _:
                if kind == "role_start":
                    self.role = part.role_start
                self.parts.append(_Part(_SIZES.get(kind, 1)))


class ReplayedLlm:
    """The LLM, for `minmo.rpc.server.serve`."""

    name = "llm"

    def __init__(self, settings: LlmSettings) -> None:
        self._servicer = _Servicer(settings)

    async def start(self) -> None:
        """Reads the recording."""
        await asyncio.to_thread(self._servicer.load)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the servicer."""
        llm_pb2_grpc.add_LlmServiceServicer_to_server(self._servicer, server)
        return [llm_pb2.DESCRIPTOR.services_by_name["LlmService"].full_name]

    async def stop(self) -> None:
        """Has nothing to release."""


class _Cache:
    """Branches of all sessions, as long as this process lives."""

    def __init__(self) -> None:
        self.replica_id = uuid.uuid4().hex[:12]
        self.branches: dict[tuple[str, str], Branch] = {}
        self.running: dict[tuple[str, str], asyncio.Event] = {}
        self.locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._epochs: dict[str, int] = {}

    def check_epoch(self, request: llm_pb2.RunRequest) -> None:
        """Raises RefusedError for an operation of before a rewind."""
        highest = self._epochs.get(request.session_id, 0)
        if request.epoch < highest:
            raise RefusedError(
                grpc.StatusCode.ABORTED, "STALE_EPOCH", f"epoch {request.epoch} is below {highest}"
            )
        self._epochs[request.session_id] = request.epoch

    def branch(self, session_id: str, name: str) -> Branch:
        """A branch that is there. Raises RefusedError."""
        found = self.branches.get((session_id, name))
        if found is None:
            raise RefusedError(
                grpc.StatusCode.NOT_FOUND, "CACHE_LOST", f"there is no branch {name!r} here"
            )
        return found

    def close(self, session_id: str, name: str) -> None:
        """Frees a branch, or a session's if the name is empty."""
        for key in [key for key in self.branches if key[0] == session_id]:
            if name in ("", key[1]):
                self.stop(key)
                del self.branches[key]
                self.locks.pop(key, None)
        if not name:
            self._epochs.pop(session_id, None)

    def stop(self, key: tuple[str, str]) -> None:
        """Stops the generation that runs on a branch."""
        if key in self.running:
            self.running[key].set()


class _Servicer(llm_pb2_grpc.LlmServiceServicer):
    def __init__(self, settings: LlmSettings) -> None:
        self._settings = settings
        self._recording: Recording | None = None
        self._model = llm_pb2.GetModelResponse()
        self._cache = _Cache()

    def load(self) -> None:
        """Reads the recording."""
        self._recording = Recording.read(self._settings.recording)
        self._model = llm_pb2.GetModelResponse.FromString(self._recording.model)
        self._model.replica_id = self._cache.replica_id

    async def Run(  # noqa: N802
        self,
        request_iterator: AsyncIterator[llm_pb2.RunRequest],
        context: grpc.aio.ServicerContext[llm_pb2.RunRequest, llm_pb2.RunResponse],
    ) -> AsyncIterator[llm_pb2.RunResponse]:
        """Carries out operations; the proto says how."""
        assert self._recording is not None, "calls are let in after the start"
        stream = _Stream(self._recording, self._cache)
        async with aclosing(stream.serve(request_iterator)) as answers:
            async for answer in answers:
                yield answer

    async def GetModel(  # noqa: N802
        self,
        request: llm_pb2.GetModelRequest,
        context: grpc.aio.ServicerContext[llm_pb2.GetModelRequest, llm_pb2.GetModelResponse],
    ) -> llm_pb2.GetModelResponse:
        """Says what was recorded."""
        return self._model


class _Stream:
    def __init__(self, recording: Recording, cache: _Cache) -> None:
        self._recording = recording
        self._cache = cache
        self._answers: BoundedStream[llm_pb2.RunResponse] = BoundedStream(_LIMIT)
        self._stops: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(
        self, requests: AsyncIterator[llm_pb2.RunRequest]
    ) -> AsyncGenerator[llm_pb2.RunResponse]:
        """Answers until the requests and what they asked for have ended."""
        reading = asyncio.create_task(self._read(requests))
        try:
            async for answer in self._answers:
                yield answer
        finally:
            for task in [reading, *self._tasks]:
                task.cancel()
            await asyncio.gather(reading, *self._tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[llm_pb2.RunRequest]) -> None:
        try:
            async for request in requests:
                kind = request.WhichOneof("operation")
                key = (request.session_id, request.branch)
                if kind == "cancel":
                    if (stop := self._stops.get(request.cancel.operation_id)) is not None:
                        stop.set()
                elif kind in ("truncate", "close"):
                    self._cache.stop(key)
                elif kind == "generate":
                    self._stops[request.operation_id] = asyncio.Event()
                # A lock is handed on in the order in which it was asked for.
                task = asyncio.create_task(self._carry_out(request, self._cache.locks[key]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.gather(*self._tasks)
            self._answers.close()
        except Exception as failure:
            self._answers.fail(failure)

    async def _carry_out(self, request: llm_pb2.RunRequest, lock: asyncio.Lock) -> None:
        answer = self._answer(request)
        try:
            if request.HasField("cancel"):
                answer.branch_done.SetInParent()
            else:
                async with lock:
                    self._cache.check_epoch(request)
                    await self._operate(request, answer)
        except RefusedError as refused:
            answer.error.code, answer.error.reason = refused.code.value[0], refused.reason
            answer.error.message, answer.error.position = str(refused), refused.position
        finally:
            self._stops.pop(request.operation_id, None)
        await self._answers.put(answer)

    async def _operate(self, request: llm_pb2.RunRequest, answer: llm_pb2.RunResponse) -> None:
        cache, session, name = self._cache, request.session_id, request.branch
        match request.WhichOneof("operation"):
            case "prefill":
                await self._prefill(request, answer)
            case "generate":
                await self._generate(request, answer)
            case "truncate":
                branch = cache.branch(session, name)
                await asyncio.sleep(self._recording.branch_seconds)
                branch.cut(request.truncate.position)
                answer.branch_done.position = request.truncate.position
            case "close":
                if name:
                    cache.branch(session, name)
                await asyncio.sleep(self._recording.branch_seconds)
                cache.close(session, name)
                answer.branch_done.position = 0
            case kind:
                # Only aligned mode forks.
                raise RefusedError(
                    grpc.StatusCode.UNIMPLEMENTED, "BAD_CONTENT", f"{kind} was not recorded"
                )

    async def _prefill(self, request: llm_pb2.RunRequest, answer: llm_pb2.RunResponse) -> None:
        key, prefill = (request.session_id, request.branch), request.prefill
        if prefill.position == 0:
            self._cache.branches.setdefault(key, Branch())
        branch = self._cache.branch(*key)
        branch.check(prefill.position)
        seconds = self._recording.prefill_seconds(prefill.ByteSize())
        await asyncio.sleep(seconds)
        answer.prefill_done.part_positions[:] = branch.read(prefill)
        answer.prefill_done.position = branch.length
        answer.prefill_done.elapsed_ms = seconds * 1000

    async def _generate(self, request: llm_pb2.RunRequest, answer: llm_pb2.RunResponse) -> None:
        key, wanted = (request.session_id, request.branch), request.generate
        branch = self._cache.branch(*key)
        branch.check(wanted.position)
        loop = asyncio.get_running_loop()
        began = loop.time()
        number, first = branch.next_token(self._recording)
        question = self._recording.questions[number]
        ids = list(self._recording.token_ids(number))
        stop = self._stops.setdefault(request.operation_id, asyncio.Event())
        self._cache.running[key] = stop
        reason, made = llm_pb2.FinishReason.ValueType(question.finish_reason), 0
        try:
            for place in range(first, len(ids)):
                if wanted.max_tokens and made == wanted.max_tokens:
                    reason = llm_pb2.FINISH_REASON_LENGTH
                    break
                # One that goes on in the middle has its first token as soon as an answer has.
                skipped = question.tokens[first].seconds - question.tokens[0].seconds
                due = began + question.tokens[place].seconds - skipped
                if await _stopped(stop, due - loop.time()):
                    reason = llm_pb2.FINISH_REASON_CANCELLED
                    break
                branch.add(ids[place])
                token = self._answer(request)
                token.token.index, token.token.id = made, ids[place]
                token.token.text = question.tokens[place].text
                await self._answers.put(token)
                made += 1
        finally:
            self._cache.running.pop(key, None)
        done = answer.generate_done
        done.reason, done.token_count, done.position = reason, made, branch.length
        done.elapsed_ms = (loop.time() - began) * 1000

    def _answer(self, request: llm_pb2.RunRequest) -> llm_pb2.RunResponse:
        return llm_pb2.RunResponse(
            operation_id=request.operation_id,
            session_id=request.session_id,
            branch=request.branch,
            epoch=request.epoch,
            replica_id=self._cache.replica_id,
        )


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    """Waits; True if it was stopped meanwhile."""
    if seconds > 0:
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            return False
    return stop.is_set()
