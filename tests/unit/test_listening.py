"""The recogniser and the speech embeddings, from samples."""

import numpy as np
import pytest
import torch
from torch import Tensor

from minmo.audio.pcm import Samples
from minmo.engine.listening import (
    EmbeddingSchedule,
    Recogniser,
    StreamingEmbedder,
    WindowEmbedder,
    split_at_quiet,
)
from minmo.engine.reading import read_with_moonshine
from minmo.model.input_projector import InputProjector, InputProjectorConfig
from minmo.model.moonshine_encoder import MoonshineEncoder, MoonshineEncoderConfig
from minmo.model.moonshine_recognizer import MoonshineRecognizer, MoonshineRecognizerConfig
from services.encoder.models import ListeningModels
from tests.listening import recordings, weights_or_skip, word_error_rate

SCHEDULE = EmbeddingSchedule(768, step=2304, look_ahead=1536, window=9216)


def small_encoder() -> MoonshineEncoder:
    torch.manual_seed(0)
    config = MoonshineEncoderConfig(
        width=16, mlp_width=32, layers=2, heads=2, rotary_dim=6, rotary_theta=10_000.0
    )
    return MoonshineEncoder(config).eval()


def small_projector() -> InputProjector:
    torch.manual_seed(0)
    config = InputProjectorConfig(input_width=16, width=16, mlp_width=32, heads=2, output_width=24)
    return InputProjector(config).eval()


ENCODER = small_encoder()
PROJECTOR = small_projector()


def noise(samples: int, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).normal(scale=0.2, size=samples).astype(np.float32)


def embed(samples: Samples, chunk: int, schedule: EmbeddingSchedule = SCHEDULE) -> list[Tensor]:
    """What each chunk gives, and at last the end."""
    embedder = WindowEmbedder(ENCODER, PROJECTOR, schedule)
    made = [
        embedder.process(samples[start : start + chunk]) for start in range(0, len(samples), chunk)
    ]
    return [*made, embedder.finish(len(samples))]


