"""What tracing costs a turn, in CPU time: ``python tools/tracing_cost.py [--turns 1000]``.

Makes the spans that the services make of one spoken turn (docs/tracing.md shows one), in one
process, with the services' own code, and sends them to a collector in another process, as services
do. What is measured is the time of this process: all of it, and that of the thread that talks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minmo.rpc import metrics, tracing
from minmo.rpc.metadata import call_metadata
from minmo.rpc.spans import Tracer, exporter

ROOT = Path(__file__).parent.parent
STAGES = ("endpointing", "recognise", "prefill", "first_token", "first_text_to_voice")


def turn() -> None:
    """The spans of one turn, as the orchestrator, the gateway and the others make them."""
    now = time.monotonic()
    trace = tracing.begin_trace("turn", began=now, session_id="s0123456789abcdef", mode="cascade")
    with tracing.within(trace):
        for call, server, steps in (
            ("encoder.recognise", "recognise", ("wait", "compute")),
            ("llm.prefill", "prefill", ("triton.prefill",)),
            ("llm.generate", "generate", ("triton.generate",)),
            ("voice_decoder.decode", "decode", ("first_audio", "piece", "piece")),
        ):
            with tracing.span(call, kind="client"):
                parent = dict(call_metadata("s0123456789abcdef")).get("traceparent", "")
                with tracing.span(server, parent=parent, kind="server") as served:
                    served.event("first_answer")
                    for step in steps:
                        tracing.begin(step, began=now).end(now)
        for _ in range(3):
            with tracing.span("redis.put_turn", kind="client"):
                pass
        told = tracing.traceparent()
    for name in ("send_user_turn_ended", "send_assistant_started", "play"):
        tracing.begin(name, parent=told, began=now).end()
    for stage in (*STAGES, "first_audio", "spoken"):
        tracing.begin(stage, parent=trace, began=now).end(now)
    trace.set(tokens=13, audio_ms=3781, outcome="completed")
    trace.end()


@contextmanager
def collector() -> Iterator[str]:
    """A collector in a process of its own; where it is."""
    program = (
        "import sys; from tests.otlp_collector import collecting\n"
        "with collecting() as made: print(made.address, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def measure(turns: int) -> tuple[float, float]:
    """CPU milliseconds a turn: of the whole process, and of the thread that talks."""
    began, thread_began = time.process_time(), time.thread_time()
    for _ in range(turns):
        turn()
        # A conversation has its turns seconds apart: what was made is sent meanwhile.
        time.sleep(0.005)
    thread = time.thread_time() - thread_began
    tracing.stop()
    return 1000 * (time.process_time() - began) / turns, 1000 * thread / turns


def main() -> None:
    """Measures, and prints JSON."""
    parser = argparse.ArgumentParser(description="What tracing costs a turn, in CPU time.")
    parser.add_argument("--turns", type=int, default=1000)
    turns = parser.parse_args().turns
    off, off_thread = measure(turns)
    with collector() as address:
        tracing.use(Tracer("cost", 1.0, exporter(address)))
        measure(50)  # first times cost more
        tracing.use(Tracer("cost", 1.0, exporter(address)))
        before = metrics.SPANS.labels("exported")._value.get()
        on, on_thread = measure(turns)
        exported = metrics.SPANS.labels("exported")._value.get() - before
    print(
        json.dumps(
            {
                "turns": turns,
                "spans_a_turn": exported / turns,
                "off_cpu_ms_a_turn": round(off, 3),
                "on_cpu_ms_a_turn": round(on, 3),
                "of_which_the_thread_that_talks": round(on_thread, 3),
                "off_thread_ms_a_turn": round(off_thread, 3),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
