"""Takes the engine's events off its thread: telling Triton takes a millisecond that no step has.

One thread sends what happened, and asks between whether somebody has gone.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from minmo.engine.operations import Event, is_last
from minmo.triton import codec
from minmo.v1 import llm_pb2

log = logging.getLogger(__name__)

# Less than a step of the model.
_POLL_SECONDS = 0.02
# Tokens of all sessions; who is this far behind is not coming back.
_MAX_WAITING = 16_384


class Reply:
    """The way back of one request: what the engine calls.

    Args:
        outbox: of the responder.
        request: what is answered.
        send: sends a serialised response; True with the last one.
        has_gone: whether Triton's client has cancelled or died.
    """

    def __init__(
        self,
        outbox: queue.Queue[tuple[Reply, Event] | None],
        request: llm_pb2.RunRequest,
        send: Callable[[bytes, bool], None],
        has_gone: Callable[[], bool],
    ) -> None:
        self._outbox = outbox
        self._cancelled = False
        self.request = request
        self.send = send
        self.has_gone = has_gone

    def on_event(self, event: Event) -> None:
        """Takes an event of the operation.

        Raises:
            queue.Full: Triton takes nothing any more.
        """
        self._outbox.put_nowait((self, event))

    def is_cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled

    def cancel(self) -> None:
        """Makes `is_cancelled` true."""
        self._cancelled = True


class Responder:
    """Sends the events of all requests, on a thread of its own.

    Args:
        replica: id of the engine, which every response carries.
    """

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._outbox: queue.Queue[tuple[Reply, Event] | None] = queue.Queue(_MAX_WAITING)
        self._open: set[Reply] = set()
        self._opened: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="llm-responder", daemon=True)
        self._thread.start()

    def open(
        self,
        request: llm_pb2.RunRequest,
        send: Callable[[bytes, bool], None],
        has_gone: Callable[[], bool],
    ) -> Reply:
        """The way back of a new request; from any thread."""
        reply = Reply(self._outbox, request, send, has_gone)
        self._opened.put(reply)
        return reply

    def stop(self) -> None:
        """Sends what waits, and ends the thread."""
        self._outbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        polled = 0.0
        while True:
            try:
                item = self._outbox.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                pass
            else:
                if item is None:
                    return
                self._send(*item)
                # Triton waits at its end for every request that somebody still holds.
                del item
            if time.monotonic() - polled > _POLL_SECONDS:
                self._poll()
                polled = time.monotonic()

    def _send(self, reply: Reply, event: Event) -> None:
        last = is_last(event)
        if last:
            self._take_opened()
            self._open.discard(reply)
        response = codec.response_of(reply.request, event, self._replica)
        try:
            reply.send(response.SerializeToString(), last)
        except Exception:
            log.exception("Triton takes no response; the operation is cancelled")
            reply.cancel()

    def _poll(self) -> None:
        self._take_opened()
        for reply in self._open:
            try:
                if reply.has_gone():
                    reply.cancel()
            except Exception:
                log.exception("Triton does not say whether a request is cancelled")
                reply.cancel()

    def _take_opened(self) -> None:
        while not self._opened.empty():
            self._open.add(self._opened.get())