@pytest.mark.parametrize("samples", [100, 768, 2304, 20_000, 40_000])
@pytest.mark.parametrize("chunk", [160, 320, 2304, 3001, 40_000])
def test_any_chunks_give_the_same_embeddings(samples: int, chunk: int) -> None:
    audio = noise(samples)
    whole = torch.cat(embed(audio, samples))
    assert whole.shape == (-(-samples // 768), 24)
    torch.testing.assert_close(torch.cat(embed(audio, chunk)), whole, atol=1e-5, rtol=0)


def test_embeddings_come_while_the_audio_comes_and_never_later_than_promised() -> None:
    audio, given = noise(30_000), 0
    embedder = WindowEmbedder(ENCODER, PROJECTOR, SCHEDULE)
    for start in range(0, len(audio), 160):
        given += len(embedder.process(audio[start : start + 160]))
        heard = start + 160
        assert given >= (heard - SCHEDULE.longest_wait) // 768
        assert given * 768 <= heard - SCHEDULE.look_ahead or given == 0
    assert embedder.embeddings == given


def test_audio_behind_the_look_ahead_does_not_change_what_is_final() -> None:
    audio = noise(20_000)
    changed = audio.copy()
    changed[9216:] = noise(20_000 - 9216, seed=1)
    same = (9216 - SCHEDULE.look_ahead) // 768
    first, second = torch.cat(embed(audio, 160)), torch.cat(embed(changed, 160))
    torch.testing.assert_close(first[:same], second[:same], atol=1e-5, rtol=0)
    assert not torch.allclose(first[same + 3 :], second[same + 3 :])


def test_the_windows_of_a_long_segment_line_up_with_its_start() -> None:
    """Short segments see all of themselves; a window over all of a long one must agree."""
    audio = noise(40_000)
    wide = EmbeddingSchedule(768, step=2304, look_ahead=1536, window=76_800)
    sliding, seeing_all = (torch.cat(embed(audio, 320, schedule)) for schedule in (SCHEDULE, wide))
    similarity = torch.cosine_similarity(sliding, seeing_all)
    shifted = torch.cosine_similarity(sliding[1:], seeing_all[:-1])
    assert similarity.min() > shifted.mean() + 0.05


def test_a_segment_may_end_before_the_audio_that_was_taken() -> None:
    audio = noise(9000)
    embedder = WindowEmbedder(ENCODER, PROJECTOR, SCHEDULE)
    before = len(embedder.process(audio))
    assert before == (6912 - 1536) // 768
    assert len(embedder.finish(7000)) == 10 - before
    ended = WindowEmbedder(ENCODER, PROJECTOR, SCHEDULE)
    ended.process(audio)
    assert len(ended.finish(1000)) == 0  # what was final before is not taken back


def test_a_long_segment_that_ends_before_what_was_taken_ends_in_place() -> None:
    audio = noise(40_000)
    whole = torch.cat(embed(audio, 40_000))
    embedder = WindowEmbedder(ENCODER, PROJECTOR, SCHEDULE)
    final = len(embedder.process(audio))
    last = embedder.finish(768 * final + 500)
    assert last.shape == (1, 24)
    similarity = torch.cosine_similarity(last[0], whole)
    assert int(similarity.argmax()) == final


def test_a_segment_cannot_end_behind_its_audio() -> None:
    embedder = WindowEmbedder(ENCODER, PROJECTOR, SCHEDULE)
    embedder.process(noise(100))
    with pytest.raises(ValueError, match="holds 100 samples, it cannot end at 101"):
        embedder.finish(101)


def test_an_empty_segment_has_no_embeddings() -> None:
    assert WindowEmbedder(ENCODER, PROJECTOR, SCHEDULE).finish(0).shape == (0, 24)


def test_a_long_segment_holds_no_more_than_its_window() -> None:
    embedder = WindowEmbedder(ENCODER, PROJECTOR, SCHEDULE)
    for _ in range(50):
        embedder.process(noise(4000))
        # Less is not enough either: a segment may end right behind the last step.
        last_step = embedder.samples // SCHEDULE.step * SCHEDULE.step
        behind_step = embedder.samples - last_step
        needed = min(last_step, SCHEDULE.window) - 768
        assert needed < len(embedder._held) - behind_step <= SCHEDULE.window
    assert embedder.samples == 200_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 1000}, "step is 1000: it must be a multiple of 768"),
        ({"window": 768}, "window is 768: look-ahead and two steps take 13824"),
        ({"look_ahead": 500}, "look_ahead is 500: a frame sees 511 more"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingSchedule(768, **values)


def test_a_schedule_must_fit_the_projector() -> None:
    with pytest.raises(ValueError, match="the projector makes one of 768"):
        WindowEmbedder(
            ENCODER, PROJECTOR, EmbeddingSchedule(384, step=2304, window=9216, look_ahead=1536)
        )


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
    torch.manual_seed(0)
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
    recogniser = ListeningModels.load("mini").recogniser
    spoken = recordings()
    found = [recogniser.transcribe(clip.samples) for clip in spoken]
    assert word_error_rate([clip.text for clip in spoken], found) < 0.1
    # Longer than the recogniser takes at once: the same clips with pauses, in one segment.
    pause = np.zeros(4000, np.float32)
    joined = np.concatenate([np.concatenate((clip.samples, pause)) for clip in spoken])
    assert len(joined) > 20 * 16000
    text = recogniser.transcribe(joined)
    assert word_error_rate([" ".join(clip.text for clip in spoken)], [text]) < 0.15


@pytest.mark.parametrize("samples", [100, 768, 2304, 20_000])
@pytest.mark.parametrize("chunk", [160, 3001, 20_000])
def test_an_adapted_encoder_streams_and_any_chunks_give_the_same(samples: int, chunk: int) -> None:
    audio = noise(samples)

    def streamed(chunk: int) -> Tensor:
        embedder = StreamingEmbedder(ENCODER, PROJECTOR)
        made = [embedder.process(audio[at : at + chunk]) for at in range(0, samples, chunk)]
        return torch.cat((*made, embedder.finish(samples)))

    whole = streamed(samples)
    assert whole.shape == (-(-samples // 768), 24)
    torch.testing.assert_close(streamed(chunk), whole, atol=1e-5, rtol=0)
    # Behind its end the clip is silent, as the encoder's own causal forward sees it.
    padded = np.pad(audio, (0, ENCODER.block_samples + ENCODER.look_ahead + 768))
    frames = ENCODER.forward_causal(torch.from_numpy(padded)[None])
    torch.testing.assert_close(whole, PROJECTOR(frames)[0, : len(whole)], atol=1e-4, rtol=0)
