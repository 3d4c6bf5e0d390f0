"""What training of the LLM minimises."""

import torch
from torch.nn import functional as F

from minmo.model.llm import LlmConfig, random_llm
from minmo.model.token_loss import IGNORED, text_loss

CONFIG = LlmConfig(
    vocabulary_size=40,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp_width=24,
    norm_epsilon=1e-5,
    rope_theta=10_000.0,
    qkv_bias=False,
    tied_embeddings=True,
    max_context=64,
)


def test_speech_learns_from_the_text_that_follows_and_from_nothing_else() -> None:
    llm = random_llm(CONFIG).requires_grad_(False)
    speech = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    targets = torch.full((2, 9), IGNORED)
    targets[0, 5:8] = torch.tensor([3, 7, 1])
    targets[1, 3] = 9
    lengths = torch.tensor([9, 5])
    found = text_loss(llm, speech, targets, lengths)
    logits = llm.logits(llm.forward_sequence(speech, lengths))
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(found.loss, each.sum() / 4)
    assert found.targets == 4
    found.loss.backward()
    assert speech.grad is not None
    assert bool((speech.grad[0, :8] != 0).any(-1).all())
    # What comes after a sequence's last target teaches nothing.
    assert not speech.grad[0, 8].any()
    assert not speech.grad[1, 4:].any()


def test_nothing_to_predict_is_no_loss() -> None:
    llm = random_llm(CONFIG)
    found = text_loss(llm, torch.randn(1, 3, 16), torch.full((1, 3), IGNORED))
    assert (float(found.loss.detach()), int(found.targets)) == (0.0, 0)
