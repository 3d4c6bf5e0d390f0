"""From a voice's pieces to messages: in the format asked for, bounded, with their marks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from minmo.audio.pcm import PcmFormat, Samples
from minmo.audio.resample import StreamResampler, resampled_length
from minmo.engine.voice import Mark, Piece
from minmo.v1 import common_pb2, voice_decoder_pb2

_PIECES_PER_SECOND = 5


class AudioOutput:
    """Resamples an utterance, cuts it into pieces of at most 200 ms, and moves its marks along.

    Args:
        voice_rate_hz: rate of what the voice makes.
        audio_format: of what is sent.
        first_token: tokens before this stream, which marks count too.
        first_sample: samples before this stream, at the rate that is sent.
    """

    def __init__(
        self, voice_rate_hz: int, audio_format: PcmFormat, first_token: int, first_sample: int
    ) -> None:
        self._voice_rate_hz = voice_rate_hz
        self._format = audio_format
        self._resampler = StreamResampler(voice_rate_hz, audio_format.sample_rate_hz)
        self._longest = audio_format.sample_rate_hz // _PIECES_PER_SECOND
        self._first_token = first_token
        self._first_sample = first_sample
        self._sent = 0
        self._marks: deque[Mark] = deque()

    @property
    def sample_count(self) -> int:
        """Samples of the utterance so far, with those before this stream."""
        return self._first_sample + self._sent

    def add(self, piece: Piece) -> Iterator[voice_decoder_pb2.DecodedAudio]:
        """What is ready of the audio once the voice has made another piece.

        The resampler holds back a little; marks wait for the audio that they belong to.
        """
        for mark in piece.marks:
            sample = resampled_length(mark.sample, self._voice_rate_hz, self._format.sample_rate_hz)
            self._marks.append(Mark(mark.token_count, sample))
        yield from self._cut(self._resampler.process(piece.samples))

    def finish(self) -> Iterator[voice_decoder_pb2.DecodedAudio]:
        """The rest of the audio, and all marks that are left."""
        yield from self._cut(self._resampler.process(np.empty(0, np.float32), last=True))

    def _cut(self, samples: Samples) -> Iterator[voice_decoder_pb2.DecodedAudio]:
        for first in range(0, len(samples), self._longest):
            yield self._message(samples[first : first + self._longest])
        if self._marks and self._marks[0].sample <= self._sent:
            yield self._message(samples[:0])

    def _message(self, samples: Samples) -> voice_decoder_pb2.DecodedAudio:
        message = voice_decoder_pb2.DecodedAudio(
            first_sample=self.sample_count, data=self._format.encode(samples)
        )
        self._sent += len(samples)
        while self._marks and self._marks[0].sample <= self._sent:
            mark = self._marks.popleft()
            message.marks.append(
                common_pb2.Mark(
                    token_count=self._first_token + mark.token_count,
                    sample=self._first_sample + mark.sample,
                )
            )
        return message
