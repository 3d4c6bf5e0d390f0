"""The recogniser and the speech embeddings, from samples."""

import numpy as np
import pytest
import torch

from minmo.audio.pcm import Samples
from minmo.engine.finding_pieces import Heard, MergedPieces
from minmo.engine.listening import (
    AlignedEmbedder,
    Probe,
    Recogniser,
    Schedule,
    split_at_quiet,
)
from minmo.engine.reading import read_with_moonshine
from minmo.model import merging, probing
from minmo.model.input_projector import InputProjector, InputProjectorConfig
from minmo.model.moonshine_encoder import MoonshineEncoder, MoonshineEncoderConfig
from minmo.model.moonshine_recognizer import MoonshineRecognizer, MoonshineRecognizerConfig
from minmo.model.recognition_head import RecognitionHead, RecognitionHeadConfig
from minmo.model.spelling import LONGEST_SPELLING
from services.encoder.models import ListeningModels
from tests.listening import recordings, weights_or_skip, word_error_rate


def small_encoder() -> MoonshineEncoder:
    torch.manual_seed(5)
    config = MoonshineEncoderConfig(
        width=16, mlp_width=32, layers=2, heads=2, rotary_dim=6, rotary_theta=10_000.0
    )
    return MoonshineEncoder(config).eval().requires_grad_(False)


def small_projector_and_head() -> tuple[InputProjector, RecognitionHead]:
    """Random ones that hear several pieces, and none now and then."""
    torch.manual_seed(5)
    rows, pieces = 0.02 * torch.randn(40, 24), torch.randperm(60)[:40]
    spellings = torch.randint(1, 90, (40, LONGEST_SPELLING)).to(torch.uint8)
    config = RecognitionHeadConfig(60, 24, 40, spelling_width=16, key_width=12)
    head = RecognitionHead(config, rows, pieces, spellings).eval().requires_grad_(False)
    torch.nn.init.normal_(head.query_proj.weight, std=0.3 * config.key_width)
    torch.nn.init.normal_(head.blank_proj.weight, std=0.6)
    head.blank_proj.bias.fill_(0.9)
    sizes = InputProjectorConfig(
        input_width=16, width=16, mlp_width=32, heads=2, output_width=24, letters=42
    )
    projector = InputProjector(sizes).eval().requires_grad_(False)
    torch.nn.init.normal_(projector.conv.weight, std=1)
    return projector, head


ENCODER = small_encoder()
PROJECTOR, HEAD = small_projector_and_head()
SCHEDULE = Schedule.of(ENCODER, PROJECTOR)


def embedder() -> AlignedEmbedder:
    return AlignedEmbedder(ENCODER, PROJECTOR, HEAD, MergedPieces(HEAD))


def noise(samples: int, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).normal(scale=0.2, size=samples).astype(np.float32)


def streamed(audio: Samples, chunk: int) -> Heard:
    made = embedder()
    heard = made.process(audio[:0])
    for start in range(0, len(audio), chunk):
        heard = heard.followed_by(made.process(audio[start : start + chunk]))
    return heard.followed_by(made.finish(len(audio)))


@torch.inference_mode()
def whole(audio: Samples) -> Heard:
    """What the modules make of a whole clip and the silence behind it."""
    length = SCHEDULE.padded(len(audio)) + SCHEDULE.look_ahead
    padded = torch.from_numpy(np.pad(audio, (0, length - len(audio))))[None]
    embeddings = PROJECTOR(ENCODER.forward_causal(padded))
    scores = HEAD(embeddings)
    lengths = torch.tensor([embeddings.shape[1]])
    merged = merging.merge(HEAD.mixtures(embeddings, scores), scores, lengths)
    count = int(merged.counts)
    tokens = HEAD.pieces[merged.classes[0, :count]].tolist()
    return Heard(merged.embeddings[0, :count], tokens, merged.frames[0, :count].tolist())


@pytest.mark.parametrize("samples", [100, 768, 2304, 20_000, 40_000])
def test_a_stream_hears_what_the_whole_clip_hears(samples: int) -> None:
    audio = noise(samples)
    found, expected = streamed(audio, 320), whole(audio)
    assert found.tokens == expected.tokens
    assert found.frames == expected.frames
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-5, rtol=0)
    if samples > 20_000:
        assert len(set(found.tokens)) >= 3
        # Merging left something out: the same piece twice in a row, or none.
        assert len(found.tokens) < samples // 768


@pytest.mark.parametrize("chunk", [1, 160, 2304, 3001, 40_000])
def test_no_bit_depends_on_how_the_audio_was_cut(chunk: int) -> None:
    audio = noise(9000 if chunk == 1 else 40_000)
    found, expected = streamed(audio, chunk), streamed(audio, len(audio))
    assert found.tokens == expected.tokens
    assert torch.equal(found.embeddings, expected.embeddings)


@pytest.mark.parametrize("chunk", [160, 2304, 3001, 40_000])
def test_a_stream_probes_what_the_whole_clip_sounds_like(chunk: int) -> None:
    audio = noise(40_000)
    made = AlignedEmbedder(ENCODER, PROJECTOR, HEAD, MergedPieces(HEAD), probes=True)
    given: list[Probe] = []
    for start in range(0, len(audio), chunk):
        made.process(audio[start : start + chunk])
        given += made.take_probes()
        taken = min(start + chunk, len(audio))
        # A step is probed when its block has been encoded.
        assert len(given) == SCHEDULE.blocks(taken)
    made.finish(len(audio))
    assert made.take_probes() == []
    with torch.inference_mode():
        embeddings = PROJECTOR(ENCODER.forward_causal(torch.from_numpy(audio)[None]))
        sized = HEAD.as_large_as_text(embeddings)
        whole = probing.probes(sized, torch.tensor([sized.shape[1]]))
    assert [probe.step for probe in given] == list(range(len(given)))
    found = torch.cat([probe.embedding for probe in given])
    torch.testing.assert_close(found, whole.embeddings[0, : len(given)], atol=1e-5, rtol=0)


