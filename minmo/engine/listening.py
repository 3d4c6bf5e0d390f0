"""What the encoder service computes: the words of a segment, and its speech embeddings.

Plain functions and classes over whole arrays; threads, queues and streams are the service's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minmo.model.block_streaming import SAMPLE_RATE_HZ
from minmo.model.input_projector import InputProjector
from minmo.model.moonshine_encoder import (
    SAMPLES_PER_FRAME,
    SAMPLES_SEEN_PER_FRAME,
    MoonshineEncoder,
)
from minmo.model.voice_encoder import VoiceEncoder

Samples = NDArray[np.float32]

# Moonshine's decoder has positions for little more; Whisper takes up to 30 s.
_LONGEST_PIECE_SECONDS = 20.0
# A longer segment is cut into pieces of about this length, at the quietest moment nearby.
_PIECE_SECONDS = 16.0
_CUT_SEARCH_SECONDS = 3.0
_QUIET_SECONDS = 0.1
# English speech has 3 to 5 tokens a second; more is a decoder that has lost the audio.
_TOKENS_PER_SECOND = 6.5
_EXTRA_TOKENS = 6
# -70 dBFS: below it even the noise of a sound card is not heard.
_SILENT_RMS = 10 ** (-70 / 20)


class Recogniser:
    """The words of stretches of speech.

    Args:
        read: samples `[1, samples]` and a limit to at most so many tokens (`minmo.engine.reading`).
        to_text: tokens to text.
        shortest: samples that `read` needs.
    """

    def __init__(
        self,
        read: Callable[[Tensor, int], Sequence[int]],
        to_text: Callable[[Sequence[int]], str],
        shortest: int = 0,
    ) -> None:
        self._read = read
        self._to_text = to_text
        self._shortest = shortest

    @torch.inference_mode()
    def transcribe(self, samples: Samples) -> str:
        """What is said in `[samples]`, at 16 kHz; empty where it is silent.

        More than 20 s are cut at quiet moments and recognised piece by piece.
        """
        texts = (self._transcribe_piece(piece) for piece in split_at_quiet(samples))
        return " ".join(text for text in texts if text)

    def _transcribe_piece(self, samples: Samples) -> str:
        if len(samples) == 0 or _loudest_rms(samples) < _SILENT_RMS:
            return ""
        seconds = len(samples) / SAMPLE_RATE_HZ
        padded = _pad(samples, self._shortest)
        limit = math.ceil(seconds * _TOKENS_PER_SECOND) + _EXTRA_TOKENS
        return self._to_text(self._read(torch.from_numpy(padded)[None], limit)).strip()


def split_at_quiet(samples: Samples) -> list[Samples]:
    """Cuts `[samples]` at 16 kHz into pieces that the recogniser takes; most need no cut."""
    if len(samples) <= _LONGEST_PIECE_SECONDS * SAMPLE_RATE_HZ:
        return [samples]
    pieces = math.ceil(len(samples) / SAMPLE_RATE_HZ / _PIECE_SECONDS)
    reach = int(_CUT_SEARCH_SECONDS * SAMPLE_RATE_HZ)
    cuts = []
    for number in range(1, pieces):
        begin = number * len(samples) // pieces - reach
        cuts.append(begin + _quietest(samples[begin : begin + 2 * reach]))
    return np.split(samples, cuts)


def _quietest(samples: Samples) -> int:
    """Middle of the stretch of 100 ms with the least energy."""
    length = int(_QUIET_SECONDS * SAMPLE_RATE_HZ)
    energy = np.concatenate(([0.0], np.cumsum(samples.astype(np.float64) ** 2)))
    return int(np.argmin(energy[length:] - energy[:-length])) + length // 2


def _loudest_rms(samples: Samples) -> float:
    length = int(_QUIET_SECONDS * SAMPLE_RATE_HZ)
    windows = _pad(samples, -(-len(samples) // length) * length).reshape(-1, length)
    return float(np.sqrt((windows**2).mean(axis=1).max()))


def _pad(samples: Samples, length: int) -> Samples:
    """Zeros behind `samples` up to `length`."""
    return np.pad(samples, (0, max(0, length - len(samples))))


@dataclass(frozen=True)
class EmbeddingSchedule:
    """When a stream encodes and what it then holds final; all in samples at 16 kHz.

    The encoder was trained on whole clips: a frame depends on all the others. Until its weights are
    adapted to a causal mask, a stream encodes its last `window` at each `step`, and what it makes
    of frames older than `look_ahead` is final. Steps stand at fixed positions of the segment, so
    the embeddings do not depend on how the audio was cut into chunks.

    Attributes:
        embedding: that one speech embedding stands for.
        step: between two encodings; a multiple of `embedding`.
        look_ahead: that a frame has behind it when it becomes final.
        window: that one encoding sees at most; a multiple of `embedding`.
    """

    embedding: int
    step: int = 4608
    look_ahead: int = 4608
    window: int = 64512

    def __post_init__(self) -> None:
        for name in ("step", "window"):
            value = getattr(self, name)
            if value <= 0 or value % self.embedding:
                raise ValueError(f"{name} is {value}: it must be a multiple of {self.embedding}")
        unseen = SAMPLES_SEEN_PER_FRAME - SAMPLES_PER_FRAME
        if self.look_ahead < unseen:
            raise ValueError(f"look_ahead is {self.look_ahead}: a frame sees {unseen} more")
        needed = self.look_ahead + 2 * self.step
        if self.window < needed:
            raise ValueError(f"window is {self.window}: look-ahead and two steps take {needed}")

    @property
    def longest_wait(self) -> int:
        """Samples behind an embedding's own after which it is final, at the latest."""
        return self.look_ahead + self.step - self.embedding


