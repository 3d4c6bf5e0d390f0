"""The cascade of models that others published: imported by the commands that people type, served.

The checkpoints have the formats of Whisper, Qwen2.5 and CosyVoice 2 and random weights of tiny
sizes, so nothing is said about what is understood or said; that it is, and by whom, is.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from minmo import weights
from minmo.client import Conversation, Recording, Target, ask, sessions, speech
from minmo.client.events import AudioReceived, TurnReport
from minmo.client.microphone import FAST
from minmo.presets import load_preset
from minmo.rpc.errors import StatusError
from minmo.v1 import conversation_pb2
from minmo.weights import home
from tests.system.conftest import QUESTION, ROOT, SAME_LOOP
from tests.system.test_conversation import collect
from tests.unit import published_checkpoints as made
from tests.unit.tiny_presets import write_preset

pytestmark = SAME_LOOP

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
OF_WHISPER = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>")


def tokenizer(folder: Path, special: tuple[str, ...]) -> Tokenizer:
    """A small tokenizer of bytes, as both checkpoints have a large one."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["system user assistant the cat sat on the mat"] * 20, trainer)
    bpe.save(str(folder / "tokenizer.json"))
    return bpe


def write_checkpoints(folder: Path) -> Path:
    """Writes the published checkpoints and returns the path of a preset of their sizes."""
    vocabulary = 300
    tables = made.WHISPER | made.QWEN2 | made.COSYVOICE
    tables["recognizer"] = tables["recognizer"] | {"vocabulary_size": vocabulary}
    sizes = {"vocabulary_size": vocabulary, "max_context": 4096}
    tables["llm"] = tables["llm"] | sizes
    tables["voice_token_lm"] = tables["voice_token_lm"] | {"max_context": 4096}
    path = write_preset(folder, **tables)
    preset = load_preset(path)

    made.whisper(folder / "whisper", vocabulary)
    bpe = tokenizer(folder / "whisper", (*OF_WHISPER, "<|notimestamps|>"))
    ids = {token: bpe.token_to_id(token) for token in (*OF_WHISPER, "<|notimestamps|>")}
    generation = {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "lang_to_id": {language: ids[language] for language in ("<|en|>", "<|de|>")},
        "task_to_id": {"transcribe": ids["<|transcribe|>"]},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "eos_token_id": ids["<|endoftext|>"],
        # Chance decides what is understood: letters, and something of it.
        "suppress_tokens": [id for id in range(vocabulary) if not letters(bpe, id)],
    }
    (folder / "whisper/generation_config.json").write_text(json.dumps(generation))

    made.qwen2(folder / "qwen", vocabulary, positions=4096)
    tokenizer(folder / "qwen", CHATML)
    made.cosyvoice(folder / "cosyvoice", preset, vocabulary)
    made.spk2info(folder / "spk2info.pt", preset, {"Ada": 38, "Zoe": 15})
    return path


def letters(bpe: Tokenizer, token: int) -> bool:
    text = bpe.id_to_token(token) or ""
    return text.isascii() and text.isalpha()


async def run(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "minmo.cli.main", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def imported(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """`minmo serve` with a preset whose weights were imported, in a home of its own."""
    weights.ensure("mini", only=("vad", "triton"))
    there = home.module_folder("mini", "vad"), home.triton_folder()
    folder = tmp_path_factory.mktemp("imported")
    preset = str(write_checkpoints(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINMO_HOME", str(folder / "home"))
        patch.setenv("OMP_NUM_THREADS", "1")
        home.module_folder("tiny", "vad").parent.mkdir(parents=True)
        home.module_folder("tiny", "vad").symlink_to(there[0])
        home.triton_folder().symlink_to(there[1])
        # At the same time: they wait for one another where they write.
        sources = ("whisper", "qwen", "cosyvoice", "spk2info.pt")
        await asyncio.gather(
            *(run("weights", "import", str(folder / one), "--preset", preset) for one in sources)
        )
        log = (folder / "log").open("wb")
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "minmo.cli.main", "serve", "--json"),
            *("--port", "0", "--preset", preset),
            cwd=ROOT,
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
        )
    try:
        yield Target(await _address(server, folder / "home" / "run" / "stack.json", folder / "log"))
    finally:
        server.send_signal(signal.SIGINT)
        await server.wait()
        log.close()


async def _address(server: asyncio.subprocess.Process, descriptor: Path, log: Path) -> str:
    async with asyncio.timeout(60):
        while (address := _published(descriptor)) is None:
            assert server.returncode is None, await asyncio.to_thread(log.read_text)
            await asyncio.sleep(0.05)
    return address


def _published(descriptor: Path) -> str | None:
    if not descriptor.exists():
        return None
    return str(json.loads(descriptor.read_text())["address"])


def settings(voice: str) -> conversation_pb2.SessionSettings:
    return conversation_pb2.SessionSettings(voice=voice, max_answer_tokens=8, seed=1)


async def answer(target: Target, voice: str) -> np.ndarray:
    """What somebody says to a typed text."""
    async with Conversation(
        target, input_rate_hz=16_000, settings=settings(voice), speed=8
    ) as conversation:
        await conversation.send_text("the cat")
        events = await collect(conversation, TurnReport)
    return np.concatenate([event.samples for event in events if isinstance(event, AudioReceived)])


async def test_two_turns_are_heard_answered_and_spoken(imported: Target) -> None:
    question = Recording.read(QUESTION)
    async with Conversation(
        imported, input_rate_hz=16_000, settings=settings("Zoe"), speed=4
    ) as conversation:
        first = await ask(conversation, question, speed=FAST)
        second = await ask(conversation, question, speed=FAST)
        session = await sessions.get_session(imported, conversation.session_id)
    for turn in (*first, *second):
        assert turn.outcome == "completed", turn.detail
        assert turn.mode == "cascade"
        assert turn.user_text.isalpha()
        assert isinstance(turn.generated_text, str)
        assert np.isfinite(turn.heard).all()
        assert len(turn.heard) > 2400
        assert np.abs(turn.heard).max() > 0
    assert [turn.role for turn in session.turns] == [2, 3] * (len(first) + len(second))


async def test_the_voice_of_a_session_is_the_speaker_of_its_name(imported: Target) -> None:
    zoe, again, ada = [await answer(imported, name) for name in ("Zoe", "Zoe", "Ada")]
    assert len(zoe) >= 960
    assert np.array_equal(zoe, again)
    assert not np.array_equal(zoe, ada)


async def test_each_speaker_has_a_voice_and_the_first_speaks_where_nobody_was_named(
    imported: Target,
) -> None:
    spoken = {
        name: await speech.say(imported, "the cat sat on the mat", voice=name)
        for name in ("", "Ada", "Zoe")
    }
    assert len(spoken["Ada"].samples) >= 960
    assert np.array_equal(spoken[""].samples, spoken["Ada"].samples)
    assert not np.array_equal(spoken["Zoe"].samples, spoken["Ada"].samples)
    with pytest.raises(StatusError, match="Ada, Zoe"):
        await speech.say(imported, "the cat", voice="Eve")