def test_nobody_is_probed_who_did_not_ask() -> None:
    made = embedder()
    made.process(noise(10_000))
    assert made.take_probes() == []


def test_pieces_come_while_the_audio_comes_and_never_later_than_promised() -> None:
    audio = noise(40_000)
    everything = streamed(audio, 40_000)
    over = [*everything.frames[1:], 10**6]
    made, given = embedder(), 0
    for start in range(0, len(audio), 160):
        given += len(made.process(audio[start : start + 160]).tokens)
        heard = start + 160
        # A piece lasts until the next one at most.
        due = sum(768 * end + SCHEDULE.longest_wait <= heard for end in over)
        assert given >= due
        assert made.settled <= heard
        assert given == sum(768 * frame < made.settled for frame in everything.frames)
    assert SCHEDULE.longest_wait == 2304 + 511
    assert 0 < given < len(everything.tokens)


def test_a_segment_may_end_before_the_audio_that_was_taken() -> None:
    audio = noise(30_000)
    made = embedder()
    before = made.process(audio)
    assert before.tokens == streamed(audio, 30_000).tokens[: len(before.tokens)]
    last = made.finish(5000)
    # What was given is not taken back; what is behind the end, and its silence, is not given.
    assert all(frame * 768 < SCHEDULE.padded(5000) for frame in last.frames)
    waiting = embedder()
    waiting.process(audio[:2500])
    assert waiting.finish(2304 + 100).tokens == whole(audio[: 2304 + 100]).tokens


def test_a_segment_cannot_end_behind_its_audio() -> None:
    made = embedder()
    made.process(noise(100))
    with pytest.raises(ValueError, match="holds 100 samples, it cannot end at 101"):
        made.finish(101)


def test_an_empty_segment_has_no_embeddings() -> None:
    heard = embedder().finish(0)
    assert heard.embeddings.shape == (0, 24)
    assert heard.tokens == heard.frames == []


def test_a_long_segment_holds_no_more_than_a_block() -> None:
    made = embedder()
    for _ in range(20):
        made.process(noise(4000))
        assert len(made._waiting) < SCHEDULE.step + SCHEDULE.look_ahead
    assert made.samples == 80_000


def test_twenty_seconds_stay_whole() -> None:
    assert [len(piece) for piece in split_at_quiet(noise(20 * 16000))] == [20 * 16000]


@pytest.mark.parametrize("seconds", [20.1, 25, 30, 95])
def test_a_long_segment_is_cut_into_pieces_that_fit_and_lose_nothing(seconds: float) -> None:
    audio = noise(int(seconds * 16000))
    pieces = split_at_quiet(audio)
    np.testing.assert_array_equal(np.concatenate(pieces), audio)
    assert max(len(piece) for piece in pieces) <= 22 * 16000
    assert min(len(piece) for piece in pieces) >= 7 * 16000


def test_a_long_segment_is_cut_where_it_is_quiet() -> None:
    audio = noise(24 * 16000)
    audio[13 * 16000 : 13 * 16000 + 3200] = 0
    first, _ = split_at_quiet(audio)
    assert 13 * 16000 <= len(first) <= 13 * 16000 + 3200


def small_recogniser(heard: list[int]) -> Recogniser:
    """A recogniser of random weights; notes how many tokens each piece gave."""
    torch.manual_seed(5)
    config = MoonshineRecognizerConfig(
        width=16,
        mlp_width=32,
        layers=1,
        heads=2,
        rotary_dim=6,
        rotary_theta=10_000.0,
        max_tokens=194,
        vocabulary_size=50,
        start_token=1,
        end_token=2,
    )

    def to_text(tokens: object) -> str:
        heard.append(len(list(tokens)))  # type: ignore[call-overload]
        return "words "

    decoder = MoonshineRecognizer(config).eval()
    return Recogniser(read_with_moonshine(ENCODER, decoder), to_text, ENCODER.shortest_clip)


def test_silence_and_too_little_have_no_words_and_cost_nothing() -> None:
    heard: list[int] = []
    recogniser = small_recogniser(heard)
    dither = 1e-5 * noise(16000)
    assert recogniser.transcribe(np.zeros(16000, np.float32)) == ""
    assert recogniser.transcribe(dither) == ""
    assert recogniser.transcribe(noise(0)) == ""
    assert heard == []


def test_the_shortest_sound_is_recognised_and_a_long_one_piece_by_piece() -> None:
    heard: list[int] = []
    recogniser = small_recogniser(heard)
    assert recogniser.transcribe(noise(1)) == "words"
    assert recogniser.transcribe(noise(25 * 16000)) == "words words"
    assert all(tokens <= 13 * 6.5 + 7 for tokens in heard)


def test_real_speech_is_recognised() -> None:
    weights_or_skip("voice_encoder")
    weights_or_skip("vad")
    recogniser = ListeningModels.load("mini", "words").recogniser
    spoken = recordings()
    found = [recogniser.transcribe(clip.samples) for clip in spoken]
    assert word_error_rate([clip.text for clip in spoken], found) < 0.1
    # Longer than the recogniser takes at once: the same clips with pauses, in one segment.
    pause = np.zeros(4000, np.float32)
    joined = np.concatenate([np.concatenate((clip.samples, pause)) for clip in spoken])
    assert len(joined) > 20 * 16000
    text = recogniser.transcribe(joined)
    assert word_error_rate([" ".join(clip.text for clip in spoken)], [text]) < 0.15
