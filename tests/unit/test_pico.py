"""The voice `pico`, with the real synthesiser in its own process."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minmo.engine import pico_process
from minmo.engine.pico import PicoVoice, manner_of
from minmo.engine.pico_process import Manner, PicoError, PicoProcesses, PicoStuckError
from minmo.engine.voice import InstructError, Mark, Piece, TextToken

STUCK_WORD = "N" * 180


@pytest.fixture(scope="module")
def voice() -> Iterator[PicoVoice]:
    voice = PicoVoice()
    yield voice
    voice.close()


def tokens(*texts: str) -> list[TextToken]:
    return [TextToken(number, text) for number, text in enumerate(texts)]


def say(voice: PicoVoice, *texts: str, instruct: str = "") -> tuple[list[Piece], str]:
    utterance = voice.open(instruct, None)
    utterance.push(tokens(*texts), None)
    utterance.end()
    pieces = []
    while (piece := utterance.step()) is not None:
        pieces.append(piece)
    return pieces, utterance.unspoken_reason


def length(pieces: list[Piece]) -> int:
    return sum(len(piece.samples) for piece in pieces)


def marks_of(pieces: list[Piece]) -> list[Mark]:
    return [mark for piece in pieces for mark in piece.marks]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["Hello", " there", ",", " Dr.", " 3.14", ".", " 😀", " 中", "**", "", " ", "\n"]
            ),
            st.text(max_size=12),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_marks_rise_and_end_with_the_last_token_at_the_last_sample(
    voice: PicoVoice, texts: list[str]
) -> None:
    pieces, _ = say(voice, *texts)
    marks = marks_of(pieces)
    assert marks[-1] == Mark(len(texts), length(pieces))
    for mark, following in pairwise(marks):
        assert mark.token_count < following.token_count
        assert mark.sample <= following.sample
    end = 0
    for piece in pieces:
        start, end = end, end + len(piece.samples)
        assert all(start <= mark.sample <= end for mark in piece.marks)


def test_a_mark_stands_at_each_word(voice: PicoVoice) -> None:
    pieces, reason = say(voice, "The", " capi", "tal", " is", " Paris", ".")
    assert reason == ""
    assert [mark.token_count for mark in marks_of(pieces)] == [1, 3, 4, 6]


def test_speech_begins_and_ends_without_long_silence(voice: PicoVoice) -> None:
    (piece,), _ = say(voice, "Hello", " there", ".")
    loud = np.flatnonzero(np.abs(piece.samples) > 0.01)
    assert loud[0] < 0.03 * voice.sample_rate_hz
    assert len(piece.samples) - loud[-1] < 0.4 * voice.sample_rate_hz


def test_speech_does_not_clip(voice: PicoVoice) -> None:
    pieces, _ = say(voice, "The capital of France is Paris.")
    loudness = np.abs(np.concatenate([piece.samples for piece in pieces]))
    assert (loudness > 0.999).mean() < 1e-3
    assert loudness.max() > 0.3


def test_the_same_text_sounds_the_same(voice: PicoVoice) -> None:
    first, second = (say(voice, "Hello", " there", ".")[0] for _ in range(2))
    assert all(
        np.array_equal(one.samples, two.samples) for one, two in zip(first, second, strict=True)
    )


def test_what_cannot_be_said_is_left_out_and_reported(voice: PicoVoice) -> None:
    pieces, reason = say(voice, "Hello", " 😀", " 中文", ".")
    assert reason == "voice 'pico' cannot say: '😀中文'"
    assert length(pieces) > 0.3 * voice.sample_rate_hz


def test_an_utterance_of_emoji_says_nothing_but_counts_its_tokens(voice: PicoVoice) -> None:
    pieces, reason = say(voice, "😀", "🎉")
    assert reason == "has no word that voice 'pico' can say: '😀🎉'"
    assert length(pieces) == 0
    assert marks_of(pieces) == [Mark(2, 0)]


def test_nothing_to_say_is_no_failure(voice: PicoVoice) -> None:
    assert say(voice) == ([], "")


@pytest.mark.parametrize("word", [STUCK_WORD, "è" * 190, "1" * 150, "x" * 2000, "°" * 180])
def test_words_that_pico_cannot_bear_are_said_in_parts(voice: PicoVoice, word: str) -> None:
    pieces, _ = say(voice, "Hello ", word, " there")
    assert length(pieces) > voice.sample_rate_hz
    assert marks_of(pieces)[-1].token_count == 3


def test_instructions_change_the_manner(voice: PicoVoice) -> None:
    neutral = say(voice, "Hello there")[0][0].samples
    slow = say(voice, "Hello there", instruct="Speak slowly, please.")[0][0].samples
    fast = say(voice, "Hello there", instruct="fast")[0][0].samples
    quiet = say(voice, "Hello there", instruct="quietly")[0][0].samples
    loud = say(voice, "Hello there", instruct="louder")[0][0].samples
    assert len(fast) < 0.9 * len(neutral) < 0.8 * len(slow)
    assert np.std(quiet) < 0.7 * np.std(neutral)
    assert np.std(loud) > 1.2 * np.std(neutral)
    high = say(voice, "Hello there", instruct="higher")[0][0].samples
    deep = say(voice, "Hello there", instruct="deeper")[0][0].samples
    assert pitch_hz(high) > 1.2 * pitch_hz(deep)


def pitch_hz(samples: np.ndarray) -> float:
    """Median pitch of the loud frames, by autocorrelation between 70 and 400 Hz."""
    pitches = []
    for start in range(0, len(samples) - 640, 320):
        frame = samples[start : start + 640]
        if np.std(frame) > 0.05:
            correlation = np.correlate(frame, frame, "full")[639:]
            pitches.append(16000 / (40 + int(correlation[40:228].argmax())))
    return float(np.median(pitches))


def test_an_instruction_that_pico_cannot_follow_is_refused_with_those_it_can() -> None:
    with pytest.raises(InstructError, match="'sadly'; it knows only: slow, slowly"):
        manner_of("say it sadly")
    with pytest.raises(InstructError, match="contradicts itself in rate"):
        manner_of("fast and slowly")
    assert manner_of("") == Manner()


@pytest.mark.parametrize("text", ["<b>hi", "caf\u00e9", "a\x00b", "a\nb"])
def test_text_that_pico_would_misread_never_reaches_it(text: str) -> None:
    processes = PicoProcesses(1)
    try:
        with pytest.raises(ValueError, match="speakable"):
            processes.speak(text, Manner())
    finally:
        processes.close()


def children() -> set[int]:
    return {
        int(pid)
        for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    }


def test_a_word_that_never_ends_is_given_up_and_the_next_is_said() -> None:
    processes = PicoProcesses(1, deadline_seconds=0.5)
    try:
        began = time.monotonic()
        with pytest.raises(PicoStuckError, match="not said within"):
            processes.speak(STUCK_WORD, Manner())
        assert time.monotonic() - began < 3
        assert len(processes.speak("hello", Manner())) > 1600
    finally:
        processes.close()


def test_a_process_that_is_killed_is_replaced() -> None:
    before = children()
    processes = PicoProcesses(1)
    try:
        processes.speak("hello", Manner())
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(PicoError):
            processes.speak("hello", Manner())
        assert len(processes.speak("hello", Manner())) > 1600
    finally:
        processes.close()
    assert children() == before


def test_a_process_that_has_grown_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pico_process, "_MAX_GROWTH_BYTES", 50_000)
    before = children()
    processes = PicoProcesses(1)
    try:
        (first,) = children() - before
        for _ in range(3):
            processes.speak("hello there", Manner())
        (second,) = children() - before
        assert second != first
    finally:
        processes.close()


def test_several_threads_speak_at_once() -> None:
    processes = PicoProcesses(2)
    lengths: list[int] = []

    def speak() -> None:
        lengths.extend(len(processes.speak("hello there", Manner())) for _ in range(5))

    threads = [threading.Thread(target=speak) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    finally:
        processes.close()
    assert len(lengths) == 20
    assert len(set(lengths)) == 1
