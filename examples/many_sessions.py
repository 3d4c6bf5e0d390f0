"""Asks in many sessions at once; prints how many answers came a minute, and how soon.

python examples/many_sessions.py 127.0.0.1:7100 8 examples/questions/*.ogg
"""

import asyncio
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from minmo.client import ClientError, Conversation, Recording, StatusError, TalkTurn, Target, ask


async def session(target: Target, question: Recording) -> list[TalkTurn]:
    """Asks in a session of its own."""
    async with Conversation(target, input_rate_hz=16_000, codec="opus") as conversation:
        return await ask(conversation, question, deadline_seconds=60)


async def main(address: str, count: int, questions: list[Recording]) -> None:
    """Asks in all sessions, and counts."""
    began = time.monotonic()
    chosen = islice(cycle(questions), count)
    ended = await asyncio.gather(
        *(session(Target(address), question) for question in chosen), return_exceptions=True
    )
    seconds = time.monotonic() - began
    turns: list[TalkTurn] = []
    for result in ended:
        match result:
            case ClientError() | StatusError():
                print("failed:", result)
            case BaseException():
                raise result
            case _:
                turns += result
    spoken = sum(turn.audio_ms for turn in turns) / 1000
    print(f"{len(turns)} answers in {count} sessions, {seconds:.1f} s:", end=" ")
    print(f"{len(turns) * 60 / seconds:.1f} a minute, {spoken / seconds:.2f} s of speech a second")
    waits = [turn.first_audio_ms for turn in turns if turn.first_audio_ms is not None]
    if waits:
        median, late = np.percentile(waits, (50, 95))
        print(f"first audio after the last word: median {median:.0f} ms, 95 % within {late:.0f} ms")


address, count, *paths = sys.argv[1:]
asyncio.run(main(address, int(count), [Recording.read(Path(path)) for path in paths]))