class Schedule(Protocol):
    """When a stream's embeddings are made; all in samples at 16 kHz."""

    @property
    def embedding(self) -> int:
        """That one speech embedding stands for."""

    @property
    def step(self) -> int:
        """Between two encodings."""

    @property
    def longest_wait(self) -> int:
        """Behind an embedding's own after which it is final, at the latest."""


@dataclass(frozen=True)
class StreamingSchedule:
    """The schedule of a `StreamingEmbedder`; see `Schedule`."""

    embedding: int
    step: int
    look_ahead: int

    @classmethod
    def of(cls, encoder: VoiceEncoder, projector: InputProjector) -> StreamingSchedule:
        """That of an encoder and the projector behind it."""
        unit = projector.config.stride * encoder.samples_per_frame
        return cls(unit, encoder.block_samples, encoder.look_ahead)

    @property
    def longest_wait(self) -> int:
        """Samples behind an embedding's own after which it is final, at the latest."""
        return self.look_ahead + self.step + self.embedding


class Embedder(Protocol):
    """The speech embeddings of one segment, as its audio comes in."""

    @property
    def samples(self) -> int:
        """Samples taken so far."""

    def process(self, chunk: Samples) -> Tensor:
        """Takes the next samples `[samples]`, gives the final embeddings `[embeddings, width]`."""

    def finish(self, samples: int) -> Tensor:
        """Ends the segment at so many samples, at most those taken; gives the last embeddings."""


