"""The client without async, against a scripted server on a loop of its own."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from minmo.client import StatusError, Target, sync
from minmo.client.events import Ready, Refused, TurnAdded
from minmo.client.loop_thread import LoopThread
from minmo.rpc.errors import resource_exhausted
from tests.unit.scripted_server import Script, serving
from tests.unit.test_conversation_client import QUESTION

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def target(script: Script) -> Iterator[Target]:
    """The server runs on another thread, as the test blocks its own."""
    ports: list[int] = []
    started, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving(script) as port:
            ports.append(port)
            started.set()
            await asyncio.to_thread(over.wait, 60)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(20)
    yield Target(f"127.0.0.1:{ports[0]}")
    over.set()
    thread.join(20)


def client_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "minmo client"]


def test_a_question_is_asked_and_answered(target) -> None:
    with sync.Conversation(target, input_rate_hz=16_000) as conversation:
        (turn,) = conversation.ask(QUESTION)
    assert turn.generated_text == "It is this."
    assert not client_threads()


def test_events_are_iterated_to_the_end(target) -> None:
    with sync.Conversation(target, input_rate_hz=16_000) as conversation:
        added = conversation.add_turn("user", "Hello.")
        refused = conversation.delete_turn(2)
        conversation.finish()
        events = list(conversation)
    assert isinstance(events[0], Ready)
    assert events[0].session_id == conversation.session_id
    assert [type(event) for event in events[1:]] == [TurnAdded, Refused]
    assert [event.request_id for event in events[1:]] == [added, refused]


def test_threads_may_speak_while_another_listens(target, script) -> None:
    frame = np.full(160, 0.01, np.float32)
    with sync.Conversation(target, input_rate_hz=16_000) as conversation:

        def speak() -> None:
            for _ in range(25):
                conversation.send_audio(frame)

        speakers = [threading.Thread(target=speak) for _ in range(4)]
        for speaker in speakers:
            speaker.start()
        for speaker in speakers:
            speaker.join(20)
        conversation.finish()
        list(conversation)
    assert sum(map(len, script.audio)) == 4 * 25 * 160


def test_many_conversations_share_one_thread(target) -> None:
    with (
        sync.Conversation(target, input_rate_hz=16_000) as one,
        sync.Conversation(target, input_rate_hz=8_000) as other,
    ):
        assert one.session_id != other.session_id
        assert len(client_threads()) == 1
    assert not client_threads()


def test_nothing_happened_is_a_timeout(target) -> None:
    with sync.Conversation(target, input_rate_hz=16_000) as conversation:
        assert isinstance(conversation.receive(10), Ready)
        with pytest.raises(TimeoutError):
            conversation.receive(0.05)


def test_a_refusal_is_raised_and_leaves_no_thread(target, script) -> None:
    script.refusal = resource_exhausted("too many sessions", limit="3 sessions")
    with pytest.raises(StatusError) as refused, sync.Conversation(target, input_rate_hz=16_000):
        pass
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not client_threads()


def test_one_that_is_closed_says_so(target) -> None:
    with sync.Conversation(target, input_rate_hz=16_000) as conversation:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        conversation.send_text("Hello?")


def test_a_listener_that_calls_back_is_told_instead_of_hanging(target) -> None:
    with (
        pytest.raises(RuntimeError, match="must not call it and wait"),
        sync.Conversation(target, input_rate_hz=16_000) as conversation,
    ):
        conversation.ask(QUESTION, listener=lambda _: conversation.interrupt())


def test_one_shot_calls_raise_what_the_server_says(target) -> None:
    with pytest.raises(StatusError) as refused:
        sync.say(target, "Hello.")
    assert refused.value.code is grpc.StatusCode.UNIMPLEMENTED
    assert not client_threads()


def test_ctrl_c_ends_the_iteration_and_the_conversation(target) -> None:
    # What runs in a shell's background is started with SIGINT ignored, and hands that on.
    program = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from minmo.client import Target, sync
try:
    with sync.Conversation(Target("{target.address}"), input_rate_hz=16_000) as conversation:
        print("ready", flush=True)
        for event in conversation:
            pass
except KeyboardInterrupt:
    print("stopped")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.2)  # it waits for an event that never comes
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait(10)
    assert (process.returncode, out, errors) == (0, "stopped\n", "")


def test_what_a_stopped_loop_never_does_is_not_waited_for(monkeypatch) -> None:
    def forgotten(coroutine, _) -> Future:
        coroutine.close()
        return Future()

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", forgotten)
    thread = LoopThread()
    thread.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(thread.run, asyncio.sleep(0))
        thread.release()
        with pytest.raises(RuntimeError, match=r"closed meanwhile|not open"):
            waiting.result(10)
