"""The output projector: a semantic vector is a token's embedding and what predicted it."""

import pytest
import torch

from minmo.model import output_projector
from minmo.model.output_projector import OutputProjector, OutputProjectorConfig
from minmo.model.spelling import spellings_of

_PROJECTOR = OutputProjector(OutputProjectorConfig(input_width=6, output_width=4))


def test_a_semantic_vector_reads_the_embedding_first_and_the_hidden_state_second() -> None:
    embeddings, hidden = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    weight, bias = _PROJECTOR.linear.weight, _PROJECTOR.linear.bias
    expected = embeddings @ weight[:, :6].T + hidden @ weight[:, 6:].T + bias
    torch.testing.assert_close(_PROJECTOR(embeddings, hidden), expected)


def test_both_inputs_learn() -> None:
    embeddings = torch.randn(5, 6, requires_grad=True)
    hidden = torch.randn(5, 6, requires_grad=True)
    _PROJECTOR(embeddings, hidden).square().sum().backward()
    assert embeddings.grad is not None and embeddings.grad.abs().min() > 0
    assert hidden.grad is not None and hidden.grad.abs().min() > 0


def test_letters_of_a_token_are_added_whatever_is_spelled_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    spelling = OutputProjector(OutputProjectorConfig(6, 4, spelling_width=8))
    pieces = spellings_of([" cat", "a", "stration", "x" * 30, " cats", "b", " the"])
    spellings = torch.cat((pieces, torch.zeros_like(pieces[:1])))
    # In parts, and sorted: each gets its own all the same.
    monkeypatch.setattr(output_projector, "_TOGETHER", 3)
    spelled = spelling.spell(spellings)
    alone = torch.cat([spelling.spell(row[None]) for row in spellings])
    torch.testing.assert_close(spelled, alone)
    assert torch.pdist(spelled).min() > 1e-4
    embeddings, hidden = torch.randn(2, 8, 6)
    expected = spelling(embeddings, hidden) + spelled
    torch.testing.assert_close(spelling(embeddings, hidden, spelled), expected)
    spelled.square().sum().backward()
    assert spelling.spelling is not None
    assert all(parameter.grad is not None for parameter in spelling.spelling.parameters())


def test_the_papers_projector_reads_no_letters() -> None:
    assert {name for name, _ in _PROJECTOR.named_parameters()} == {"linear.weight", "linear.bias"}
    with pytest.raises(ValueError, match="reads no letters: its spelling_width is 0"):
        _PROJECTOR.spell(spellings_of(["cat"]))
