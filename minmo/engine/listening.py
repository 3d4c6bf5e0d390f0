"""What the encoder service computes: the words of a segment, and its speech embeddings.

Plain functions and classes over whole arrays; threads, queues and streams are the service's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minmo.engine.finding_pieces import Heard, PieceFinder
from minmo.engine.streaming_recogniser import BEHIND_SECONDS
from minmo.model import probing
from minmo.model.block_streaming import SAMPLE_RATE_HZ
from minmo.model.input_projector import InputProjector
from minmo.model.recognition_head import RecognitionHead
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
class Schedule:
    """When a stream's speech embeddings are made; all in samples at 16 kHz.

    Attributes:
        unit: that one embedding of the projector stands for, before merging.
        step: a block of the encoder: from one computation to the next.
        look_ahead: behind a block that must be there before it is encoded.
        held: behind where a piece is heard that must have been encoded before it is given, while
            the segment goes on.
    """

    unit: int
    step: int
    look_ahead: int
    held: int = 0

    @classmethod
    def of(
        cls, encoder: VoiceEncoder, projector: InputProjector, *, reading: bool = False
    ) -> Schedule:
        """That of an encoder and the projector behind it, and whether a recogniser reads along."""
        unit = projector.config.stride * encoder.samples_per_frame
        held = round(BEHIND_SECONDS * SAMPLE_RATE_HZ) if reading else 0
        return cls(unit, encoder.block_samples, encoder.look_ahead, held)

    @property
    def longest_wait(self) -> int:
        """Samples behind the end of a piece after which its embedding is given, at the latest.

        A piece is over when the unit behind it holds another one or none. That unit may be the
        first of the next block, which is encoded when all of it and the look-ahead are there: 5119
        samples, 320 ms, with the blocks of `mini`. What reads along waits longer.
        """
        straddling = self.unit if self.step % self.unit else 0
        return self.held + self.step + straddling + self.look_ahead

    def blocks(self, samples: int) -> int:
        """How many blocks of a segment can be encoded once so many of its samples are there."""
        return max(0, samples - self.look_ahead) // self.step

    def needed(self, blocks: int) -> int:
        """How many samples of a segment must be there for so many of its blocks."""
        return blocks * self.step + self.look_ahead

    def padded(self, samples: int) -> int:
        """Length of a segment with the silence that it is ended with.

        Up to the end of its last block and one block more: a piece may be recognised a little
        after its sound.
        """
        return (-(-samples // self.step) + 1) * self.step if samples else 0


class Probe(NamedTuple):
    """How a step of a segment sounds (`minmo.model.probing`).

    Attributes:
        embedding: `[1, width]`, float32, on the CPU: what the LLM reads to be asked.
        step: number of the step within the segment.
    """

    embedding: Tensor
    step: int


class Embedder(Protocol):
    """The speech embeddings of one segment, as its audio comes in."""

    @property
    def samples(self) -> int:
        """Samples taken so far."""

    @property
    def settled(self) -> int:
        """Samples of the segment in which all pieces that are to be heard have been given."""

    def process(self, chunk: Samples) -> Heard:
        """Takes the next samples `[samples]`, gives the pieces that are over."""

    def take_probes(self) -> list[Probe]:
        """The probes of the steps that were completed since the last call."""

    def finish(self, samples: int) -> Heard:
        """Ends the segment at so many samples, at most those taken; gives the last pieces."""


class AlignedEmbedder:
    """Embeds with modules that were trained for it: one embedding for each piece that is heard.

    All is computed a block at a time, at fixed positions of the segment, so the result does not
    depend in any bit on how the audio was cut into chunks.

    Args:
        encoder: the voice encoder, adapted to the mask of its stream.
        projector: makes embeddings of its frames.
        head: makes them as large as text.
        finder: of the segment's pieces.
        probes: whether each step gets a probe.
    """

    def __init__(
        self,
        encoder: VoiceEncoder,
        projector: InputProjector,
        head: RecognitionHead,
        finder: PieceFinder,
        *,
        probes: bool = False,
    ) -> None:
        self._encoder, self._projector, self._head = encoder, projector, head
        self._finder = finder
        self._schedule = Schedule.of(encoder, projector)
        kind = next(projector.parameters())
        self._device = kind.device
        self._encoder_state = encoder.initial_state(1, kind.device, kind.dtype)
        self._projector_state = projector.initial_state(1, kind.device, kind.dtype)
        self._probing: probing.ProbingState | None = None
        if probes:
            self._probing = probing.initial_state(
                1, head.width, head.norm.weight.device, head.norm.weight.dtype
            )
        self._probes: list[Probe] = []
        self._waiting: Samples = np.zeros(0, np.float32)
        # Samples that the next block takes: the first one waits for its look-ahead too.
        self._missing = self._schedule.needed(1)
        self._silent = True
        self.samples = 0
        """Samples taken so far."""

    @property
    def settled(self) -> int:
        """Samples of the segment in which all pieces that are to be heard have been given."""
        return self._finder.settled * self._schedule.unit

    @torch.inference_mode()
    def process(self, chunk: Samples) -> Heard:
        """Takes the next samples, gives the pieces that are over.

        Args:
            chunk: `[samples]` at 16 kHz, any number.
        """
        self.samples += len(chunk)
        self._waiting = np.concatenate((self._waiting, chunk))
        return self._listen()

    def take_probes(self) -> list[Probe]:
        """The probes of the steps that were completed since the last call; none after `finish`."""
        taken, self._probes = self._probes, []
        return taken

    @torch.inference_mode()
    def finish(self, samples: int) -> Heard:
        """Ends the segment, gives the pieces that waited.

        Args:
            samples: length of the segment, at most what was taken; what was taken beyond counts
                only where it has been computed already. Silence follows, as far as
                `Schedule.padded` says: at most three blocks are computed then.
        """
        if samples > self.samples:
            raise ValueError(
                f"the segment holds {self.samples} samples, it cannot end at {samples}"
            )
        # What follows is silence that nobody has heard.
        self._probing = None
        schedule, end = self._schedule, self._schedule.padded(samples)
        computed = self.samples - len(self._waiting)
        kept = self._waiting[: max(0, samples - computed)]
        needed = schedule.needed(end // schedule.step) if end else 0
        self._waiting = _pad(kept, needed - computed)
        heard = self._listen().followed_by(self._finder.finish())
        within = sum(frame * schedule.unit < end for frame in heard.frames)
        return Heard(heard.embeddings[:within], heard.tokens[:within], heard.frames[:within])

    def _listen(self) -> Heard:
        """Computes all blocks that can be."""
        heard = Heard(torch.zeros(0, self._head.width), [], [])
        while len(self._waiting) >= self._missing:
            block, self._waiting = np.split(self._waiting, [self._missing])
            self._missing = self._schedule.step
            self._silent = self._silent and _loudest_rms(block) < _SILENT_RMS
            samples = torch.from_numpy(block)[None].to(self._device)
            lengths = torch.tensor([len(block)], device=self._device)
            frames, counts = self._encoder.step(samples, lengths, self._encoder_state)
            frames = frames[:, : int(counts)]
            embeddings, counts = self._projector.step(frames, counts, self._projector_state)
            embeddings = embeddings[:, : int(counts)]
            if self._probing is not None:
                self._probe(self._probing, embeddings)
            found = self._finder.find(frames, embeddings, silent=self._silent)
            heard = heard.followed_by(found)
        return heard

    def _probe(self, state: probing.ProbingState, embeddings: Tensor) -> None:
        counts = torch.tensor([embeddings.shape[1]], device=embeddings.device)
        made = probing.probe_step(self._head.as_large_as_text(embeddings), counts, state)
        for number in range(int(made.counts)):
            embedding = made.embeddings[0, number : number + 1].float().cpu()
            self._probes.append(Probe(embedding, int(made.steps[0, number])))
