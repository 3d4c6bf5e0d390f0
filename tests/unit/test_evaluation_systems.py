"""Systems that listen, and the LLM that answers them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from minmo.engine.listening import Recogniser
from minmo.evaluation.answering import Answerer
from minmo.evaluation.clips import Clip
from minmo.evaluation.errors import EvaluationError
from minmo.evaluation.systems import (
    Aligned,
    OwnDecoder,
    PiecesAsText,
    TrueText,
    Turn,
    WholeClip,
)
from tests.unit.evaluation_modules import (
    INSTRUCTIONS,
    answerer,
    chat,
    greedy,
    listener,
    llm,
    noise,
    prompt,
)

LLM = llm()
EARS = listener(LLM)
CLIP = Clip("test", "one", "the cat?")


@pytest.mark.parametrize("samples", [100, 2304, 2600, 9216, 20_000, 40_123])
def test_a_stream_hears_what_the_whole_clip_hears(samples: int) -> None:
    audio = noise(samples, seed=samples)
    stream = Aligned(EARS).listen(CLIP, audio)
    whole = WholeClip(EARS).listen(CLIP, audio)
    assert stream.text == whole.text
    assert stream.embeddings is not None and whole.embeddings is not None
    torch.testing.assert_close(stream.embeddings, whole.embeddings, atol=1e-4, rtol=0)
    if samples > 10_000:
        assert len(stream.text) > 5


def test_full_attention_hears_something_else() -> None:
    audio = noise(20_000)
    whole = WholeClip(EARS).listen(CLIP, audio)
    full = WholeClip(EARS, full_attention=True).listen(CLIP, audio)
    assert whole.embeddings is not None and full.embeddings is not None
    assert len(full.embeddings) > 5
    count = min(len(whole.embeddings), len(full.embeddings))
    assert not torch.allclose(whole.embeddings[:count], full.embeddings[:count], atol=1e-3)


def test_the_latency_is_of_what_follows_the_last_sound() -> None:
    heard = Aligned(EARS).listen(CLIP, noise(80_000))
    assert heard.latency_s is not None
    assert 0 < heard.latency_s < heard.compute_s / 3
    parts = list(Aligned(EARS).parts(noise(3200)))
    assert [part.is_last for part in parts] == [False] * 9 + [True]
    assert all(first.came <= second.came for first, second in pairwise(parts))


@pytest.mark.parametrize("system", [Aligned(EARS), WholeClip(EARS)])
def test_nothing_is_heard_in_nothing(system: Aligned) -> None:
    heard = system.listen(CLIP, np.zeros(0, np.float32))
    assert heard.text == ""
    assert heard.embeddings is not None and heard.embeddings.shape == (0, LLM.config.width)


def test_what_is_heard_may_be_read_as_text() -> None:
    audio = noise(20_000)
    pieces = PiecesAsText(Aligned(EARS)).listen(CLIP, audio)
    assert (pieces.text, pieces.embeddings) == (Aligned(EARS).listen(CLIP, audio).text, None)
    assert TrueText().listen(CLIP, audio) == Turn("the cat?")
    decoder = OwnDecoder(Recogniser(lambda samples, limit: [samples.shape[1]], str))
    assert decoder.listen(CLIP, audio).text == "[20000]"


def turns() -> list[tuple[int, Turn]]:
    """Turns of text and of embeddings, of many lengths."""
    made = [(number, Turn("the cat " * (number % 4))) for number in range(8)]
    return [*made, (8, Aligned(EARS).listen(CLIP, noise(20_000)))]


def content(turn: Turn) -> torch.Tensor:
    """The prompt that a turn makes, `[positions, width]`."""
    marked = prompt([-1] if turn.embeddings is not None else chat().text(turn.text))
    if turn.embeddings is None:
        return LLM.embed(torch.tensor(marked))
    place = marked.index(-1)
    before, behind = (
        LLM.embed(torch.tensor(part)) for part in (marked[:place], marked[place + 1 :])
    )
    return torch.cat((before, turn.embeddings, behind))


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_answers_made_together_are_those_made_alone(slots: int) -> None:
    found = dict(answerer(slots).answers(turns()))
    assert set(found) == set(range(9))
    end = chat().end_token
    for key, turn in turns():
        assert found[key].tokens == greedy(LLM, content(turn), 6, end), key
    assert len({tuple(answer.tokens) for answer in found.values()}) > 2


def test_an_answer_ends_with_the_turn_or_when_it_is_long() -> None:
    made = answerer(max_tokens=3)
    (_, answer), *_ = made.answers(turns())
    assert len(answer.tokens) == 3
    assert made.ended(answer) == answer.tokens
    ending = answerer(max_tokens=5)
    ends_at_once = answer.tokens[0]
    ending._chat.end_token = ends_at_once
    found = dict(ending.answers(turns()))
    assert found[0].tokens == []
    assert ending.ended(found[0]) == [ends_at_once]


def test_the_next_tokens_along_an_answer_are_as_likely_as_they_are() -> None:
    made, (_, turn) = answerer(), turns()[-1]
    tokens = [5, 6, 7]
    found = made.log_probabilities(turn, tokens)
    rows = torch.cat((content(turn), LLM.embed(torch.tensor(tokens[:-1]))))
    with torch.inference_mode():
        hidden = LLM.forward_sequence(rows[None])[0, -3:]
        expected = LLM.logits(hidden).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(made.log_probabilities(turn, [5]), expected[:1], atol=1e-4, rtol=0)


def test_the_state_is_that_at_the_end_of_the_users_turn() -> None:
    made, (_, turn) = answerer(), turns()[-1]
    rows = content(turn)[: -len(chat().role_start("assistant"))]
    with torch.inference_mode():
        expected = LLM.forward_sequence(rows[None])[0, -1]
    torch.testing.assert_close(made.state(turn), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["aligned", "cascade"])
def test_the_first_token_is_timed_and_other_answers_go_on(name: str) -> None:
    made = answerer()
    decoder = OwnDecoder(Recogniser(lambda samples, limit: [1], lambda tokens: "the cat"), name)
    system = Aligned(EARS) if name == "aligned" else decoder
    before = dict(made.answers(turns()))
    assert 0 < made.first_token_s(system, CLIP, noise(20_000)) < 5
    assert dict(made.answers(turns())) == before


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(EvaluationError, match="a turn takes 2000 positions of the LLM; at most"):
        list(answerer().answers([(0, Turn("a" * 2000))]))
    with pytest.raises(EvaluationError, match="instructions take"):
        Answerer(LLM, chat(), INSTRUCTIONS * 60, slots=1, max_tokens=100)
