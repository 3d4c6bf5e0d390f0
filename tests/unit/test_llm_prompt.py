"""What the LLM service makes of a request before the model sees it."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from minmo.engine.prompt import ChatFormat
from minmo.v1 import common_pb2, llm_pb2
from services.llm.prompt import PromptReader

WIDTH = 8
# Room for 100 rows behind what else a response carries.
READER_BYTES = 64 * 1024 + 100 * 4 * WIDTH


@pytest.fixture(scope="module")
def reader() -> PromptReader:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the kettle is on"] * 20, trainer)
    return PromptReader(ChatFormat(made), WIDTH, 1000, READER_BYTES)


def request(*parts: llm_pb2.PromptPart, **asked: object) -> llm_pb2.RunRequest:
    made = llm_pb2.RunRequest(operation_id="o", session_id="s", branch="main")
    made.prefill.CopyFrom(llm_pb2.Prefill(parts=parts, **asked))  # type: ignore[arg-type]
    return made


def ids(count: int) -> llm_pb2.PromptPart:
    return llm_pb2.PromptPart(tokens=llm_pb2.TokenIds(ids=[5] * count))


def test_what_does_not_fit_a_message_is_refused_or_cut_to_its_end(reader: PromptReader) -> None:
    both = {"return_hidden_states": True, "return_embeddings": True}
    assert reader.read(request(ids(100), return_hidden_states=True)).prefill.return_last == 0
    assert reader.read(request(ids(50), **both)).prefill.return_embeddings
    with pytest.raises(ValueError, match=r"of 101 positions do not fit .* at most 100 at a time"):
        reader.read(request(ids(101), return_hidden_states=True))
    with pytest.raises(ValueError, match=r"of 51 positions do not fit .* at most 50 at a time"):
        reader.read(request(ids(51), **both))
    assert reader.read(request(ids(900), return_last=7, **both)).prefill.return_last == 7
    assert reader.read(request(ids(900), return_last=80, **both)).prefill.return_last == 50


def test_tokens_of_text_come_with_their_text(reader: PromptReader) -> None:
    start = llm_pb2.PromptPart(role_start=common_pb2.ROLE_ASSISTANT)
    words = ("the kettle", " caf\u00e9")
    parts = [llm_pb2.PromptPart(text=text) for text in words]
    asked = request(start, parts[0], ids(2), parts[1], return_tokens=True)
    pieces = list(reader.pieces(asked))
    assert [piece.id for piece in pieces] == [t for text in words for t in reader.chat.text(text)]
    assert "".join(piece.text for piece in pieces) == "".join(words)
    # The two bytes of a letter are two tokens here: the second one completes it.
    assert [piece.text for piece in pieces][-2:] == ["", "\u00e9"]
