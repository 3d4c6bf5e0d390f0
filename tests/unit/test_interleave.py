"""The interleaved sequence: what is fed when, and what training asks for."""

import pytest
import torch

from minmo.model.interleave import (
    ContextFullError,
    Input,
    Interleaving,
    Kind,
    collate,
    interleave,
)
from minmo.model.token_loss import IGNORED

_TOKENS = 100
_END, _FILL = _TOKENS, _TOKENS + 2
_LETTERS = {Kind.START: "S", Kind.PREFIX: "q", Kind.SEMANTIC: "t", Kind.TURN_OF_SPEECH: "T"}


def _written(inputs: list[Input]) -> str:
    """`S` start, `q` prefix, `t` semantic vector, `T` turn of speech, `.` speech."""
    return "".join(_LETTERS.get(item.kind, ".") for item in inputs)


def _interleaving(**changes: int | None) -> Interleaving:
    return Interleaving(
        **{"text_group": 5, "speech_group": 15, "max_positions": 500, "end": _END, **changes}
    )


def _layout(vectors: int, speech: int, **changes: int) -> str:
    pair = interleave(
        vectors, range(speech), speech_tokens=_TOKENS, **{"max_positions": 500, **changes}
    )
    assert len(pair.inputs) == len(pair.targets)
    return _written(pair.inputs)


_GROUP = "t" * 5 + "." * 15


@pytest.mark.parametrize(
    ("vectors", "speech", "written"),
    [
        (1, 4, "StT...."),
        (4, 20, "SttttT" + "." * 20),
        (5, 15, "S" + _GROUP + "T"),
        (5, 40, "S" + _GROUP + "T" + "." * 25),
        (7, 40, "S" + _GROUP + "ttT" + "." * 25),
        (10, 60, "S" + 2 * _GROUP + "T" + "." * 30),
        # Speech that is too short for the text's groups ends them early.
        (10, 29, "S" + _GROUP + "tttttT" + "." * 14),
        (6, 3, "SttttttT..."),
    ],
)
def test_training_lays_a_pair_out_in_groups(vectors: int, speech: int, written: str) -> None:
    assert _layout(vectors, speech) == written


def test_the_query_comes_after_the_start() -> None:
    assert _layout(6, 20, prefix=3) == "Sqqq" + _GROUP + "tT....."


def test_text_before_speech_is_a_sequence_without_groups() -> None:
    assert _layout(7, 20, max_groups=0) == "StttttttT" + "." * 20


def test_each_position_learns_the_token_that_follows_it() -> None:
    speech = list(range(50, 90))
    pair = interleave(12, speech, speech_tokens=_TOKENS, max_positions=500, prefix=2)
    group = [*[IGNORED] * 4, *range(50, 65), _FILL]
    second = [*[IGNORED] * 4, *range(65, 80), _FILL]
    rest = [IGNORED, IGNORED, *range(80, 90), _END]
    assert pair.targets == [IGNORED, IGNORED, IGNORED, *group, *second, *rest]
    assert [item.value for item in pair.inputs if item.kind is Kind.SPEECH] == speech
    assert [i.value for i in pair.inputs if i.kind is Kind.SEMANTIC] == list(range(12))
    assert [i.value for i in pair.inputs if i.kind is Kind.PREFIX] == [0, 1]


def _spoken(interleaving: Interleaving, pushes: list[int], speech: list[int]) -> list[Input]:
    """Runs the machine as an engine does, with text that comes in pieces."""
    fed: list[Input] = []
    drawn = iter([*speech, _END])
    arriving = iter(pushes)
    ended = False
    while not interleaving.done:
        inputs = interleaving.feed()
        fed += inputs
        if interleaving.draws:
            interleaving.draw(next(drawn))
        elif not inputs:
            assert not ended, "it waits for text that never comes"
            if (more := next(arriving, None)) is None:
                interleaving.end()
                ended = True
            else:
                interleaving.push(more)
    assert interleaving.positions == len(fed)
    return fed


@pytest.mark.parametrize("pushes", [[12], [1] * 12, [4, 1, 5, 2], [3, 9], [10, 2]])
def test_the_engine_feeds_what_training_saw_however_the_text_arrives(pushes: list[int]) -> None:
    speech = list(range(45))
    expected = interleave(12, speech, speech_tokens=_TOKENS, max_positions=500, prefix=2).inputs
    assert _spoken(_interleaving(prefix=2), pushes, speech) == expected


