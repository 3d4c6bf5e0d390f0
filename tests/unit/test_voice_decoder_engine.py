"""The voice decoder's engine with real modules of random weights."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from minmo.engine.speech_sampling import RepetitionAwareSampler
from minmo.engine.voice import (
    Piece,
    Query,
    Samples,
    SpeakingError,
    TextToken,
    TokenError,
    VoiceBusyError,
)
from minmo.engine.voice_decoder import token2wav
from minmo.engine.voice_decoder.engine import EngineOptions, VoiceEngine
from minmo.engine.voice_decoder.modules import VoiceModules
from minmo.engine.voice_decoder.sequence import Rates, SpeechSequence, State
from minmo.engine.voice_decoder.token2wav import SlotMemoryError, Token2Wav
from minmo.model.interleave import Interleaving, Kind
from minmo.model.llm import LlmCache, Segment
from minmo.model.speaker import Prompt, Speaker, SpeakerError, random_speaker
from tests.unit.tiny_voice import (
    HIDDEN_WIDTH,
    MEL_BINS,
    SAMPLES_PER_TOKEN,
    SPEAKER_WIDTH,
    VOCABULARY,
    prompt_mel,
    states,
    text,
    tiny_voice,
)

OPTIONS = EngineOptions(slots=4, context=512, max_wait_seconds=20.0, step_deadline_seconds=20.0)
SPEAKER = random_speaker(SPEAKER_WIDTH)
# Ends after a few seconds of speech.
ENDS = 2.5


@contextmanager
def running(modules: VoiceModules, **changes: object) -> Iterator[VoiceEngine]:
    engine = VoiceEngine(modules, replace(OPTIONS, **changes))  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def modules() -> VoiceModules:
    return tiny_voice(end_bias=ENDS)


@pytest.fixture
def engine(modules: VoiceModules) -> Iterator[VoiceEngine]:
    with running(modules) as engine:
        yield engine


def rest_of(engine: VoiceEngine, sequence: SpeechSequence) -> list[Piece]:
    pieces = []
    while (piece := engine.next_piece(sequence)) is not None:
        pieces.append(piece)
    return pieces


def started(
    engine: VoiceEngine, count: int = 12, seed: int = 0, speaker: Speaker = SPEAKER
) -> SpeechSequence:
    """All text at once."""
    sequence = engine.open(speaker, seed)
    hidden = states(count, seed) if engine.modules.semantic else None
    engine.push(sequence, text(count, seed), hidden)
    engine.end(sequence)
    return sequence


def said(
    engine: VoiceEngine, count: int = 12, seed: int = 0, speaker: Speaker = SPEAKER
) -> Samples:
    return joined(rest_of(engine, started(engine, count, seed, speaker)))


def joined(pieces: list[Piece]) -> Samples:
    return np.concatenate([piece.samples for piece in pieces])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def drawn_alone(
    modules: VoiceModules, vectors: Tensor, forced: list[int], prefix: Tensor | None = None
) -> list[int]:
    """Speech tokens by the plain loop over one sequence, without an engine."""
    lm, sampler = modules.lm, RepetitionAwareSampler(seed=0)
    prefixes = 0 if prefix is None else len(prefix)
    plan = Interleaving(5, 15, 512, lm.config.end, prefixes, max_speech_per_vector=25)
    plan.push(len(vectors))
    plan.end()
    cache, tokens, position = LlmCache(lm.cache_config, 1, 512), [], 0
    while inputs := plan.feed():
        rows = []
        for kind, value in inputs:
            match kind:
                case Kind.START:
                    rows.append(lm.start)
                case Kind.TURN_OF_SPEECH:
                    rows.append(lm.turn_of_speech)
                case Kind.SEMANTIC:
                    rows.append(vectors[value])
                case Kind.PREFIX:
                    assert prefix is not None
                    rows.append(prefix[value])
                case Kind.SPEECH:
                    rows.append(lm.embed_speech(torch.tensor(value)))
        hidden = lm(torch.stack(rows), [Segment(0, position, len(rows))], cache)
        position += len(rows)
        token = forced.pop(0) if forced else sampler.draw(lm.logits(hidden[-1]), plan.may_end)
        plan.draw(token)
        if token != lm.config.end:
            tokens.append(token)
    return tokens


@torch.inference_mode()
def test_audio_is_what_the_modules_make_of_the_whole_text(
    modules: VoiceModules, engine: VoiceEngine
) -> None:
    assert modules.semantic is not None
    embeddings = modules.semantic.embeddings[[token.id for token in text(12)]]
    vectors = modules.semantic.projector(embeddings, torch.from_numpy(states(12)))
    tokens = torch.tensor([drawn_alone(modules, vectors, [])])
    mel = modules.flow(tokens, SPEAKER.embedding[None])
    expected = modules.vocoder(mel)[0].numpy()
    audio = said(engine)
    assert len(audio) == tokens.shape[1] * SAMPLES_PER_TOKEN > 20_000
    np.testing.assert_allclose(audio, expected, atol=1e-4)


@torch.inference_mode()
def test_what_the_user_has_said_comes_first(modules: VoiceModules, engine: VoiceEngine) -> None:
    query = Query(states(70, 5), states(70, 6))
    sequence = engine.open(SPEAKER, 0, query)
    engine.push(sequence, text(12), states(12))
    engine.end(sequence)
    audio = joined(rest_of(engine, sequence))
    assert modules.semantic is not None
    project = modules.semantic.projector
    embeddings = modules.semantic.embeddings[[token.id for token in text(12)]]
    vectors = project(embeddings, torch.from_numpy(states(12)))
    prefix = project(torch.from_numpy(query.embeddings), torch.from_numpy(query.hidden_states))
    tokens = drawn_alone(modules, vectors, [], prefix)
    assert len(audio) == len(tokens) * SAMPLES_PER_TOKEN
    assert len(audio) != len(said(engine)) or not np.array_equal(audio, said(engine))


@torch.inference_mode()
def test_a_prompt_is_gone_on_from_and_not_heard_again() -> None:
    modules = tiny_voice(end_bias=ENDS, text_table=True)
    heard = torch.randint(0, 27, (45,), generator=torch.Generator().manual_seed(0)).tolist()
    prompt = Prompt(tuple(heard), prompt_mel(45), tuple(token.id for token in text(8, 9)))
    speaker = replace(SPEAKER, name="cloned", prompt=prompt)
    ids = torch.tensor([*prompt.text_tokens, *(token.id for token in text(12))])
    tokens = drawn_alone(modules, modules.lm.embed_text(ids), list(heard))
    assert tokens[:45] == heard
    mel = modules.flow(torch.tensor([tokens]), speaker.embedding[None], prompt.mel[None])
    expected = modules.vocoder(mel[:, 90:])[0].numpy()
    with running(modules) as engine:
        pieces = rest_of(engine, started(engine, speaker=speaker))
    audio = joined(pieces)
    assert len(pieces[0].samples) == 12 * SAMPLES_PER_TOKEN
    assert len(audio) == len(expected) == (len(tokens) - 45) * SAMPLES_PER_TOKEN
    np.testing.assert_allclose(audio, expected, atol=1e-4)
    assert pieces[-1].marks[-1].token_count == 12


@pytest.mark.parametrize("portion", [1, 3, 7])
def test_text_that_trickles_in_sounds_like_text_that_came_at_once(
    engine: VoiceEngine, portion: int
) -> None:
    sequence = engine.open(SPEAKER)
    tokens, hidden = text(20), states(20)
    pieces = []
    for first in range(0, 20, portion):
        end = first + portion
        engine.push(sequence, tokens[first:end], hidden[first:end])
        pieces += rest_of(engine, sequence)
    engine.end(sequence)
    pieces += rest_of(engine, sequence)
    assert np.array_equal(joined(pieces), said(engine, 20))


def test_others_that_speak_at_the_same_time_change_nothing(engine: VoiceEngine) -> None:
    counts = {seed: 4 + 3 * seed for seed in range(8)}
    alone = {seed: said(engine, count, seed) for seed, count in counts.items()}
    together = {}

    def speak(seed: int) -> None:
        together[seed] = said(engine, counts[seed], seed)

    threads = [threading.Thread(target=speak, args=(seed,)) for seed in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in counts:
        assert np.array_equal(alone[seed], together[seed]), seed
    assert len({audio.tobytes() for audio in alone.values()}) == len(alone)
    snapshot = engine.snapshot()
    assert snapshot.token_steps < snapshot.tokens
    assert snapshot.slots_in_use == snapshot.waiting == 0


def test_slots_that_step_together_sound_the_same(modules: VoiceModules) -> None:
    with running(modules) as engine:
        alone = [said(engine, 12, seed) for seed in range(4)]
    with running(modules, lanes=4) as engine:
        sequences = [started(engine, 12, seed) for seed in range(4)]
        together = [joined(rest_of(engine, sequence)) for sequence in sequences]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


CLONED = replace(SPEAKER, name="cloned", prompt=Prompt((3, 1, 2) * 10, prompt_mel(30)))


def test_recorded_steps_sound_the_same(modules: VoiceModules) -> None:
    speakers = [SPEAKER, CLONED, SPEAKER, SPEAKER, CLONED, SPEAKER]
    with running(modules) as engine:
        alone = [said(engine, 6 + n, n, speaker) for n, speaker in enumerate(speakers)]
    with running(modules, batched=True) as engine:
        sequences = [started(engine, 6 + n, n, speaker) for n, speaker in enumerate(speakers)]
        together = [joined(rest_of(engine, sequence)) for sequence in sequences]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_step_of_token2wav_costs_as_much_as_has_a_chunk() -> None:
    modules = tiny_voice(end_bias=ENDS)
    step, rows = modules.flow.step, []

    def counted(tokens: Tensor, *rest: Tensor, **more: Tensor) -> Tensor:
        rows.append(len(tokens))
        return step(tokens, *rest, **more)  # type: ignore[arg-type]

    modules.flow.step = counted  # type: ignore[method-assign,assignment]
    with running(modules, slots=8, batched=True) as engine:
        said(engine)
        assert set(rows) == {1}
        rows.clear()
        sequences = [started(engine, 12, seed) for seed in range(3)]
        for sequence in sequences:
            rest_of(engine, sequence)
        assert set(rows) <= {1, 2, 4}


def test_more_slots_than_memory_holds_are_refused(
    modules: VoiceModules, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = Token2Wav(modules, 1, 1)
    slot.enter(0, SPEAKER)
    size = slot._groups[0]._remembered().size_bytes()
    monkeypatch.setattr(token2wav, "free_memory", lambda _: 3 * size)
    with pytest.raises(SlotMemoryError, match=r"^4 slots of .* MB each, .* free on cpu: 2 slots"):
        VoiceEngine(modules, OPTIONS)
    monkeypatch.setattr(token2wav, "free_memory", lambda _: 5 * size)
    VoiceEngine(modules, OPTIONS)


@torch.inference_mode()
def test_prompts_of_a_few_speakers_stay_read(modules: VoiceModules) -> None:
    steps, step = [], modules.flow.step
    heard = Token2Wav(replace(modules, flow=copy.copy(modules.flow)), slots=1, lanes=1)

    def counted(*inputs: Tensor, **more: Tensor) -> Tensor:
        steps.append(1)
        return step(*inputs, **more)  # type: ignore[arg-type]

    heard._modules.flow.step = counted  # type: ignore[method-assign,assignment]
    speakers = [replace(CLONED, name=str(number)) for number in range(6)]
    for speaker in [*speakers, *speakers[-4:]]:
        heard.enter(0, speaker)
    assert len(steps) == 6 * 2 and len(heard._templates) == 4
    heard.enter(0, speakers[0])
    assert len(steps) == 7 * 2
    # Somebody else by the same name is read anew.
    heard.enter(0, replace(speakers[0]))
    assert len(steps) == 8 * 2


def test_without_look_ahead_a_prompt_is_over_when_speech_begins() -> None:
    rates = Rates(5, 15, 27, 512, 15, 0, SAMPLES_PER_TOKEN, 24_000, 25)
    sequence = SpeechSequence(rates, CLONED, 0, None, prompts_lm=False, now=0.0)
    assert sequence.waiting_tokens == 0
    looks_ahead = replace(rates, look_ahead_tokens=3)
    sequence = SpeechSequence(looks_ahead, CLONED, 0, None, prompts_lm=False, now=0.0)
    assert sequence.waiting_tokens == 3


def test_a_vocoder_that_looks_ahead_loses_no_sample() -> None:
    modules = tiny_voice(end_bias=ENDS, causal=False)
    with running(modules) as engine:
        pieces = rest_of(engine, started(engine))
    audio = joined(pieces)
    assert len(pieces[0].samples) < 12 * SAMPLES_PER_TOKEN
    assert len(audio) % SAMPLES_PER_TOKEN == 0
    assert pieces[-1].marks[-1].sample == len(audio)


def test_the_first_piece_is_480_ms_and_comes_before_the_text_ends(engine: VoiceEngine) -> None:
    sequence = engine.open(SPEAKER)
    assert engine.next_piece(sequence) is None
    engine.push(sequence, text(4), states(4))
    assert engine.next_piece(sequence) is None
    engine.push(sequence, text(1), states(1))
    piece = engine.next_piece(sequence)
    assert piece is not None
    assert len(piece.samples) == 24000 * 480 // 1000
    assert engine.next_piece(sequence) is None


def test_the_first_piece_alone_says_how_long_token2wav_took(engine: VoiceEngine) -> None:
    began = time.monotonic()
    first, *others = rest_of(engine, started(engine, 20))
    assert 0 < first.token2wav_seconds < time.monotonic() - began
    assert others and not any(piece.token2wav_seconds for piece in others)


def test_marks_run_forward_and_end_exactly(engine: VoiceEngine) -> None:
    pieces = rest_of(engine, started(engine, 23))
    marks = [mark for piece in pieces for mark in piece.marks]
    counts, samples = [m.token_count for m in marks], [m.sample for m in marks]
    assert counts == sorted(set(counts))
    assert samples == sorted(samples)
    assert (counts[-1], samples[-1]) == (23, len(joined(pieces)))
    # The LM reads token 10 only after 30 speech tokens.
    assert all(mark.sample >= (mark.token_count - 1) // 5 * 15 * 960 for mark in marks)
    assert len(marks) > 10
    made = 0
    for piece in pieces:
        made += len(piece.samples)
        assert all(mark.sample <= made for mark in piece.marks)


def test_an_utterance_without_text_is_complete_at_once(engine: VoiceEngine) -> None:
    sequence = engine.open(SPEAKER)
    engine.end(sequence)
    assert rest_of(engine, sequence) == []
    assert sequence.unspoken_reason == ""


def test_text_for_which_no_speech_is_drawn_says_so() -> None:
    with running(tiny_voice(end_bias=1e9)) as engine:
        sequence = started(engine, 3)
        pieces = rest_of(engine, sequence)
    assert [len(piece.samples) for piece in pieces] == [0]
    assert pieces[0].marks[0].token_count == 3
    assert "no speech" in sequence.unspoken_reason


def test_speech_that_finds_no_end_is_ended() -> None:
    with running(tiny_voice(end_bias=-1e9), max_speech_per_vector=7) as engine:
        assert len(said(engine, 6)) == (6 * 7 + 50) * SAMPLES_PER_TOKEN


def test_text_beyond_the_context_is_named_and_what_is_there_is_heard() -> None:
    with running(tiny_voice(), context=50) as engine:
        sequence = started(engine, 40)
        pieces = rest_of(engine, sequence)
    assert len(joined(pieces)) == 35 * SAMPLES_PER_TOKEN
    assert text(40)[15].text in sequence.unspoken_reason
    assert "50 positions" in sequence.unspoken_reason
    assert pieces[-1].marks[-1].token_count == 40


def test_a_closed_utterance_gives_its_slot_to_who_waits(modules: VoiceModules) -> None:
    with running(modules, slots=1, max_ahead_seconds=0.5) as engine:
        first, second = started(engine, 40), started(engine, 8)
        assert engine.next_piece(first) is not None
        assert (first.state, second.state) == (State.RUNNING, State.WAITING)
        engine.close(first)
        assert len(joined(rest_of(engine, second))) > 0
        until(lambda: engine.snapshot().slots_in_use == 0)
        assert first.state is State.FINISHED


def test_more_utterances_than_can_wait_are_refused(modules: VoiceModules) -> None:
    with running(modules, slots=1, max_waiting=1) as engine:
        engine.open(SPEAKER)
        engine.open(SPEAKER)
        with pytest.raises(VoiceBusyError, match="speaks 1 utterances and 1 wait"):
            engine.open(SPEAKER)
        assert engine.snapshot().refused == 1


def test_who_waits_too_long_for_a_slot_is_refused(modules: VoiceModules) -> None:
    with running(modules, slots=1, max_wait_seconds=0.2) as engine:
        holder, late = engine.open(SPEAKER), started(engine)
        began = time.monotonic()
        with pytest.raises(VoiceBusyError, match=r"within 0\.2 s"):
            engine.next_piece(late)
        assert 0.1 < time.monotonic() - began < 5
        assert engine.snapshot().refused == 1
        assert holder.state is State.RUNNING


def test_a_silent_caller_loses_its_slot(modules: VoiceModules) -> None:
    with running(modules, slots=1, idle_seconds=0.2) as engine:
        silent = engine.open(SPEAKER)
        assert len(said(engine)) > 0
        with pytest.raises(SpeakingError, match="nothing came from the caller"):
            engine.next_piece(silent)


def test_audio_that_nobody_takes_pauses_its_utterance() -> None:
    with running(tiny_voice(end_bias=-1e9), max_ahead_seconds=1.0) as engine:
        sequence = started(engine, 12)
        until(lambda: sequence.ahead_seconds >= 1.0)
        other = said(engine, 4)
        assert sequence.ahead_seconds < 1.0 + 0.61
        assert len(other) > 0
        assert len(joined(rest_of(engine, sequence))) == (12 * 25 + 50) * SAMPLES_PER_TOKEN


def test_hidden_states_of_infinity_fail_their_utterance_alone(engine: VoiceEngine) -> None:
    expected = said(engine)
    bad, good = engine.open(SPEAKER), engine.open(SPEAKER)
    bad_states = np.full((6, HIDDEN_WIDTH), np.inf, np.float32)
    for first in range(0, 12, 6):
        engine.push(good, text(12)[first : first + 6], states(12)[first : first + 6])
        engine.push(bad, text(6), bad_states)
    engine.end(good)
    with pytest.raises(SpeakingError, match="no finite numbers"):
        rest_of(engine, bad)
    assert np.array_equal(joined(rest_of(engine, good)), expected)
    # Every slot was used again since, the bad one's too.
    again = [started(engine) for _ in range(4)]
    assert all(np.array_equal(joined(rest_of(engine, one)), expected) for one in again)
    assert engine.snapshot().failed == 1


def test_a_speaker_of_nan_fails_alone_and_leaves_nothing_behind(modules: VoiceModules) -> None:
    broken = Speaker("broken", torch.full((SPEAKER_WIDTH,), torch.nan))
    with running(modules, slots=1) as engine:
        expected = said(engine)
        with pytest.raises(SpeakingError, match="no finite samples"):
            said(engine, speaker=broken)
        assert np.array_equal(said(engine), expected)


def test_an_error_of_a_module_fails_its_utterance_and_the_engine_goes_on() -> None:
    modules = tiny_voice(end_bias=ENDS)
    with running(modules) as engine:
        expected = said(engine)
        step = modules.flow.step

        def failing(*_: object, **__: object) -> Tensor:
            raise RuntimeError("out of memory")

        modules.flow.step = failing  # type: ignore[method-assign]
        with pytest.raises(SpeakingError, match="token2wav failed: RuntimeError"):
            said(engine)
        modules.flow.step = step  # type: ignore[method-assign]
        assert np.array_equal(said(engine), expected)


def test_callers_that_come_and_go_leave_no_trace_in_what_others_hear(
    modules: VoiceModules,
) -> None:
    with running(modules, slots=3, max_waiting=30) as engine:
        expected = [said(engine, 6 + seed, seed) for seed in range(4)]
        drawn = np.random.default_rng(0)
        leaves = [int(drawn.integers(0, 3)) if number % 2 else None for number in range(24)]
        heard: dict[int, Samples] = {}

        def call(number: int, pieces: int | None) -> None:
            sequence = started(engine, 6 + number % 4, number % 4)
            if pieces is None:
                heard[number] = joined(rest_of(engine, sequence))
            for _ in range(pieces or 0):
                engine.next_piece(sequence)
            engine.close(sequence)

        threads = [threading.Thread(target=call, args=pair) for pair in enumerate(leaves)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(heard) == 12
        assert all(np.array_equal(audio, expected[n % 4]) for n, audio in heard.items())
        assert engine.snapshot().slots_in_use == engine.snapshot().waiting == 0


def test_a_caller_waits_no_longer_than_its_deadline() -> None:
    modules = tiny_voice(end_bias=ENDS)
    step, may_go_on = modules.flow.step, threading.Event()

    def stuck(*inputs: Tensor, **more: Tensor) -> Tensor:
        may_go_on.wait(20)
        return step(*inputs, **more)  # type: ignore[arg-type]

    modules.flow.step = stuck  # type: ignore[method-assign,assignment]
    with running(modules, step_deadline_seconds=0.1) as engine:
        sequence = started(engine)
        with pytest.raises(SpeakingError, match=r"within 0\.1 s"):
            engine.next_piece(sequence)
        may_go_on.set()


def test_an_engine_that_stops_leaves_nobody_waiting(modules: VoiceModules) -> None:
    engine = VoiceEngine(modules, replace(OPTIONS, slots=1))
    engine.start()
    engine.open(SPEAKER)
    waiting = started(engine)
    failures = []

    def wait() -> None:
        with pytest.raises(SpeakingError, match="stop") as caught:
            engine.next_piece(waiting)
        failures.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    engine.stop()
    thread.join(10)
    assert len(failures) == 1
    with pytest.raises(SpeakingError):
        engine.open(SPEAKER)


def test_tokens_that_the_llm_does_not_have_are_refused(engine: VoiceEngine) -> None:
    sequence = engine.open(SPEAKER)
    with pytest.raises(TokenError, match=f"token {VOCABULARY} .* 0 to {VOCABULARY - 1}"):
        engine.push(sequence, [TextToken(VOCABULARY, "x")], states(1))
    with pytest.raises(TokenError, match=f"one row of {HIDDEN_WIDTH}"):
        engine.push(sequence, text(2), states(1))
    with pytest.raises(TokenError, match="reads up to 472"):
        engine.open(SPEAKER, 0, Query(states(473), states(473)))


@pytest.mark.parametrize(
    ("speaker", "message"),
    [
        (random_speaker(SPEAKER_WIDTH + 1), f"reads {SPEAKER_WIDTH}"),
        (replace(SPEAKER, prompt=Prompt((1,) * 20, prompt_mel(20))), "multiple of 15"),
        (replace(SPEAKER, prompt=Prompt((27,) * 15, prompt_mel(15))), "0 to 26"),
        (
            replace(SPEAKER, prompt=Prompt((1,) * 15, torch.zeros(30, 3))),
            f"this voice has {MEL_BINS}",
        ),
    ],
)
def test_a_speaker_that_does_not_fit_is_refused(
    engine: VoiceEngine, speaker: Speaker, message: str
) -> None:
    with pytest.raises(SpeakerError, match=message):
        engine.check(speaker)
