"""The voice that reads the LLM, behind the cascade: untrained, so nothing is said about the sound.

What it is given is what counts: hidden states with every token, the user's words first, and an
instruction in words as what the LLM makes of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import numpy as np
import pytest
import pytest_asyncio

from minmo.client import Conversation, Target, speech
from minmo.client.events import TurnReport
from minmo.stack.stack import Stack
from minmo.v1 import conversation_pb2
from tests.system.conftest import SAME_LOOP
from tests.system.test_aligned import service
from tests.system.test_conversation import collect

pytestmark = SAME_LOOP

BRIEF = conversation_pb2.SessionSettings(max_answer_tokens=2)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def neural(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """A voice decoder with the network and an orchestrator, beside the stack's own services."""
    folder = tmp_path_factory.mktemp("neural")
    async with AsyncExitStack() as processes:
        _, voice_address = await processes.enter_async_context(
            service("voice_decoder", folder / "voice.json", "--voice=neural", "--random-weights")
        )
        _, address = await processes.enter_async_context(
            service(
                "orchestrator",
                folder / "orchestrator.json",
                f"--encoder-address={stack.addresses['encoder']}",
                f"--llm-address={stack.addresses['llm']}",
                f"--voice-decoder-address={voice_address}",
                f"--redis-url={stack.redis_url}",
                # Untrained, it does not stop soon, and computes long.
                "--voice-decoder-deadline-seconds=60",
            )
        )
        yield Target(address)


async def test_a_text_is_said_as_it_is_told_to(neural: Target) -> None:
    plain = await speech.say(neural, "Yes.")
    again = await speech.say(neural, "Yes.")
    told = await speech.say(neural, "Yes.", instruct="Say it slowly and sadly.")
    other = await speech.say(neural, "Yes.", instruct="Say it gladly.")
    assert np.array_equal(plain.samples, again.samples)
    for one, another in ((plain, told), (told, other)):
        assert len(one.samples) > 0
        assert not np.array_equal(one.samples, another.samples)


async def test_an_answer_in_the_cascade_is_spoken_with_hidden_states(neural: Target) -> None:
    settings = conversation_pb2.SessionSettings()
    settings.CopyFrom(BRIEF)
    settings.instruct = "sadly"
    async with Conversation(neural, input_rate_hz=16_000, settings=settings) as conversation:
        assert conversation.mode == "cascade"
        await conversation.send_text("Hello!")
        report = (await collect(conversation, TurnReport, 120))[-1]
    assert isinstance(report, TurnReport)
    assert report.outcome == "completed"
    assert report.heard_text == report.generated_text != ""
