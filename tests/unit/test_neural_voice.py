"""The neural voice behind the interface and the stream that every voice has."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from minmo.bench.voice import measure
from minmo.engine.voice import InstructError, Query, Voice, VoiceBusyError
from minmo.engine.voice_decoder.engine import EngineOptions, VoiceEngine
from minmo.engine.voice_decoder.marks import MarkEstimator
from minmo.engine.voice_decoder.modules import VoiceModules
from minmo.engine.voice_decoder.neural_voice import NeuralVoice
from minmo.engine.voice_decoder.scheduler import Chunks, Limits, Readings, Scheduler
from minmo.engine.voice_decoder.sequence import Rates, SpeechSequence, State
from minmo.model.output_projector import OutputProjector, OutputProjectorConfig
from minmo.model.speaker import Prompt, SpeakerError, random_speaker
from minmo.model.spelling import spellings_of
from minmo.rpc.errors import StatusError
from minmo.settings import VoiceDecoderSettings
from minmo.v1 import common_pb2, voice_decoder_pb2
from minmo.weights.speaker_file import load_speaker, save_speaker
from services.voice_decoder.stream import DecodeStream
from tests.unit.tiny_voice import (
    HIDDEN_WIDTH,
    SPEAKER_WIDTH,
    VOCABULARY,
    prompt_mel,
    states,
    text,
    tiny_voice,
)

Request = voice_decoder_pb2.DecodeRequest
SPEAKER = random_speaker(SPEAKER_WIDTH, name="nobody")
FORMAT = common_pb2.AudioFormat(
    encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=24000, channels=1
)


@pytest.fixture
def engine() -> Iterator[VoiceEngine]:
    options = EngineOptions(slots=2, context=512, max_waiting=1, max_ahead_seconds=0.5)
    engine = VoiceEngine(tiny_voice(end_bias=2.5), options)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def voice(engine: VoiceEngine) -> Voice:
    return NeuralVoice(engine, SPEAKER)


def matrix(values: np.ndarray) -> common_pb2.FloatMatrix:
    rows, columns = values.shape
    return common_pb2.FloatMatrix(data=values.astype("<f4").tobytes(), rows=rows, columns=columns)


def config(**changes: object) -> Request:
    return Request(config=voice_decoder_pb2.DecodeConfig(format=FORMAT, **changes))  # type: ignore[arg-type]


def spoken(count: int, hidden: np.ndarray | None = None) -> Request:
    tokens = [voice_decoder_pb2.TextToken(id=t.id, text=t.text) for t in text(count)]
    values = states(count) if hidden is None else hidden
    return Request(tokens=voice_decoder_pb2.TextTokens(tokens=tokens, hidden_states=matrix(values)))


END = Request(end=voice_decoder_pb2.DecodeEnd())


async def decode(voice: Voice, *requests: Request) -> list[voice_decoder_pb2.DecodeResponse]:
    answers: list[voice_decoder_pb2.DecodeResponse] = []

    async def sent() -> AsyncIterator[Request]:
        for request in requests:
            yield request
        if requests[-1:] != (END,):
            await asyncio.sleep(30)

    async def write(response: voice_decoder_pb2.DecodeResponse) -> None:
        answers.append(response)

    with ThreadPoolExecutor(4) as executor:
        stream = DecodeStream(VoiceDecoderSettings(), {voice.name: voice}, executor, write)
        await asyncio.wait_for(stream.run(sent()), 20)
    return answers


def audio_of(answers: list[voice_decoder_pb2.DecodeResponse]) -> np.ndarray:
    data = b"".join(answer.audio.data for answer in answers if answer.HasField("audio"))
    return np.frombuffer(data, "<f4")


def test_it_says_what_it_reads(voice: Voice) -> None:
    assert (voice.name, voice.sample_rate_hz) == ("nobody", 24000)
    assert (voice.reads_hidden_states, voice.hidden_width) == (True, HIDDEN_WIDTH)


def test_modules_are_put_together_by_their_names() -> None:
    made = tiny_voice(end_bias=2.5)
    assert made.semantic is not None
    parts = {
        "voice_token_lm": made.lm,
        "output_projector": made.semantic.projector,
        "flow_matching": made.flow,
        "vocoder": made.vocoder,
    }
    loaded = VoiceModules.load(parts.__getitem__, lambda: torch.zeros(VOCABULARY, HIDDEN_WIDTH))
    assert loaded.vocabulary == VOCABULARY
    engine = VoiceEngine(loaded, EngineOptions(slots=1, context=128))
    engine.start()
    NeuralVoice(engine, SPEAKER).warm_up()
    engine.stop()
    # A first one, and one that follows.
    assert engine.snapshot().chunks == 2


def test_a_voice_that_reads_letters_is_told_how_tokens_are_spelled() -> None:
    made = tiny_voice()
    width = made.lm.config.width
    projector = OutputProjector(OutputProjectorConfig(HIDDEN_WIDTH, width, spelling_width=4))
    parts = {
        "voice_token_lm": made.lm,
        "output_projector": projector,
        "flow_matching": made.flow,
        "vocoder": made.vocoder,
    }
    table = torch.zeros(3, HIDDEN_WIDTH)
    letters = spellings_of(["a", " cat", "-"])
    loaded = VoiceModules.load(parts.__getitem__, lambda: table, lambda: letters)
    assert loaded.semantic is not None
    assert loaded.semantic.spelled is not None
    torch.testing.assert_close(loaded.semantic.spelled, projector.spell(letters))
    with pytest.raises(ValueError, match="reads letters: say how the LLM's tokens are spelled"):
        VoiceModules.load(parts.__getitem__, lambda: table)


def test_lanes_that_do_not_divide_the_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="lanes is 2, which does not divide 3 slots"):
        VoiceEngine(tiny_voice(), EngineOptions(slots=3, context=64, lanes=2))


def test_warming_up_leaves_no_slot_taken(engine: VoiceEngine, voice: Voice) -> None:
    voice.warm_up()
    assert engine.snapshot().slots_in_use == 0
    assert engine.snapshot().chunks > 0


def test_an_instruction_in_words_is_refused(voice: Voice) -> None:
    with pytest.raises(InstructError, match="reads instructions in the query: let the LLM read it"):
        voice.open("sadly", None)


def test_a_voice_that_reads_text_follows_no_instruction() -> None:
    engine = VoiceEngine(tiny_voice(text_table=True), EngineOptions(slots=1, context=128))
    voice = NeuralVoice(engine, SPEAKER)
    assert voice.max_query_positions == 0
    with pytest.raises(InstructError, match="'nobody' follows no instructions"):
        voice.open("sadly", None)


async def test_the_longest_query_that_it_states_is_taken(voice: Voice) -> None:
    longest = voice.max_query_positions
    rows = matrix(states(longest))
    answers = await decode(
        voice, config(query_hidden_states=rows, query_embeddings=rows), spoken(1), END
    )
    assert len(audio_of(answers))
    rows = matrix(states(longest + 1))
    with pytest.raises(StatusError, match=f"{longest + 1} positions; the voice reads up to"):
        await decode(voice, config(query_hidden_states=rows, query_embeddings=rows), END)


def test_the_users_query_changes_what_is_said(voice: Voice) -> None:
    def said(query: Query | None) -> np.ndarray:
        utterance = voice.open("", query)
        utterance.push(text(5), states(5))
        piece = utterance.step()
        utterance.close()
        assert piece is not None
        return piece.samples

    assert np.array_equal(said(None), said(None))
    heard = said(Query(states(9, 2), states(9, 3)))
    assert not np.array_equal(said(None), heard)
    assert not np.array_equal(heard, said(Query(states(9, 4), states(9, 3))))


async def test_a_stream_brings_the_audio_with_marks_for_every_token(voice: Voice) -> None:
    answers = await decode(voice, config(), spoken(12), END)
    done, audio = answers[-1].done, audio_of(answers)
    marks = [mark for answer in answers for mark in answer.audio.marks]
    assert answers[0].ready.hidden_width == HIDDEN_WIDTH
    assert done.sample_count == len(audio) > 24000
    assert (marks[-1].token_count, marks[-1].sample) == (12, len(audio))
    assert np.array_equal(audio, audio_of(await decode(voice, config(), spoken(12), END)))


async def test_a_caller_who_leaves_frees_the_slot(engine: VoiceEngine, voice: Voice) -> None:
    calls = [asyncio.create_task(decode(voice, config(), spoken(5))) for _ in range(2)]
    while engine.snapshot().chunks < 2:
        await asyncio.sleep(0.005)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert engine.snapshot().slots_in_use == 0


async def test_too_many_callers_are_told_to_come_back(voice: Voice) -> None:
    held = [voice.open("", None) for _ in range(3)]
    with pytest.raises(StatusError) as caught:
        await decode(voice, config(), spoken(5), END)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.reason == "VOICE_BUSY"
    assert caught.value.retry_after_seconds
    with pytest.raises(VoiceBusyError):
        voice.open("", None)
    held[0].close()
    held[1].close()
    assert len(audio_of(await decode(voice, config(), spoken(5), END)))


async def test_a_token_of_another_llm_is_refused(voice: Voice) -> None:
    tokens = voice_decoder_pb2.TextTokens(
        tokens=[voice_decoder_pb2.TextToken(id=VOCABULARY, text="x")],
        hidden_states=matrix(states(1)),
    )
    with pytest.raises(StatusError) as caught:
        await decode(voice, config(), Request(tokens=tokens), END)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"0 to {VOCABULARY - 1}" in caught.value.message


async def test_a_query_that_is_too_long_is_refused(voice: Voice) -> None:
    rows = matrix(states(500))
    with pytest.raises(StatusError) as caught:
        await decode(voice, config(query_hidden_states=rows, query_embeddings=rows), END)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "query_hidden_states" in caught.value.message


async def test_a_voice_that_fails_ends_the_call_and_says_so(engine: VoiceEngine) -> None:
    broken = replace(SPEAKER, name="broken", embedding=torch.full((SPEAKER_WIDTH,), torch.nan))
    with pytest.raises(StatusError) as caught:
        await decode(NeuralVoice(engine, broken), config(), spoken(12), END)
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert "no finite samples" in caught.value.message


# --- who is first


RATES = Rates(5, 15, 27, 512, 15, 3, 960, 24000, 25)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def scheduler(clock: Clock, **changes: float) -> Scheduler:
    limits = Limits(4, 4, 5.0, 60.0, 3.0, 33, 64, 32, 1)
    return Scheduler(replace(limits, **changes), clock)  # type: ignore[arg-type]


def speaking(scheduler: Scheduler, clock: Clock, tokens: int = 30) -> SpeechSequence:
    sequence = SpeechSequence(RATES, SPEAKER, 0, None, False, clock())
    scheduler.open(sequence)
    sequence.push(text(tokens), states(tokens), clock())
    return sequence


def carry_out(scheduler: Scheduler) -> Readings | Chunks:
    step = scheduler.plan()
    if isinstance(step, Readings):
        scheduler.finish_readings(step, [1 if item.draws else None for item in step.items])
    else:
        assert isinstance(step, Chunks)
        made = [np.zeros(960 * item.length, np.float32) for item in step.items]
        scheduler.finish_chunks(step, made)
    return step


def owners(step: Readings | Chunks) -> list[SpeechSequence]:
    return [item.sequence for item in step.items]


def test_a_newcomers_first_audio_goes_before_audio_that_is_not_needed_yet() -> None:
    clock = Clock()
    plan = scheduler(clock)
    early = speaking(plan, clock)
    while not early.pieces:
        carry_out(plan)
    early.take(clock())
    clock.now += 0.1
    late = speaking(plan, clock)
    while not late.pieces:
        step = carry_out(plan)
        assert late in owners(step)
    assert not early.pieces


def test_who_runs_dry_first_is_served_first() -> None:
    clock = Clock()
    plan = scheduler(clock)
    one, other = speaking(plan, clock), speaking(plan, clock)
    while not (one.pieces and other.pieces):
        carry_out(plan)
    # The one that came later began to play first.
    other.take(clock())
    clock.now += 0.4
    one.take(clock())
    while not isinstance(step := carry_out(plan), Chunks):
        pass
    assert owners(step) == [other]


def test_nobody_runs_ahead_without_bound() -> None:
    clock = Clock()
    plan = scheduler(clock)
    sequence = speaking(plan, clock, 100)
    while plan.plan() is not None:
        carry_out(plan)
    assert 3.0 <= sequence.ahead_seconds < 3.0 + 0.6
    assert sequence.waiting_tokens <= 33
    for _ in range(2):
        sequence.take(clock())
    assert plan.plan() is not None


def test_everybody_who_needs_a_token_gets_one_in_the_same_step() -> None:
    clock = Clock()
    plan = scheduler(clock)
    sequences = [speaking(plan, clock) for _ in range(4)]
    assert set(owners(carry_out(plan))) == set(sequences)


def test_who_leaves_during_a_step_gets_nothing_of_it_and_gives_the_slot_away() -> None:
    clock = Clock()
    plan = scheduler(clock, slots=1)
    first, second = speaking(plan, clock), speaking(plan, clock)
    step = plan.plan()
    assert isinstance(step, Readings)
    assert owners(step) == [first]
    plan.close(first)
    plan.finish_readings(step, [None])
    assert owners(carry_out(plan)) == [second]
    assert (first.state, second.state) == (State.FINISHED, State.RUNNING)


# --- marks and speakers


def test_text_is_marked_at_the_speakers_pace_and_never_before_it_was_read() -> None:
    marks = MarkEstimator(24000, characters_per_second=10.0)
    marks.read(["word "] * 5, 0)
    assert [m.sample for m in marks.reached(24000)] == [12000, 24000]
    marks.read(["x"] * 5, 72000)
    # The rest of the first five comes in time, then what was read after 72,000 samples.
    reached = marks.reached(100_000)
    assert [(m.token_count, m.sample) for m in reached] == [
        (3, 36000),
        (4, 48000),
        (5, 60000),
        (9, 72000),
    ]
    # The last one that was read waits for the end.
    assert marks.reached(10**9) == ()


def test_once_the_end_is_known_the_rest_of_the_text_is_spread_over_the_rest() -> None:
    marks = MarkEstimator(24000, characters_per_second=1.0)
    marks.read(["aa", "bb", "cc", "dd"], 0)
    assert marks.reached(1000) == ()
    assert [(m.token_count, m.sample) for m in marks.reached_of(500, 1000)] == [(1, 250), (2, 500)]
    assert [(m.token_count, m.sample) for m in marks.reached_of(1000, 1000)] == [(3, 750)]


def test_a_speakers_file_keeps_everything(tmp_path: Path) -> None:
    speaker = replace(
        SPEAKER, prompt=Prompt((1, 2, 3), prompt_mel(3), (7, 8)), characters_per_second=12.5
    )
    save_speaker(speaker, tmp_path / "a.safetensors")
    found = load_speaker(tmp_path / "a.safetensors")
    assert found.prompt is not None
    assert speaker.prompt is not None
    assert torch.equal(found.embedding, speaker.embedding)
    assert torch.equal(found.prompt.mel, speaker.prompt.mel)
    assert (found.name, found.characters_per_second) == ("nobody", 12.5)
    assert found.prompt.speech_tokens == (1, 2, 3)
    assert found.prompt.text_tokens == (7, 8)


def test_a_damaged_speakers_file_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    with pytest.raises(SpeakerError, match="cannot use"):
        load_speaker(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(SpeakerError, match="cannot use"):
        load_speaker(path)
    save_speaker(replace(SPEAKER, prompt=Prompt((1, 2), prompt_mel(3))), path)
    with pytest.raises(SpeakerError, match="2 speech tokens and 6 mel frames"):
        load_speaker(path)
    save_speaker(replace(SPEAKER, embedding=torch.full((4,), torch.inf)), path)
    with pytest.raises(SpeakerError, match="embedding holds NaN"):
        load_speaker(path)


def test_a_measurement_reports_every_stage(engine: VoiceEngine) -> None:
    began = time.perf_counter()
    report = measure(engine, SPEAKER, utterances=2, text_tokens=12)
    assert 0 < report.first_tokens_ms < report.first_chunk_ms < 1000 * (time.perf_counter() - began)
    assert report.real_time_factor > 0
    assert report.audio_seconds > 1