class StreamingEmbedder:
    """Embeds with an encoder whose weights are adapted to the mask of its stream.

    Args:
        encoder: the voice encoder.
        projector: makes embeddings of its frames.
    """

    def __init__(self, encoder: VoiceEncoder, projector: InputProjector) -> None:
        self._encoder, self._projector = encoder, projector
        kind = next(projector.parameters())
        self._encoder_state = encoder.initial_state(1, kind.device, kind.dtype)
        self._projector_state = projector.initial_state(1, kind.device, kind.dtype)
        self._device = kind.device
        self._unit = projector.config.stride * encoder.samples_per_frame
        self.samples = 0
        """Samples taken so far."""
        self.embeddings = 0
        """Embeddings given so far."""

    @torch.inference_mode()
    def process(self, chunk: Samples) -> Tensor:
        """Takes the next samples, gives the embeddings that became final.

        Args:
            chunk: `[samples]` at 16 kHz, any number.

        Returns:
            `[embeddings, width]`, float32.
        """
        self.samples += len(chunk)
        return self._embed(chunk)

    @torch.inference_mode()
    def finish(self, samples: int) -> Tensor:
        """Ends the segment, gives the embeddings that waited for look-ahead.

        Args:
            samples: length of the segment, at most what was taken; what was taken beyond counts
                only where it is final already.

        Returns:
            `[embeddings, width]`, float32: up to number `ceil(samples / samples an embedding)`.
        """
        if samples > self.samples:
            raise ValueError(
                f"the segment holds {self.samples} samples, it cannot end at {samples}"
            )
        wanted = -(-samples // self._unit) - self.embeddings
        # Behind the end of a segment frames see silence.
        beyond = self._encoder.block_samples + self._encoder.look_ahead + self._unit
        made = self._embed(np.zeros(beyond, np.float32))[: max(0, wanted)]
        return made

    def _embed(self, chunk: Samples) -> Tensor:
        if not len(chunk):
            return torch.zeros(0, self._projector.config.output_width)
        samples = torch.from_numpy(chunk)[None].to(self._device)
        lengths = torch.tensor([len(chunk)], device=self._device)
        frames, counts = self._encoder.step(samples, lengths, self._encoder_state)
        made, counts = self._projector.step(frames, counts, self._projector_state)
        embeddings = made[0, : int(counts)].float().cpu()
        self.embeddings += len(embeddings)
        return embeddings


class WindowEmbedder:
    """Embeds with an encoder that was trained on whole clips, by encoding its last seconds anew.

    Embedding i stands for samples `[768 i, 768 (i + 1))` of the segment (with the default sizes);
    the last of a segment may stand for fewer.

    Args:
        encoder: the voice encoder.
        projector: makes embeddings of its frames.
        schedule: when to encode.
    """

    def __init__(
        self, encoder: MoonshineEncoder, projector: InputProjector, schedule: EmbeddingSchedule
    ) -> None:
        expected = projector.config.stride * SAMPLES_PER_FRAME
        if schedule.embedding != expected:
            raise ValueError(
                f"the schedule counts {schedule.embedding} samples an embedding, "
                f"the projector makes one of {expected}"
            )
        self._encoder = encoder
        self._projector = projector
        self._schedule = schedule
        self._state = projector.initial_state(1)
        self._held: Samples = np.zeros(0, np.float32)
        self._held_start = 0
        self._next_step = schedule.step
        self.embeddings = 0
        """Embeddings given so far."""

    @property
    def samples(self) -> int:
        """Samples taken so far."""
        return self._held_start + len(self._held)

    @torch.inference_mode()
    def process(self, chunk: Samples) -> Tensor:
        """Takes the next samples, gives the embeddings that became final.

        Args:
            chunk: `[samples]` at 16 kHz, any number.

        Returns:
            `[embeddings, width]`, float32.
        """
        self._held = np.concatenate((self._held, chunk))
        made = [self._none()]
        while self._next_step <= self.samples:
            end = self._next_step
            made.append(self._encode(end, (end - self._schedule.look_ahead) // self._unit))
            self._next_step += self._schedule.step
            self._forget()
        return torch.cat(made)

    @torch.inference_mode()
    def finish(self, samples: int) -> Tensor:
        """Ends the segment, gives the embeddings that waited for look-ahead.

        Args:
            samples: length of the segment, at most what was taken; what was taken beyond counts
                only where it is final already.

        Returns:
            `[embeddings, width]`, float32: up to number `ceil(samples / 768)`.
        """
        if samples > self.samples:
            raise ValueError(
                f"the segment holds {self.samples} samples, it cannot end at {samples}"
            )
        return self._encode(samples, -(-samples // self._unit))

    def _none(self) -> Tensor:
        return torch.zeros(0, self._projector.config.output_width)

    @property
    def _unit(self) -> int:
        return self._schedule.embedding

    def _encode(self, end: int, final: int) -> Tensor:
        """Encodes the window up to `end`; gives embeddings up to number `final`, without it."""
        first = self.embeddings
        if final <= first:
            return self._none()
        start = max(self._held_start, self._window_start(end))
        clip = self._held[start - self._held_start : end - self._held_start]
        # Frames see beyond their own samples: behind the end of a segment they see silence.
        unseen = SAMPLES_SEEN_PER_FRAME - SAMPLES_PER_FRAME
        clip = _pad(clip, final * self._unit - start + unseen)
        assert (
            self._encoder.frames_of(len(clip)) >= (final * self._unit - start) // SAMPLES_PER_FRAME
        )
        frames = self._encoder(torch.from_numpy(clip)[None])
        begin, stop = (
            (number * self._unit - start) // SAMPLES_PER_FRAME for number in (first, final)
        )
        self.embeddings = final
        lengths = torch.tensor([stop - begin])
        made, counts = self._projector.step(frames[:, begin:stop], lengths, self._state)
        return made[0, : int(counts)]

    def _window_start(self, end: int) -> int:
        start = max(0, end - self._schedule.window)
        return -(-start // self._unit) * self._unit

    def _forget(self) -> None:
        """Drops samples that no later window sees: none ends before the step just made."""
        keep_from = self._window_start(self._next_step - self._schedule.step)
        if keep_from > self._held_start:
            self._held = self._held[keep_from - self._held_start :].copy()
            self._held_start = keep_from
