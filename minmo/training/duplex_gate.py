"""Voice activity opens what the predictor is asked in: stretches of sound that may be speech."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from minmo.audio.vad import FRAME_SAMPLES, SileroVad, VadThresholds, VoiceActivityDetector
from minmo.training.augmentation import Samples
from minmo.training.data.duplex_scenes import Scene
from minmo.training.shar import SAMPLE_RATE

PREROLL_SECONDS = 0.25
"""Before an onset that a segment begins, as in the orchestrator: detectors are late."""


class Stretch(NamedTuple):
    """A stretch of speech, or of what is taken for it; in samples.

    Attributes:
        start: its first one.
        noticed: heard when it was noticed.
        over: heard when it was noticed to be over; all that there is where it was not.
    """

    start: int
    noticed: int
    over: int


Gate: TypeAlias = Callable[[Samples], list[Stretch]]
"""Finds the stretches of speech in `[samples]` at 16 kHz, as a live stream would."""


def silero_gate(vad: SileroVad, threshold: float) -> Gate:
    """The detector of the encoder service.

    Args:
        vad: its model.
        threshold: probability from which a frame counts as speech.
    """

    def stretches(samples: Samples) -> list[Stretch]:
        detector = VoiceActivityDetector(vad.stream(), VadThresholds.starting_at(threshold))
        found: list[Stretch] = []
        speaking = False
        for first in range(0, len(samples) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
            heard = detector.process(samples[first : first + FRAME_SAMPLES])
            if heard.speaking and not speaking:
                found.append(Stretch(heard.speech_start_sample, heard.end_sample, len(samples)))
            elif speaking and not heard.speaking:
                found[-1] = found[-1]._replace(over=heard.end_sample)
            speaking = heard.speaking
        return found

    return stretches


class Segment(NamedTuple):
    """A stretch of the user's channel whose embeddings and probes the LLM reads; in samples.

    Attributes:
        start: its first one, the preroll included.
        noticed: heard when it was opened.
        end: up to where it is read.
        over: number of the assistant's turn that it is said over; None while nobody else speaks.
        kept: whether it becomes the conversation, and is no back-channel or noise.
    """

    start: int
    noticed: int
    end: int
    over: int | None
    kept: bool


def segments_of(scene: Scene, stretches: list[Stretch]) -> list[Segment]:
    """Opens and ends segments as the orchestrator does, with every decision as it should be.

    One opens where a stretch is noticed, and stays open through pauses until the assistant
    speaks. One over the assistant is dropped at the end of its stretch, unless a turn of the user
    is in it, which then goes on as any other.

    Args:
        scene: of a conversation.
        stretches: of its user's channel, in order.
    """
    segments: list[Segment] = []
    for stretch in stretches:
        if segments and stretch.noticed < segments[-1].end:
            continue
        now = stretch.noticed / SAMPLE_RATE
        answers = [turn.start for turn in scene.assistant if turn.start > now]
        until = round(min([scene.seconds, *answers]) * SAMPLE_RATE)
        over = next(
            (number for number, turn in enumerate(scene.assistant) if turn.start <= now < turn.end),
            None,
        )
        kept = over is None or _interrupts(scene, over, stretch)
        end = until if kept else min(stretch.over, until)
        start = max(0, stretch.start - round(PREROLL_SECONDS * SAMPLE_RATE))
        segments.append(Segment(start, stretch.noticed, end, over, kept))
    return segments


def _interrupts(scene: Scene, over: int, stretch: Stretch) -> bool:
    """Whether a turn of the user that takes the floor from an answer is in a stretch."""
    answer = scene.assistant[over]
    return any(
        answer.start <= turn.start < answer.end
        and stretch.start < turn.end * SAMPLE_RATE
        and stretch.over > turn.start * SAMPLE_RATE
        for turn in scene.user
    )
