"""Tokens come while the speech goes on, and in the end they are those of the whole utterance."""

import pytest
import torch
from torch import Tensor

from minmo.engine.streaming_recogniser import BEHIND_SECONDS, StreamingRecogniser, Token
from minmo.model.moonshine_recognizer import (
    MoonshineRecognizer,
    MoonshineRecognizerConfig,
    Reading,
)
from minmo.model.recognition import RecognizerCache

START, END = 1, 2
SECONDS = 0.02
# From 30 on a token begins a word.
BEGINS = torch.arange(60) >= 30


class Scripted(MoonshineRecognizer):
    """Finds tokens where its script says, once so much of the sound is there."""

    def __init__(self, script: list[tuple[int, int]]) -> None:
        torch.manual_seed(0)
        super().__init__(
            MoonshineRecognizerConfig(
                width=8,
                mlp_width=16,
                layers=2,
                heads=2,
                rotary_dim=2,
                rotary_theta=10_000.0,
                max_tokens=100,
                vocabulary_size=60,
                start_token=START,
                end_token=END,
            )
        )
        self.script, self.asked = script, 0
        self.first = 0
        """Frame of the segment that is the first of those that are remembered."""

    def follow(self, token: int, cache: RecognizerCache) -> Reading:
        self.asked += 1
        frames = cache.heard[0][0].shape[2]
        said = 0 if token == START else 1 + [each for each, _ in self.script].index(token)
        if token == START:
            said = sum(frame < self.first for _, frame in self.script)
        logits, attention = torch.zeros(60), torch.zeros(frames)
        there = said < len(self.script) and self.script[said][1] < self.first + frames
        logits[self.script[said][0] if there else END] = 5.0
        attention[self.script[said][1] - self.first if there else frames - 1] = 1
        return Reading(logits, attention)


def frames(count: int) -> Tensor:
    return torch.randn(1, count, 8, generator=torch.Generator().manual_seed(count))


def heard(found: list[Token]) -> list[tuple[int, int]]:
    return [(token.id, token.frame) for token in found]


SCRIPT = [(31, 3), (32, 20), (5, 26), (33, 60), (6, 64), (34, 90)]
BEHIND = round(BEHIND_SECONDS / SECONDS)


def test_a_token_is_given_when_its_sound_has_been_over_for_a_while() -> None:
    reader = StreamingRecogniser(Scripted(SCRIPT), SECONDS, BEGINS)
    given: list[tuple[int, int]] = []
    for block in range(12):
        given += heard(reader.hear(frames(10)))
        count = 10 * (block + 1)
        assert reader.frames == count
        assert given == [(token, frame) for token, frame in SCRIPT if frame < count - BEHIND]
        assert reader.settled >= count - BEHIND
    assert given == SCRIPT[:5] + SCRIPT[5:] * (120 - BEHIND > 90)
    given += heard(reader.finish())
    assert given == SCRIPT
    assert reader.finish() == []


def test_it_says_whether_the_word_is_over() -> None:
    reader = StreamingRecogniser(Scripted(SCRIPT), SECONDS, BEGINS)
    reader.hear(frames(21 + BEHIND))
    # The second word goes on at frame 26.
    assert not reader.word_is_over
    reader.hear(frames(10))
    # Behind the token at 26 another word is heard, or nothing as yet.
    assert reader.word_is_over


def test_frames_never_run_backwards_and_weights_are_shares() -> None:
    found = StreamingRecogniser(Scripted([(31, 30), (32, 8)]), SECONDS, BEGINS)
    tokens = found.hear(frames(40)) + found.finish()
    assert heard(tokens) == [(31, 30), (32, 30)]
    for token in tokens:
        assert int(token.candidates[0]) == token.id
        assert float(token.weights.sum()) == pytest.approx(1)
        assert float(token.weights[0]) == float(token.weights.max())


def test_a_phrase_over_and_over_comes_to_an_end() -> None:
    class Stuck(Scripted):
        def follow(self, token: int, cache: RecognizerCache) -> Reading:
            logits, attention = torch.zeros(60), torch.zeros(cache.heard[0][0].shape[2])
            logits[31], attention[0] = 5.0, 1
            return Reading(logits, attention)

    reader = StreamingRecogniser(Stuck([]), SECONDS, BEGINS)
    given = [token for _ in range(20) for token in reader.hear(frames(50))]
    assert len(given) < 10
    assert reader.finish() == []


def test_an_hour_is_not_remembered_and_no_word_is_lost() -> None:
    script = [(30 + n % 29, 3 + 40 * n) for n in range(29)]
    model = Scripted(script)
    reader = StreamingRecogniser(model, SECONDS, BEGINS)
    given: list[tuple[int, int]] = []
    for _ in range(120):
        found = reader.hear(frames(12))
        model.first = reader._forgotten
        given += heard(found)
        assert model.first >= reader.frames - 1000 - 12
    given += heard(reader.finish())
    assert model.first > 0
    assert given == script


def test_silence_is_taken_and_not_read() -> None:
    model = Scripted(SCRIPT)
    reader = StreamingRecogniser(model, SECONDS, BEGINS)
    for _ in range(200):
        reader.wait(frames(12))
    assert model.asked == 0
    assert reader.frames == 2400
    assert reader.settled >= 2400 - BEHIND


def test_a_real_decoder_reads_in_the_end_what_it_reads_of_the_whole() -> None:
    config = Scripted([]).config
    torch.manual_seed(3)
    model = MoonshineRecognizer(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    whole = frames(20)
    expected = model.greedy(whole, 8)
    reader = StreamingRecogniser(model, SECONDS, BEGINS)
    # All of it is too recent to be trusted before the end.
    given = [token for part in whole.split(5, dim=1) for token in reader.hear(part)]
    assert given == []
    found = [token.id for token in reader.finish()]
    assert found[: len(expected)] == expected