def test_the_start_and_the_query_are_read_before_there_is_text() -> None:
    interleaving = _interleaving(prefix=2)
    assert _written(interleaving.feed()) == "Sqq"
    assert not interleaving.draws
    assert interleaving.feed() == []
    interleaving.push(4)
    assert interleaving.feed() == []
    interleaving.push(1)
    assert _written(interleaving.feed()) == "ttttt"
    assert interleaving.draws and not interleaving.may_end


def test_a_groups_last_token_is_fed_with_the_vectors_that_follow() -> None:
    interleaving = _interleaving()
    interleaving.push(5)
    interleaving.feed()
    for token in range(15):
        interleaving.draw(token)
        if token < 14:
            assert _written(interleaving.feed()) == "."
    assert interleaving.feed() == [], "nothing is fed for a prediction that nobody reads"
    interleaving.push(5)
    assert _written(interleaving.feed()) == ".ttttt"


def test_text_that_ends_while_a_group_speaks_leaves_the_group_whole() -> None:
    interleaving = _interleaving()
    interleaving.push(5)
    interleaving.feed()
    interleaving.draw(0)
    interleaving.feed()
    interleaving.push(1)
    interleaving.end()
    for token in range(1, 15):
        assert not interleaving.may_end
        interleaving.draw(token)
        fed = interleaving.feed()
    assert _written(fed) == ".tT"
    assert interleaving.may_end
    interleaving.draw(_END)
    assert interleaving.done and interleaving.feed() == []


def test_no_text_at_all_is_spoken_at_once() -> None:
    interleaving = _interleaving(prefix=2)
    interleaving.feed()
    interleaving.end()
    assert interleaving.done and interleaving.feed() == []
    for token in (-1, _END, _FILL):
        with pytest.raises(ValueError, match=f"{token} is no speech token: those are 0 to 99"):
            interleave(1, [3, token, 4], speech_tokens=_TOKENS, max_positions=500)
    with pytest.raises(ValueError, match="0 semantic vectors: speech needs at least one"):
        interleave(0, [1], speech_tokens=_TOKENS, max_positions=500)


def test_speech_that_never_ends_is_ended() -> None:
    interleaving = _interleaving()
    interleaving.push(2)
    interleaving.end()
    while interleaving.feed():
        interleaving.draw(1)
    assert interleaving.done
    assert interleaving.spoken == 2 * 20 + 50


def test_text_that_the_context_cannot_hold_is_refused_before_anything_is_fed() -> None:
    interleaving = _interleaving(max_positions=25)
    interleaving.push(30)
    with pytest.raises(ContextFullError, match=r"needs 26 positions.*holds 25.*speak the text in"):
        while interleaving.feed():
            interleaving.draw(1)
    assert interleaving.positions == 20
    with pytest.raises(ContextFullError, match="7 semantic vectors and 40 speech tokens need 49"):
        _layout(7, 40, max_positions=48)
    assert len(_layout(7, 40, max_positions=49)) == 49


def test_only_what_can_come_is_taken() -> None:
    interleaving = _interleaving()
    with pytest.raises(ValueError, match="nothing is to be drawn"):
        interleaving.draw(1)
    interleaving.push(5)
    interleaving.feed()
    with pytest.raises(ValueError, match="must be drawn before"):
        interleaving.feed()
    for token in (_END, _FILL, -1):
        with pytest.raises(ValueError, match=f"class {token} was drawn where only speech tokens"):
            interleaving.draw(token)
    interleaving.draw(_TOKENS - 1)
    interleaving.end()
    with pytest.raises(ValueError, match="after the text's end"):
        interleaving.push(1)


def test_a_batch_is_filled_up_behind_the_shorter_sequences() -> None:
    pairs = [
        interleave(vectors, range(speech), speech_tokens=_TOKENS, max_positions=500)
        for vectors, speech in ((2, 3), (6, 30))
    ]
    batch = collate(pairs)
    assert batch.lengths.tolist() == [7, 1 + 20 + 2 + 15]
    for row, (inputs, targets) in enumerate(pairs):
        length = len(inputs)
        assert batch.kinds[row, :length].tolist() == [item.kind for item in inputs]
        assert batch.values[row, :length].tolist() == [item.value for item in inputs]
        assert batch.targets[row, :length].tolist() == targets
        assert (batch.targets[row, length:] == IGNORED).all()
    assert torch.equal(batch.to("cpu").targets, batch.targets)
