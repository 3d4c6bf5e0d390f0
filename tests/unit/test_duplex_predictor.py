"""The full-duplex predictor and the labels that it learns from."""

import pytest
import torch
from torch import Tensor

from minmo.model.duplex_labels import Turn, duplex_labels
from minmo.model.duplex_predictor import DuplexPredictor, DuplexPredictorConfig, duplex_loss
from minmo.presets import load_preset

HIDDEN = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))


def predictor() -> DuplexPredictor:
    torch.manual_seed(0)
    return DuplexPredictor(
        DuplexPredictorConfig(12, width=16, mlp_width=32, heads=2, left_context=9)
    )


@torch.inference_mode()
def test_an_answer_after_any_position_is_what_the_whole_conversation_gives() -> None:
    predicts = predictor()
    logits = predicts(HIDDEN[None])
    assert logits.shape == (1, 50, 2, 2)
    for position in range(50):
        expected = logits[0, position].softmax(-1)[:, 1]
        found = torch.tensor(predicts.probabilities(HIDDEN[: position + 1]))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_last_hidden_states_alone_settle_an_answer() -> None:
    predicts = predictor()
    answer = predicts.probabilities(HIDDEN)
    assert predicts.probabilities(HIDDEN[-10:]) == answer
    forgotten = torch.cat((torch.full((4000, 12), torch.nan), HIDDEN[-10:]))
    assert predicts.probabilities(forgotten) == answer
    assert predicts.probabilities(HIDDEN[-9:]) != answer


def test_how_long_ago_something_was_said_counts() -> None:
    swapped = HIDDEN[[*range(44), 45, 44, *range(46, 50)]]
    predicts = predictor()
    assert predicts.probabilities(swapped) != pytest.approx(
        predicts.probabilities(HIDDEN), abs=1e-6
    )


def test_hidden_states_of_another_type_are_taken() -> None:
    predicts = predictor()
    expected = predicts.probabilities(HIDDEN.bfloat16().float())
    assert predicts.probabilities(HIDDEN.bfloat16()) == expected


def test_without_a_position_there_is_no_answer() -> None:
    with pytest.raises(ValueError, match="one position is needed at least"):
        predictor().probabilities(HIDDEN[:0])


@torch.inference_mode()
def test_no_position_sees_what_comes_later() -> None:
    changed = torch.cat((HIDDEN[:30], 1 - HIDDEN[30:]))
    predicts = predictor()
    before, after = predicts(HIDDEN[None]), predicts(changed[None])
    torch.testing.assert_close(before[:, :30], after[:, :30])
    assert not torch.allclose(before[:, 30], after[:, 30])


