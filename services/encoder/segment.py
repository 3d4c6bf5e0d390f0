"""A segment whose speech embeddings are being made, while its audio comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from minmo.audio.pcm import Samples
from minmo.engine.finding_pieces import Heard
from minmo.engine.listening import Embedder, Probe, Schedule
from minmo.model.probing import STEP_EMBEDDINGS
from minmo.rpc import tracing
from minmo.v1 import common_pb2, encoder_pb2

# A segment that has much to catch up on lets other streams in between.
_BLOCKS_PER_JOB = 4


@dataclass(frozen=True)
class Made:
    """What a job made.

    Attributes:
        heard: the next pieces of the segment.
        first: number of the first of them.
        text: what they and all before them spell.
        settled: samples of the segment in which there are no others.
        probes: of the steps that were completed, in order.
    """

    heard: Heard
    first: int
    text: str
    settled: int
    probes: list[Probe]


class Segment:
    """The audio of a segment on its way to its embedder, and the answers on their way back.

    Args:
        segment_id: the caller's.
        start: its first sample in the stream, at 16 kHz.
        new_embedder: makes its embedder, in its first job: the models may have to be loaded.
        schedule: the embedder's.
        to_text: what pieces of text spell.
    """

    def __init__(
        self,
        segment_id: int,
        start: int,
        new_embedder: Callable[[], Embedder],
        schedule: Schedule,
        to_text: Callable[[Sequence[int]], str],
    ) -> None:
        self.segment_id = segment_id
        self.start = start
        self._new_embedder = new_embedder
        self._embedder: Embedder | None = None
        self._schedule = schedule
        self._to_text = to_text
        self._pending: Samples = np.zeros(0, np.float32)
        self._taken = start
        self._end: int | None = None
        self._tokens: list[int] = []
        self.is_complete = False
        """Whether its last job was given out."""
        self.trace: tracing.Span = tracing.NONE
        """From its start to its last embedding."""
        self.compute_seconds = 0.0
        """Time that was computed on it."""

    @property
    def received(self) -> int:
        """One past its latest sample."""
        return self._taken + len(self._pending)

    @property
    def samples_waiting(self) -> int:
        """Samples that no job has taken."""
        return len(self._pending)

    @property
    def has_work(self) -> bool:
        """Whether there is audio for a step, or an end to be made."""
        if self.is_complete:
            return False
        blocks = self._schedule.blocks
        can_be_heard = blocks(self.received - self.start) > blocks(self._taken - self.start)
        return self._end is not None or can_be_heard

    def add(self, samples: Samples) -> None:
        """Adds the next samples, `[samples]`."""
        self._pending = np.concatenate((self._pending, samples))

    def end_at(self, end: int) -> None:
        """Ends it at a position up to `received`; what is behind and still waits is dropped."""
        self._pending = self._pending[: max(0, end - self._taken)]
        self._end = end

    def next_job(self) -> Callable[[], Made]:
        """Takes the next audio; gives a job that listens to it."""
        heard = self._schedule.blocks(self._taken - self.start)
        most = self._schedule.needed(heard + _BLOCKS_PER_JOB) - (self._taken - self.start)
        chunk, self._pending = self._pending[:most], self._pending[most:]
        self._taken += len(chunk)
        end = self._end if len(self._pending) == 0 else None
        self.is_complete = end is not None

        def job() -> Made:
            if self._embedder is None:
                self._embedder = self._new_embedder()
            heard = self._embedder.process(chunk)
            if end is not None:
                last = self._embedder.finish(min(end - self.start, self._embedder.samples))
                heard = heard.followed_by(last)
            first = len(self._tokens)
            self._tokens += heard.tokens
            text, settled = self._to_text(self._tokens), self._embedder.settled
            return Made(heard, first, text, settled, self._embedder.take_probes())

        return job

    def answers(self, made: Made, *, final: bool) -> Iterator[encoder_pb2.EncodeResponse]:
        """The messages that carry what the next job made: its pieces, then its probes.

        What is known to have ended needs no probes any more.
        """
        yield self._embeddings(made, final=final)
        for probe in made.probes if self._end is None else ():
            yield encoder_pb2.EncodeResponse(
                probe=encoder_pb2.SegmentProbe(
                    segment_id=self.segment_id,
                    step=probe.step,
                    end_sample=self.start
                    + (probe.step + 1) * STEP_EMBEDDINGS * self._schedule.unit,
                    embedding=_matrix(probe.embedding),
                )
            )

    def _embeddings(self, made: Made, *, final: bool) -> encoder_pb2.EncodeResponse:
        # A segment may end before what was listened to until its end was known.
        end = self.start + made.settled if not final or self._end is None else self._end
        return encoder_pb2.EncodeResponse(
            embeddings=encoder_pb2.SegmentEmbeddings(
                segment_id=self.segment_id,
                first_index=made.first,
                embeddings=_matrix(made.heard.embeddings),
                end_sample=end,
                final=final,
                pieces=made.heard.tokens,
                text=made.text,
            )
        )


def _matrix(rows: Tensor) -> common_pb2.FloatMatrix:
    data = rows.numpy().astype("<f4", copy=False).tobytes()
    return common_pb2.FloatMatrix(data=data, rows=rows.shape[0], columns=rows.shape[1])
