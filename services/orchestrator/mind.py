"""The LLM, as a conversation sees it: what it has read, whichever replica holds the cache.

`Context` is one branch of the session: the list of all that the LLM has read, and how much of it is
in the cache. Content is added to the list first and read by `sync`; so when a cache is lost
(another replica, a restart), the same `sync` reads everything again, and nobody else needs to know.

A stream that ends because its process stops leaves the cache as it is; the next one, which finds
the same replica, goes on with it (`resume`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from minmo.rpc import metrics
from minmo.rpc.errors import StatusError, aborted, unavailable
from minmo.v1 import llm_pb2
from minmo.v1.common_pb2 import FloatMatrix
from services.orchestrator.items import Item, token
from services.orchestrator.link import MOVED, Link, LlmError, Operation
from services.orchestrator.query import Query, asks_for, forget, keep, query_of
from services.orchestrator.retry import Outage

log = structlog.get_logger()

_LOST = {
    *("UPSTREAM", "CACHE_LOST", "WRONG_POSITION", "NO_SLOT", "BUSY", "CANCELLED", "LINK"),
    MOVED,
}
"""Reasons after which reading everything again, a little later, can succeed."""
_MESSAGE_BYTES = 1_000_000
_CANCEL_SECONDS = 2.0


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 0.0
    top_p: float = 0.9
    seed: int = 0
    repetition_penalty: float = 1.1


@dataclass
class Epoch:
    """The session's epoch, shared by its branches."""

    number: int
    advance: Callable[[], Awaitable[int]]

    async def next(self) -> int:
        """Counts up: what was sent before is stale from now on."""
        self.number = await self.advance()
        return self.number


