"""The output projector: a semantic vector is a token's embedding and what predicted it."""

import torch

from minmo.model.output_projector import OutputProjector, OutputProjectorConfig

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
