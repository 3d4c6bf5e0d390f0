"""One-shot speech: a text spoken, a recording written down, however long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import numpy as np

from minmo.audio.pcm import PcmFormat, Samples
from minmo.audio.resample import LISTENING_RATE_HZ
from minmo.client.recording import Recording
from minmo.client.target import Target
from minmo.rpc.errors import parse
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub

if TYPE_CHECKING:
    from minmo.v1.conversation_pb2_grpc import ConversationServiceAsyncStub

PART_SECONDS = 60.0
"""Longest part of a recording that is sent at once: under every limit, and progress shows."""

_QUIET_SECONDS = 0.3
_SEARCH_SECONDS = 20.0
_STEP_SECONDS = 0.05
_SAY_SECONDS = 120.0
_TRANSCRIBE_SECONDS = 180.0


@dataclass(frozen=True)
class Speech:
    """A spoken text: float32 [samples] at `rate_hz`, and the voice's computing time."""

    samples: Samples
    rate_hz: int
    compute_ms: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech in a recording, in milliseconds."""

    start_ms: int
    end_ms: int
    text: str


@dataclass(frozen=True)
class Transcript:
    """The words of a recording."""

    text: str
    segments: tuple[Segment, ...]
    audio_ms: int
    elapsed_ms: float


async def say(
    target: Target, text: str, *, rate_hz: int = 24_000, voice: str = "", instruct: str = ""
) -> Speech:
    """Has a text spoken.

    Args:
        target: the server.
        text: what to say.
        rate_hz: rate of the audio; one of `minmo.audio.pcm.SAMPLE_RATES_HZ`.
        voice: name of the voice; empty is the default one.
        instruct: how to speak, in words.

    Raises:
        StatusError: the server refuses or is not there.
    """
    audio_format = PcmFormat(rate_hz)
    request = conversation_pb2.SayRequest(
        text=text, voice=voice, instruct=instruct, format=audio_format.to_proto()
    )
    async with target.channel() as channel:
        stub: ConversationServiceAsyncStub = ConversationServiceStub(channel)
        try:
            response = await stub.Say(request, timeout=_SAY_SECONDS)
        except grpc.RpcError as failure:
            raise parse(failure) from None
    samples = PcmFormat.from_proto(response.format).decode(response.audio)
    return Speech(samples, response.format.sample_rate_hz, response.compute_ms)


async def transcribe(
    target: Target,
    recording: Recording,
    *,
    part_seconds: float = PART_SECONDS,
    progress: Callable[[float], None] = lambda _: None,
) -> Transcript:
    """Has a recording written down. A long one is sent in parts, cut where it is quiet.

    Args:
        target: the server.
        recording: of any length.
        part_seconds: longest part.
        progress: hears of the share that is done, 0 to 1, after each part.

    Raises:
        StatusError: the server refuses or is not there.
    """
    heard = recording.at_rate(LISTENING_RATE_HZ)
    audio_format = PcmFormat(LISTENING_RATE_HZ)
    segments: list[Segment] = []
    texts: list[str] = []
    elapsed_ms = 0.0
    async with target.channel() as channel:
        stub: ConversationServiceAsyncStub = ConversationServiceStub(channel)
        for start, end in parts(heard.samples, LISTENING_RATE_HZ, part_seconds):
            request = conversation_pb2.TranscribeRequest(
                format=audio_format.to_proto(), audio=audio_format.encode(heard.samples[start:end])
            )
            try:
                response = await stub.Transcribe(request, timeout=_TRANSCRIBE_SECONDS)
            except grpc.RpcError as failure:
                raise parse(failure) from None
            offset_ms = round(start * 1000 / LISTENING_RATE_HZ)
            segments += [
                Segment(segment.start_ms + offset_ms, segment.end_ms + offset_ms, segment.text)
                for segment in response.segments
            ]
            texts.append(response.text.strip())
            elapsed_ms += response.elapsed_ms
            progress(end / len(heard.samples))
    return Transcript(
        " ".join(text for text in texts if text),
        tuple(segments),
        round(heard.duration_ms),
        elapsed_ms,
    )


def parts(samples: Samples, rate_hz: int, part_seconds: float) -> Iterator[tuple[int, int]]:
    """Cuts sound into parts of bounded length, in the middle of the quietest 0.3 s near each end.

    Args:
        samples: float32 [samples].
        rate_hz: their rate.
        part_seconds: longest part.

    Yields:
        ``(start, end)`` of each part, in samples.
    """
    longest = round(part_seconds * rate_hz)
    start = 0
    while len(samples) - start > longest:
        end = start + longest
        first = end - min(round(_SEARCH_SECONDS * rate_hz), longest // 2)
        cut = first + _quietest(samples[first:end], rate_hz)
        yield start, cut
        start = cut
    yield start, len(samples)


def _quietest(samples: Samples, rate_hz: int) -> int:
    """Middle of the window that has the least energy."""
    window = min(len(samples), round(_QUIET_SECONDS * rate_hz))
    step = max(1, round(_STEP_SECONDS * rate_hz))
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    starts = np.arange(0, len(samples) - window + 1, step)
    sums = energy[starts + window] - energy[starts]
    return int(starts[int(np.argmin(sums))]) + window // 2
