"""All of MinMo as real processes, once for all tests here, and ways to talk with it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from jiwer import wer

from minmo import weights
from minmo.audio.resample import resample
from minmo.client import Recording, Target, speech
from minmo.stack.config import StackConfig
from minmo.stack.stack import Stack
from tests.otlp_collector import Collector, collecting

ROOT = Path(__file__).parent.parent.parent
SAME_LOOP = pytest.mark.asyncio(loop_scope="session")
"""For the tests of a module: they run on the loop that supervises the processes."""
QUESTION = ROOT / "examples" / "question.wav"
QUESTION_TEXT = "What part of the United States is your home?"
DATA = ROOT / "tests" / "data"
TRACED = ("gateway", "orchestrator", "encoder", "llm", "voice_decoder")
CONFIG_DEADLINE_SECONDS = 3
READ_DEADLINE_SECONDS = 4


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """What the services send their traces to."""
    with collecting() as collector:
        yield collector


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> AsyncIterator[Stack]:
    """The stack, ready. A process that a test kills is started again."""
    weights.ensure("mini")
    # Deadlines that a test waits for are shorter than a user would want them.
    deadlines = {
        "MINMO_CONFIG_DEADLINE_SECONDS": str(CONFIG_DEADLINE_SECONDS),
        "MINMO_READ_DEADLINE_SECONDS": str(READ_DEADLINE_SECONDS),
    }
    traces = {"MINMO_TRACING_ENDPOINT": collector.address}
    config = StackConfig(
        port=0,
        gateway=True,
        web_port=0,
        folder=tmp_path_factory.mktemp("home"),
        variables=dict.fromkeys(TRACED, traces) | {"orchestrator": deadlines | traces},
    )
    async with Stack(config, listener=print) as stack:
        yield stack


@pytest.fixture
def target(stack: Stack) -> Target:
    """Where to talk with it."""
    return Target(stack.addresses["orchestrator"])


def normal(text: str) -> str:
    """Words alone, for comparisons: lower case, no punctuation."""
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text.lower().replace("-", " ")).split())


def word_error_rate(expected: str, found: str) -> float:
    """Share of words that are wrong, after `normal`."""
    return float(wer(normal(expected), normal(found) or "(nothing)"))


async def recognise(target: Target, samples: object, rate_hz: int) -> str:
    """What the recogniser hears in audio that came back."""
    heard = resample(samples, rate_hz, 16_000)  # type: ignore[arg-type]
    transcript = await speech.transcribe(target, Recording(Path("heard"), heard, 16_000))
    return transcript.text
