"""Whisper's decoder computes what the published one does, and transcribes as it does."""

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from minmo.model.whisper_recognizer import (
    WhisperPrompt,
    WhisperRecognizer,
    WhisperRecognizerConfig,
)

CONFIG = WhisperRecognizerConfig(
    width=32, mlp_width=64, layers=2, heads=4, vocabulary_size=80, max_tokens=24
)
PROMPT = WhisperPrompt(
    start_token=70,
    languages={"en": 71, "de": 72},
    after_language=(73, 74),
    end_token=75,
    suppressed=(1, 2),
    suppressed_first=(3, 75),
)


@pytest.fixture(scope="module")
def published() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=80,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_target_positions=24,
        decoder_start_token_id=70,
        eos_token_id=75,
        pad_token_id=75,
        bos_token_id=75,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=0.3,
    )
    return WhisperForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def ours(published: WhisperForConditionalGeneration) -> WhisperRecognizer:
    model = WhisperRecognizer(CONFIG).eval()
    model.load_state_dict(published.model.decoder.state_dict())
    return model


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cuts", [[7], [1, 6], [3, 1, 1, 2]])
def test_logits_are_the_published_ones_however_the_tokens_come(
    published: WhisperForConditionalGeneration,
    ours: WhisperRecognizer,
    frames: torch.Tensor,
    cuts: list[int],
) -> None:
    tokens = torch.tensor([[70, 71, 73, 74, 9, 20, 33]])
    with torch.inference_mode():
        hidden = published.model.decoder(tokens, encoder_hidden_states=frames).last_hidden_state
        expected = published.proj_out(hidden)
        cache = ours.start(frames)
        found = torch.cat([ours(piece, cache) for piece in tokens.split(cuts, 1)], 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_transcribes_greedily_in_the_language_that_is_asked_for(
    published: WhisperForConditionalGeneration, ours: WhisperRecognizer, frames: torch.Tensor
) -> None:
    expected = [70, 72, 73, 74]
    with torch.inference_mode():
        for step in range(20):
            hidden = published.model.decoder(
                torch.tensor([expected]), encoder_hidden_states=frames
            ).last_hidden_state
            logits = published.proj_out(hidden)[0, -1]
            logits[[1, 2] if step else [1, 2, 3, 75]] = float("-inf")
            expected.append(int(logits.argmax()))
            if expected[-1] == 75:
                break
    said = [token for token in expected[4:] if token != 75]
    found = ours.greedy(frames, 100, PROMPT, "de")
    assert found == said[: len(found)] and (len(found) == len(said) or found[-1] in found[:-1])


def test_finds_the_language_by_itself(ours: WhisperRecognizer, frames: torch.Tensor) -> None:
    with torch.inference_mode():
        logits = ours(torch.tensor([[70]]), ours.start(frames))[0, -1]
    likelier = "en" if logits[71] > logits[72] else "de"
    assert ours.greedy(frames, 8, PROMPT) == ours.greedy(frames, 8, PROMPT, likelier)


def test_refuses_a_language_it_does_not_know(ours: WhisperRecognizer, frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="language is 'xx'; the model knows de, en"):
        ours.greedy(frames, 8, PROMPT, "xx")


def test_refuses_more_tokens_than_it_has_positions(
    ours: WhisperRecognizer, frames: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="25 tokens do not fit: an utterance has at most 24"):
        ours(torch.zeros(1, 25, dtype=torch.int64), ours.start(frames))


def test_reads_the_prompt_of_a_published_checkpoint() -> None:
    prompt = WhisperPrompt.from_generation_config(
        {
            "lang_to_id": {"<|en|>": 50259, "<|de|>": 50261},
            "task_to_id": {"transcribe": 50360, "translate": 50359},
            "no_timestamps_token_id": 50364,
            "decoder_start_token_id": 50258,
            "eos_token_id": 50257,
            "suppress_tokens": [1, 2],
            "begin_suppress_tokens": [220, 50257],
        }
    )
    assert prompt.languages == {"en": 50259, "de": 50261}
    assert prompt.after_language == (50360, 50364)
    assert (prompt.start_token, prompt.end_token) == (50258, 50257)
    assert (prompt.suppressed, prompt.suppressed_first) == ((1, 2), (220, 50257))