def random_answers(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(batch, 40, 2, 2, generator=generator)
    labels = torch.randint(0, 2, (batch, 40, 2), generator=generator)
    asked = torch.rand(batch, 40, 2, generator=generator) < 0.6
    return logits, labels, asked


def test_the_loss_is_each_questions_weighted_mean_where_it_was_asked() -> None:
    logits, labels, asked = random_answers()
    weights = torch.tensor([[0.5, 2.0], [1.0, 7.0]])
    expected = [
        torch.nn.functional.cross_entropy(
            logits[:, :, question][asked[:, :, question]],
            labels[:, :, question][asked[:, :, question]],
            weights[question],
        )
        for question in range(2)
    ]
    found = duplex_loss(logits, labels, asked, weights)
    torch.testing.assert_close(found, sum(expected) / 2)
    unweighted = duplex_loss(logits, labels, asked)
    torch.testing.assert_close(unweighted, duplex_loss(logits, labels, asked, torch.ones(2, 2)))


def test_positions_without_a_label_teach_nothing() -> None:
    logits, labels, asked = random_answers()
    asked[..., 1] = False
    logits.requires_grad_()
    loss = duplex_loss(logits, labels.where(asked, -100), asked)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[~asked].any()
    assert logits.grad[asked].any()
    first = torch.nn.functional.cross_entropy(
        logits[:, :, 0][asked[..., 0]], labels[:, :, 0][asked[..., 0]]
    )
    torch.testing.assert_close(loss, first)
    assert duplex_loss(logits, labels, torch.zeros_like(asked)).item() == 0


def test_both_questions_can_be_learnt() -> None:
    predicts = predictor()
    optimiser = torch.optim.Adam(predicts.parameters(), lr=0.01)
    labels = torch.stack((HIDDEN[:, 0] > 0, HIDDEN[:, 1] > 0), dim=-1).long()[None]
    asked = torch.ones_like(labels, dtype=torch.bool)
    for _ in range(60):
        loss = duplex_loss(predicts(HIDDEN[None]), labels, asked)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.equal(predicts(HIDDEN[None]).argmax(-1), labels)


# --- labels

TIMES = torch.arange(0, 200) * 0.05


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def spans(flags: Tensor, times: Tensor = TIMES) -> list[tuple[float, float]]:
    """Where flags are set, as times of the first and last of each run."""
    found: list[list[float]] = []
    for number, (flag, time) in enumerate(zip(flags.tolist(), times.tolist(), strict=True)):
        if flag and (number == 0 or not flags[number - 1]):
            found.append([time, time])
        elif flag:
            found[-1][1] = time
    return [(round(first, 2), round(last, 2)) for first, last in found]


def test_the_assistant_should_speak_from_the_end_of_the_users_turn_until_somebody_does() -> None:
    labels, asked = duplex_labels(
        TIMES, [Turn(1, 3), Turn(8.5, 9)], [Turn(4, 8), Turn(9.5, 12)], seeded()
    )
    assert spans(labels[:, 0]) == [(3.0, 3.95), (9.0, 9.45)]
    assert spans(asked[:, 0]) == [(0.0, 3.95), (8.0, 9.45)]
    assert spans(labels[:, 1]) == []
    assert spans(asked[:, 1]) == [(4.0, 7.95), (9.5, 9.95)]


def test_the_assistant_should_stop_once_an_interruption_is_understood() -> None:
    labels, asked = duplex_labels(TIMES, [Turn(1, 2), Turn(5, 8)], [Turn(3, 6)], seeded())
    reaction = torch.normal(0.6, 0.4, (2,), generator=seeded()).clamp(min=0)[1].item()
    assert 0 < reaction < 3
    ((first, last),) = spans(labels[:, 1])
    assert 0 <= first - (5 + reaction) < 0.05
    assert last == 7.95
    assert spans(asked[:, 1]) == [(3.0, 7.95)]
    # What interrupted is a turn like any other: it wants an answer when it ends.
    assert spans(labels[:, 0]) == [(2.0, 2.95), (8.0, 9.95)]
    assert spans(asked[:, 0]) == [(0.0, 2.95), (5.0, 9.95)]


def test_a_back_channel_is_no_reason_to_stop() -> None:
    """It is no turn, so the assistant's whole turn is labelled no."""
    labels, asked = duplex_labels(TIMES, [Turn(1, 2)], [Turn(3, 6)], seeded())
    assert not labels[:, 1].any()
    assert spans(asked[:, 1]) == [(3.0, 5.95)]


def test_reactions_are_as_in_the_paper_never_before_the_interruption_nor_after_it() -> None:
    times = torch.arange(0, 40_000) * 0.05
    assistant = [Turn(20 * number, 20 * number + 15) for number in range(100)]
    user = [Turn(20 * number + 5, 20 * number + 12) for number in range(100)]
    labels, _ = duplex_labels(times, user, assistant, seeded())
    starts = torch.tensor([first for first, _ in spans(labels[:, 1], times)])
    reactions = starts - 20 * torch.arange(100) - 5
    assert reactions.min() >= 0
    assert abs(reactions.mean() - 0.64) < 0.1
    assert abs(reactions.std() - 0.38) < 0.1
    short = [Turn(turn.start, turn.start + 0.1) for turn in user]
    labels, _ = duplex_labels(times, short, assistant, seeded())
    for turn in short:
        assert labels[int(20 * turn.end) + 1, 1] == 1


def test_a_seed_gives_the_same_labels() -> None:
    turns = [Turn(5, 8)], [Turn(3, 6)]
    first, again = (duplex_labels(TIMES, *turns, seeded()) for _ in range(2))
    assert torch.equal(first.labels, again.labels)
    other = duplex_labels(TIMES, *turns, torch.Generator().manual_seed(3))
    assert not torch.equal(first.labels, other.labels)


def test_positions_without_a_time_have_no_label() -> None:
    times = torch.cat((torch.full((7,), torch.nan), TIMES))
    labels, asked = duplex_labels(times, [Turn(1, 2)], [Turn(3, 6)], seeded())
    assert not asked[:7].any()
    assert not labels[:7].any()
    assert torch.equal(labels[7:], duplex_labels(TIMES, [Turn(1, 2)], [Turn(3, 6)], seeded())[0])


@pytest.mark.parametrize(
    ("user", "assistant", "message"),
    [
        ([Turn(2, 1)], [], "turn 0 of the user ends at 1 s, before it starts at 2 s"),
        ([], [Turn(1, 3), Turn(2, 4)], "turn 1 of the assistant starts at 2 s, before the one"),
    ],
)
def test_turns_that_cannot_be_are_refused(
    user: list[Turn], assistant: list[Turn], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        duplex_labels(TIMES, user, assistant, seeded())


@pytest.mark.parametrize(("preset", "least", "most"), [("8b", 17.64, 18.36), ("mini", 0.3, 1)])
def test_a_preset_has_the_papers_size(preset: str, least: float, most: float) -> None:
    with torch.device("meta"):
        predicts = DuplexPredictor(load_preset(preset).duplex_predictor)
    millions = sum(parameter.numel() for parameter in predicts.parameters()) / 1e6
    assert least <= millions <= most