class Context:
    """What the LLM has read on one branch.

    Methods that talk to the LLM run one after another, in the order of their calls. Each of them
    recovers by itself from a lost service, Triton or cache, for up to `recovery_seconds`.

    Args:
        link: to the LLM service.
        epoch: the session's.
        branch: name of the branch in the cache.
        recovery_seconds: how long to try before giving up.
        on_outage: told True when the LLM was lost, False when it is back.
    """

    def __init__(
        self,
        link: Link,
        epoch: Epoch,
        branch: str,
        *,
        recovery_seconds: float,
        on_outage: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._link = link
        self._epoch = epoch
        self._branch = branch
        self._recovery_seconds = recovery_seconds
        self._on_outage = on_outage
        self._items: list[Item] = []
        self._read = 0
        self._position = 0
        self._clean = True
        self._surplus = False
        self._draft: Operation | None = None
        self._draft_version = 0
        self._moves = link.moves
        self._lock = asyncio.Lock()
        self.version = 0
        """Changes with what is to be read."""
        self.query_positions = 0
        """Positions of the user's latest words of which it keeps what the LLM makes of them."""

    @property
    def branch(self) -> str:
        """Name of the branch."""
        return self._branch

    @property
    def is_read(self) -> bool:
        """Whether everything has been read, and nothing is under way."""
        all_read = self._read == len(self._items) and not self._surplus
        return self._here() and all_read and not self._lock.locked()

    @property
    def size(self) -> int:
        """Positions of everything, including what has not been read yet (estimated)."""
        return sum(item.size for item in self._items)

    def __len__(self) -> int:
        """Number of items: a place to `rewind` or `fork` to."""
        return len(self._items)

    def query(self) -> Query:
        """The user's latest words as the voice reads them first, as far as they have been read."""
        return query_of(self._items, self.query_positions)

    def add(self, items: Iterable[Item]) -> None:
        """Appends content; `sync` makes the LLM read it."""
        self._items.extend(items)
        self.version += 1

    def replace(self, items: Iterable[Item]) -> None:
        """Puts other content in the place of everything; the cache is built anew by `sync`."""
        self._items = list(items)
        self.version += 1
        self._forget()

    def resume(self, items: Iterable[Item], position: int) -> None:
        """Takes a cache as it is found: `items` have been read, and end at `position`.

        Where that is not so any more, the LLM says it, and they are read again.
        """
        self._items = list(items)
        self._read, self._position, self._clean = len(self._items), position, True
        # What it read may have been other tokens of the same text.
        self._items[0].size += position - self.size

    async def rewrite(self, items: Iterable[Item], *, keep_from: int) -> None:
        """Puts other content in the place of the items before `keep_from`; as `replace`."""
        async with self._lock:
            self.replace([*items, *self._items[keep_from:]])

    def beside(self, branch: str, items: Iterable[Item]) -> Context:
        """A branch of its own, which reads `items` and nothing of this one."""
        other = self._other(branch)
        other._items = list(items)
        return other

    async def sync(self) -> None:
        """Makes the LLM read what it has not read. Raises StatusError if it can't be had.

        What is added later is not waited for: there may always be more of it.
        """
        upto = len(self._items)

        async def work() -> None:
            async with self._lock:
                await self._recovering(lambda: self._sync(upto))

        await _to_its_end(work())

    async def read_aloud(self, content: Sequence[Item]) -> llm_pb2.PrefillDone:
        """Makes the LLM read content as if it had made it.

        Returns:
            The tokens of what is text in it, and the hidden states of all its positions.

        Raises:
            StatusError: the LLM cannot be had, or the content is too long for one message.
        """
        done: list[llm_pb2.PrefillDone] = []

        async def read() -> None:
            before = len(self._items) - len(content)
            await self._sync(before)
            done.append(await self._prefill(content, return_hidden_states=True, return_tokens=True))

        async def work() -> None:
            async with self._lock:
                self._items.extend(content)
                await self._recovering(read)

        await _to_its_end(work())
        return done[-1]

    async def rewind(self, length: int) -> None:
        """Forgets the items from `length` on."""

        async def work() -> None:
            async with self._lock:
                del self._items[length:]
                self.version += 1
                await self.drop_draft()
                if length < self._read:
                    await self._recovering(lambda: self._truncate(length))

        await _to_its_end(work())

    async def probe(self, embedding: FloatMatrix) -> llm_pb2.TurnProbabilities | None:
        """Asks the full-duplex predictor, after all that is to be read by now, and adds nothing.

        Args:
            embedding: one row, of `minmo.model.probing`.

        Returns:
            What it says; None where it cannot be asked.
        """
        said: list[llm_pb2.TurnProbabilities] = []
        upto = len(self._items)

        async def work() -> None:
            async with self._lock:
                await self._recovering(lambda: self._sync(upto))
                try:
                    response = await self._link.operate(
                        self._request(
                            probe=llm_pb2.Probe(position=self._position, embedding=embedding)
                        )
                    )
                    said.append(response.probe_done.turn)
                except LlmError as failure:
                    log.info("probe failed", reason=failure.reason, error=str(failure))

        try:
            await _to_its_end(work())
        except StatusError as failure:
            log.info("probe failed", error=str(failure))
        return said[0] if said else None

    async def draft(self, max_tokens: int, sampling: Sampling, *, hidden_states: bool) -> bool:
        """Lets the LLM go on before anybody wants to know how; `generate` takes what it makes.

        Returns:
            Whether it does; False where its cache would have to be built for it.
        """
        async with self._lock:
            if not self._clean:
                return False
            try:
                await self._sync()
                draft = self._link.start(self._generation(max_tokens, sampling, hidden_states))
                await draft.send()
            except LlmError as failure:
                log.info("no draft", reason=failure.reason, error=str(failure))
                self._lose(failure)
                return False
            self._draft, self._draft_version = draft, self.version
            return True

    async def drop_draft(self) -> None:
        """Stops a draft that nobody takes."""
        draft, self._draft = self._draft, None
        if draft is not None:
            async with draft:
                metrics.count_drafted("wasted", await self._stop(draft))

    async def fork(self, branch: str, length: int) -> Context:
        """A branch that has read the first `length` items; it may be used side by side with this.

        Does not wait for what runs on this branch.
        """
        other = self._other(branch)
        other._items = list(self._items[:length])
        if not self._here():
            other._forget()
            return other
        read = min(length, self._read)
        position = sum(item.size for item in other._items[:read])
        try:
            await self._link.operate(
                other._request(fork=llm_pb2.Fork(source=self._branch, position=position))
            )
            other._read, other._position = read, position
        except LlmError as failure:
            # The branch reads everything itself then.
            log.info("fork failed", reason=failure.reason, error=str(failure))
            other._forget()
        return other

    async def close(self, *, whole_session: bool = False) -> None:
        """Frees the branch, or all of the session's; an LLM that is gone has freed it already."""
        async with self._lock:
            await self.drop_draft()
            request = self._request(close=llm_pb2.Close())
            if whole_session:
                request.branch = ""
            try:
                await self._link.operate(request)
            except LlmError as failure:
                log.info("close failed", reason=failure.reason)
            self._forget()

    async def generate(
        self, max_tokens: int, sampling: Sampling, *, hidden_states: bool
    ) -> AsyncGenerator[llm_pb2.Token]:
        """Lets the LLM go on: yields tokens, which are added to the items as they come.

        Stopping the iteration (``aclose``, cancellation) stops the LLM within one step.
        """
        await self.sync()
        async with self._lock:
            made = 0
            search = _Search(self._recovery_seconds, self._on_outage)
            while made < max_tokens:
                try:
                    await self._sync()
                    answers = self._generate(max_tokens - made, sampling, hidden_states)
                    # Closing it here stops the LLM with the answer, not when it is collected.
                    async with aclosing(answers):
                        async for answer in answers:
                            await search.over()
                            answer.index = made
                            made += 1
                            yield answer
                    return
                except LlmError as failure:
                    self._lose(failure)
                    await search.wait(failure)

    async def _generate(
        self, max_tokens: int, sampling: Sampling, hidden_states: bool
    ) -> AsyncGenerator[llm_pb2.Token]:
        operation, self._draft = self._draft, None
        if operation is None:
            operation = self._link.start(self._generation(max_tokens, sampling, hidden_states))
        async with operation:
            drafted = operation.unread
            finished = False
            try:
                while not finished:
                    response = await operation.answer()
                    if response.HasField("token"):
                        # The LLM has read all before a token to predict it.
                        self._generated(self.size)
                        self._items.append(token(response.token.id))
                        if response.token.index < drafted:
                            metrics.count_drafted("used", 1)
                        yield response.token
                    else:
                        self._generated(response.generate_done.position)
                        finished = True
            except LlmError:
                finished = True
                raise
            finally:
                if not finished:
                    await asyncio.shield(self._stop(operation))

    def _generation(
        self, max_tokens: int, sampling: Sampling, hidden_states: bool
    ) -> llm_pb2.RunRequest:
        return self._request(
            generate=llm_pb2.Generate(
                position=self._position,
                max_tokens=max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                repetition_penalty=sampling.repetition_penalty,
                return_hidden_states=hidden_states,
            )
        )

    async def _stop(self, operation: Operation) -> int:
        """Stops a generation and learns how far the cache got; forgets the cache if it cannot.

        Returns:
            How many tokens it has made.
        """
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                done = (await operation.stop()).generate_done
        except (LlmError, TimeoutError) as failure:
            log.info("stopping the LLM failed", error=str(failure))
            self._forget()
            return 0
        self._generated(done.position)
        # Tokens that nobody took are in the cache all the same.
        self._surplus = self._position < done.position
        return done.token_count

    def _generated(self, position: int) -> None:
        """Notes which of the generated tokens are in the cache, which ends at `position`."""
        while self._read < len(self._items) and self._position < position:
            self._position += self._items[self._read].size
            self._read += 1

    def _here(self) -> bool:
        """Whether the replica that had the cache has not sent the session away."""
        return self._moves == self._link.moves

    def _lose(self, failure: LlmError) -> None:
        """Forgets the cache, and a replica that cannot carry operations out any more."""
        self._forget()
        if failure.reason == "UPSTREAM" or failure.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._link.leave()

    async def _sync(self, upto: int | None = None) -> None:
        """Reads what has not been read, or the items before `upto`."""
        if not self._here():
            self._forget()
        if self._draft_version != self.version:
            await self.drop_draft()
        if not self._clean:
            await self._start_anew()
        if self._surplus:
            await self._cut(self._position)
        while self._read < len(self._items[:upto]):
            batch = self._next_batch(upto)
            wanted = asks_for(batch, self.query_positions)
            done = await self._prefill(
                batch,
                return_hidden_states=wanted > 0,
                return_embeddings=wanted > 0,
                return_last=wanted,
            )
            if wanted:
                keep(batch, done)
                forget(self._items, self.query_positions)

    async def _prefill(
        self,
        batch: Sequence[Item],
        *,
        return_hidden_states: bool,
        return_embeddings: bool = False,
        return_last: int = 0,
        return_tokens: bool = False,
    ) -> llm_pb2.PrefillDone:
        """Reads items, the next ones."""
        response = await self._link.operate(
            self._request(
                prefill=llm_pb2.Prefill(
                    position=self._position,
                    parts=[item.part for item in batch],
                    return_hidden_states=return_hidden_states,
                    return_embeddings=return_embeddings,
                    return_last=return_last,
                    return_tokens=return_tokens,
                )
            )
        )
        done = response.prefill_done
        for item, end in zip(batch, done.part_positions, strict=True):
            item.size = end - self._position
            self._position = end
        self._read += len(batch)
        return done

    def _other(self, branch: str) -> Context:
        other = Context(
            self._link,
            self._epoch,
            branch,
            recovery_seconds=self._recovery_seconds,
            on_outage=self._on_outage,
        )
        other.query_positions = self.query_positions
        return other

    def _next_batch(self, upto: int | None) -> list[Item]:
        batch: list[Item] = []
        total = 0
        for item in self._items[self._read : upto]:
            total += item.part.ByteSize()
            if batch and total > _MESSAGE_BYTES:
                break
            batch.append(item)
        return batch

    async def _truncate(self, length: int) -> None:
        if not self._here():
            self._forget()
        if length >= self._read:
            return
        position = sum(item.size for item in self._items[:length])
        await self._cut(position)
        self._read, self._position = length, position

    async def _cut(self, position: int) -> None:
        await self._epoch.next()
        await self._link.operate(self._request(truncate=llm_pb2.Truncate(position=position)))
        self._surplus = False

    async def _start_anew(self) -> None:
        """Drops the branch, under a new epoch, so that everything is read again."""
        await self._epoch.next()
        self._read = self._position = 0
        try:
            await self._link.operate(self._request(close=llm_pb2.Close()))
        except LlmError as failure:
            if failure.reason != "CACHE_LOST":
                raise
        self._clean = True

    def _forget(self) -> None:
        self._read = self._position = 0
        self._clean = self._surplus = False
        self._moves = self._link.moves

    async def _recovering(self, work: Callable[[], Awaitable[None]]) -> None:
        search = _Search(self._recovery_seconds, self._on_outage)
        while True:
            try:
                await work()
                await search.over()
                return
            except LlmError as failure:
                self._lose(failure)
                await search.wait(failure)

    def _request(
        self,
        *,
        prefill: llm_pb2.Prefill | None = None,
        generate: llm_pb2.Generate | None = None,
        probe: llm_pb2.Probe | None = None,
        fork: llm_pb2.Fork | None = None,
        truncate: llm_pb2.Truncate | None = None,
        close: llm_pb2.Close | None = None,
    ) -> llm_pb2.RunRequest:
        return llm_pb2.RunRequest(
            operation_id=self._link.new_operation_id(),
            branch=self._branch,
            epoch=self._epoch.number,
            prefill=prefill,
            generate=generate,
            probe=probe,
            fork=fork,
            truncate=truncate,
            close=close,
        )


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Waits for work that goes on when the wait is cancelled.

    An operation whose answer nobody awaits would leave it open what is in the cache.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        # Nobody asks any more how it ends.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise


class _Search:
    """Looks for the LLM again, and gives up in the end."""

    def __init__(self, seconds: float, on_outage: Callable[[bool], Awaitable[None]]) -> None:
        self._seconds = seconds
        self._outage = Outage(seconds, lambda problem: on_outage(bool(problem)))

    async def wait(self, failure: LlmError) -> None:
        """Waits before the next try; raises StatusError when there should be none."""
        if failure.reason == "STALE_EPOCH":
            raise aborted(
                "the session was taken over by another stream", reason="SESSION_TAKEN_OVER"
            )
        if failure.reason not in _LOST:
            raise failure.to_status()
        log.info("the LLM's cache is built again", reason=failure.reason, error=str(failure))
        if not await self._outage.wait(str(failure)):
            raise unavailable(
                f"the LLM could not be had within {self._seconds:g} s: {failure}",
                reason="LLM_UNAVAILABLE",
            )

    async def over(self) -> None:
        """The LLM answered."""
        await self._outage.over()
