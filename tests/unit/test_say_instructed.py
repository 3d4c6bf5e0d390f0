"""What a voice is given to say a text: the LLM's tokens and hidden states, and how to speak."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minmo.rpc.errors import StatusError
from minmo.v1.common_pb2 import AUDIO_ENCODING_PCM_S16LE, AudioFormat, FloatMatrix
from minmo.v1.conversation_pb2 import SayRequest, SayResponse
from services.orchestrator import reading_aloud, speech
from services.orchestrator.reading_aloud import Reader, pieces_of
from services.orchestrator.voices import Voices
from tests.unit.fake_llm import HIDDEN, FakeLlm, served
from tests.unit.fake_voice_decoder import FakeVoiceDecoder
from tests.unit.fake_voice_decoder import served as spoken_by

FORMAT = AudioFormat(encoding=AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=24_000, channels=1)
HEAD = "<role_start>Be kind.<turn_end>"
HEAD_POSITIONS = 10


class Setup:
    def __init__(
        self, llm: FakeLlm, decoder: FakeVoiceDecoder, channels: list[grpc.aio.Channel]
    ) -> None:
        self.llm, self.decoder, self.channels = llm, decoder, channels

    async def say(self, text: str, instruct: str = "", seconds: float = 5.0) -> SayResponse:
        llm, decoder = self.channels
        return await speech.say(
            decoder,
            SayRequest(text=text, instruct=instruct, format=FORMAT),
            voices=Voices(decoder),
            reader=Reader(llm, "Be kind.", deadline_seconds=2, recovery_seconds=2),
            max_characters=2000,
            deadline_seconds=seconds,
        )


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    llm, decoder = FakeLlm(), FakeVoiceDecoder()
    async with served(llm) as first, spoken_by(decoder) as second:
        yield Setup(llm, decoder, [first, second])


def positions(matrix: FloatMatrix) -> list[int]:
    return [int(row[0]) for row in np.frombuffer(matrix.data, "<f4").reshape(-1, 4)]


async def test_each_token_travels_with_the_hidden_state_that_predicted_it(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_aloud, "_PIECE_BYTES", 8)
    text = "One two three four."
    said = await setup.say(text)
    assert setup.decoder.text == text
    assert len(said.audio) == 2 * len(text)
    assert len(setup.decoder.tokens) == 3
    predicting = [at for some in setup.decoder.tokens for at in positions(some.hidden_states)]
    # The first is predicted by the start of the turn.
    assert predicting == list(range(HEAD_POSITIONS, HEAD_POSITIONS + len(text)))
    for some in setup.decoder.tokens:
        assert some.hidden_states.rows == len(some.tokens)
        assert np.frombuffer(some.hidden_states.data, "<f4").reshape(-1, 4)[:, 1].tolist() == [
            HIDDEN
        ] * len(some.tokens)
    (config,) = setup.decoder.configs
    assert config.query_embeddings.rows == config.query_hidden_states.rows == 0


async def test_an_instruction_is_the_users_turn_which_the_voice_reads_first(setup: Setup) -> None:
    await setup.say("Hello.", "say it sadly")
    (config,) = setup.decoder.configs
    asked = list(range(HEAD_POSITIONS + 1, HEAD_POSITIONS + 1 + len("say it sadly")))
    assert positions(config.query_embeddings) == positions(config.query_hidden_states) == asked
    assert config.instruct == ""
    parts = [part for prefill in setup.llm.prefills for part in prefill.parts]
    assert [part.text for part in parts if part.text] == ["Be kind.", "say it sadly", "Hello."]


async def test_the_cache_is_freed_whatever_happens(setup: Setup) -> None:
    await setup.say("Hello.")
    assert setup.llm.branches == {}
    assert setup.llm.operations[-1] == "close"
    setup.llm.refuse = ["BAD_CONTENT"]
    with pytest.raises(StatusError, match="BAD_CONTENT"):
        await setup.say("Hello.")
    assert setup.llm.branches == {}
    assert setup.llm.operations[-1] == "close"


async def test_a_cache_that_is_lost_on_the_way_is_built_again(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_aloud, "_PIECE_BYTES", 8)
    carry_out = setup.llm.carry_out

    async def lose_once(request, answers) -> None:
        if len(setup.llm.prefills) == 2:
            setup.llm.lose_cache()
        await carry_out(request, answers)

    monkeypatch.setattr(setup.llm, "carry_out", lose_once)
    await setup.say("One two three four.")
    predicting = [at for some in setup.decoder.tokens for at in positions(some.hidden_states)]
    assert predicting == list(range(HEAD_POSITIONS, HEAD_POSITIONS + 19))
    assert setup.decoder.text == "One two three four."


async def test_a_voice_that_reads_text_is_sent_text_and_the_words_of_the_instruction(
    setup: Setup,
) -> None:
    setup.decoder.reads_hidden_states = False
    await setup.say("One two.", "slowly")
    assert setup.llm.operations == []
    (config,), (tokens,) = setup.decoder.configs, setup.decoder.tokens
    assert (config.instruct, config.query_embeddings.rows) == ("slowly", 0)
    assert [token.text for token in tokens.tokens] == ["One", " two."]
    assert tokens.hidden_states.rows == 0


async def test_what_takes_too_long_or_says_too_much_is_refused(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StatusError, match="instruct: has 201 characters") as refused:
        await setup.say("Hello.", "a" * 201)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT

    async def hang(request, answers) -> None: ...

    monkeypatch.setattr(setup.llm, "carry_out", hang)
    monkeypatch.setattr(reading_aloud, "_FREE_SECONDS", 0.1)
    with pytest.raises(StatusError, match=r"not spoken within 0\.2 s") as refused:
        await setup.say("Hello.", seconds=0.2)
    assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def byte_level(folder: Path) -> Tokenizer:
    """A tokenizer of the LLMs' kind, that knows some words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the kettle is on", "it costs 12 dollars"] * 20, trainer)
    return made


def test_pieces_have_the_tokens_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_aloud, "_PIECE_BYTES", 20)
    tokenizer = byte_level(tmp_path)
    for text in (
        "the kettle is on, it costs 12 dollars and the kettle is on.",
        "two  spaces, a\nnew line \n\n and a tab\tin the kettle",
        " a space before, and behind it costs 12 dollars ",
        "caf\u00e9 \u2014 na\u00efve \u4f60\u597d the kettle",
        "",
    ):
        pieces = list(pieces_of(text))
        assert "".join(pieces) == text
        assert all(len(piece.encode()) <= 20 for piece in pieces)
        ids = [token for piece in pieces for token in tokenizer.encode(piece).ids]
        assert ids == tokenizer.encode(text).ids
    long = "\u4f60" * 50
    pieces = list(pieces_of(long))
    assert "".join(pieces) == long
    assert max(len(piece.encode()) for piece in pieces) <= 20
