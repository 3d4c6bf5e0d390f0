"""Clients that others published talk through the gateway: two turns, the second over an answer.

Each runs unchanged in an environment of its own (`clients/`), with a microphone and a loudspeaker
that need no device. What its loudspeaker played is recognised, and the history is what was heard.
"""

from __future__ import annotations

import asyncio
import json
import wave
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from minmo.audio.pcm import PcmFormat
from minmo.audio.resample import resample
from minmo.client import Recording, Target, sessions, speech
from minmo.stack.stack import Stack
from minmo.v1 import common_pb2, conversation_pb2
from tests.system.conftest import (
    QUESTION,
    QUESTION_TEXT,
    ROOT,
    SAME_LOOP,
    normal,
    recognise,
    word_error_rate,
)

ENVIRONMENT = ROOT / ".venv-clients"
CLIENTS = ("openai", "livekit", "pipecat")
RATE_HZ = 24_000
STORY_TEXT = "Tell me a long story about a ship and its captain."
PHRASE_WORDS = 6
DEADLINE_SECONDS = 120.0

pytestmark = [
    SAME_LOOP,
    pytest.mark.skipif(
        not (ENVIRONMENT / ".installed").exists(),
        reason="the clients are not installed; `make .venv-clients/.installed` does it",
    ),
]


@dataclass(frozen=True)
class Talk:
    """What a client saw, what its loudspeaker played, and what the server remembers of it.

    Attributes:
        user_texts: words of the user, as the client was told them.
        texts: words of the answers, as the client was told them.
        heard: words of the answers, recognised from what was played.
        interrupted: of each answer, whether the client stopped it.
        errors: that the client reported.
        turns: of the session.
    """

    user_texts: list[str]
    texts: list[str]
    heard: list[str]
    interrupted: list[bool]
    errors: list[str]
    turns: list[conversation_pb2.Turn]


def write(path: Path, samples: object) -> Path:
    """A recording as the scripts read it."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", "not compressed"))
        file.writeframes(PcmFormat(RATE_HZ).encode(samples))  # type: ignore[arg-type]
    return path


async def talk(stack: Stack, name: str, first: Path, second: Path, folder: Path) -> Talk:
    """Runs a client, whose key and so whose session are its own."""
    await asyncio.to_thread(folder.mkdir)
    process = await asyncio.create_subprocess_exec(
        *(ENVIRONMENT / "bin" / "python", f"tests/system/clients/{name}_client.py"),
        *(f"ws://{stack.addresses['gateway']}/v1", name, first, second, folder),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    report = json.loads(out)
    target = Target(stack.addresses["orchestrator"], token=name)
    (session,) = await sessions.list_sessions(target)
    whole = await sessions.get_session(target, session.session_id)
    heard = []
    for answer in report["answers"]:
        recording = Recording.read(Path(answer["file"]))
        heard.append(await recognise(target, recording.samples, recording.rate_hz))
    return Talk(
        report["user_texts"],
        [answer["text"] for answer in report["answers"]],
        heard,
        [answer["interrupted"] for answer in report["answers"]],
        report["errors"],
        list(whole.turns),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def talks(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Talk | BaseException]:
    """What became of each client; those that take little of a core talk at the same time."""
    folder = tmp_path_factory.mktemp("clients")
    target = Target(stack.addresses["orchestrator"])
    story = await speech.say(target, STORY_TEXT, rate_hz=RATE_HZ)
    question = Recording.read(QUESTION)
    first = write(folder / "first.wav", story.samples)
    second = write(folder / "second.wav", resample(question.samples, question.rate_hz, RATE_HZ))

    async def each(*names: str) -> dict[str, Talk | BaseException]:
        results = await asyncio.gather(
            *(talk(stack, name, first, second, folder / name) for name in names),
            return_exceptions=True,
        )
        return dict(zip(names, results, strict=True))

    return await each("openai", "livekit") | await each("pipecat")


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_client_talks_is_spoken_over_and_the_history_is_what_was_heard(
    talks: dict[str, Talk | BaseException], name: str
) -> None:
    talk = talks[name]
    if isinstance(talk, BaseException):
        raise talk
    assert talk.errors == []
    assert talk.interrupted == [True, False]
    user, assistant = common_pb2.ROLE_USER, common_pb2.ROLE_ASSISTANT
    assert [turn.role for turn in talk.turns] == [user, assistant] * 2
    story, cut, question, answer = talk.turns
    # What the user said, as it was said, as the client shows it, and as it is remembered.
    assert word_error_rate(STORY_TEXT, story.text) <= 0.3
    assert word_error_rate(QUESTION_TEXT, question.text) <= 0.3
    # (A pause may make two items of a turn; the words are in the second, the first is removed.)
    told = [normal(text) for text in talk.user_texts if text]
    assert told == [normal(story.text), normal(question.text)]
    # Of the first answer only what was heard.
    assert cut.outcome == conversation_pb2.TURN_OUTCOME_INTERRUPTED
    assert 0 < len(cut.text) < len(cut.generated_text)
    heard, remembered = normal(talk.heard[0]).split(), normal(cut.text).split()
    # It is cut at the last mark that was heard: at the end of a phrase of the voice.
    assert -2 <= len(heard) - len(remembered) <= PHRASE_WORDS, (heard, remembered)
    shared = min(len(heard), len(remembered)) - 1
    assert word_error_rate(" ".join(remembered[:shared]), " ".join(heard[:shared])) <= 0.35
    # Of the second all.
    assert answer.outcome == conversation_pb2.TURN_OUTCOME_COMPLETED
    assert normal(answer.text) == normal(answer.generated_text) == normal(talk.texts[1])
    assert word_error_rate(answer.text, talk.heard[1]) <= 0.3
