"""The frozen recogniser teaches the encoder, also to be read while the speech goes on."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from minmo.model.moonshine_recognizer import MoonshineRecognizer, MoonshineRecognizerConfig
from minmo.training.recogniser_loss import RecogniserLoss, token_ends

WORDS = ("<unk>", "<s>", "</s>", "one", "two", "three", "!", "-")
SECONDS = 0.1


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def loss(behind: tuple[float, float]) -> RecogniserLoss:
    torch.manual_seed(0)
    sizes = MoonshineRecognizerConfig(
        width=16,
        mlp_width=32,
        layers=2,
        heads=2,
        rotary_dim=6,
        rotary_theta=10_000.0,
        max_tokens=12,
        vocabulary_size=len(WORDS),
        start_token=1,
        end_token=2,
    )
    return RecogniserLoss(MoonshineRecognizer(sizes), tokenizer(), SECONDS, behind)


def test_gradients_pass_to_the_frames_and_not_to_the_recogniser() -> None:
    made = loss((0.0, 0.0))
    frames = torch.randn(2, 20, 16, requires_grad=True)
    found = made(frames, torch.tensor([20, 10]), ["one two", "three"])
    found.backward()
    assert frames.grad is not None
    assert frames.grad[0].abs().sum() > 0
    # What stands behind a clip is not heard.
    assert frames.grad[1, :10].abs().sum() > 0
    assert frames.grad[1, 10:].abs().sum() == 0
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_frames_that_follow_it_are_read_as_what_was_said() -> None:
    made, lengths = loss((0.0, 0.0)), torch.tensor([20])
    frames = torch.randn(1, 20, 16).requires_grad_(True)
    optimizer = torch.optim.Adam([frames], lr=0.1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        found = made(frames, lengths, ["one two"])
        found.backward()
        optimizer.step()
        losses.append(float(found.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_half_of_the_clips_are_read_as_they_come() -> None:
    made, frames = loss((0.1, 0.1)), torch.randn(1, 30, 16)
    spans = [[(0.0, 0.5), (1.0, 2.0)]]
    gradients = set()
    for seed in range(12):
        torch.manual_seed(seed)
        heard = frames.clone().requires_grad_(True)
        made(heard, torch.tensor([30]), ["one two"], spans).backward()
        assert heard.grad is not None
        gradients.add(round(float(heard.grad[:, 22:].abs().sum()), 6))
    # The words end at frames 5 and 20; with 0.1 s behind them 7 and 22 are heard, and what comes
    # later by the end of the text alone.
    assert len(gradients) == 2
    # Where a word is heard is not known of every clip.
    torch.manual_seed(0)
    assert float(made(frames, torch.tensor([30]), ["one two"], [None])) > 0


def test_a_token_is_heard_until_its_word_ends() -> None:
    text = "one - two! three"
    encoding = tokenizer().encode(text)
    assert encoding.tokens == ["one", "-", "two", "!", "three"]
    spans = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]
    assert token_ends(text, encoding.offsets, spans) == [1.0, 1.0, 2.0, 2.0, 3.0]
    # Spans of other words say nothing.
    assert token_ends(text, encoding.offsets, spans[:2]) is None


def test_a_clip_is_read_as_text() -> None:
    made = loss((0.0, 0.0))
    texts = made.recognise(torch.randn(2, 20, 16), torch.tensor([20, 5]))
    assert len(texts) == 2
    assert all(set(text.split()) <= set(WORDS) for text in texts)
