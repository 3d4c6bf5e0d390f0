"""A segment whose speech embeddings are being made, while its audio comes in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from minmo.audio.pcm import Samples
from minmo.engine.listening import Embedder, Schedule
from minmo.v1 import common_pb2, encoder_pb2

# A segment that has much to catch up on lets other streams in between.
_STEPS_PER_JOB = 4


class Segment:
    """The audio of a segment on its way to its embedder, and the answers on their way back.

    Args:
        segment_id: the caller's.
        start: its first sample in the stream, at 16 kHz.
        embedder: a new one.
        schedule: the embedder's.
    """

    def __init__(self, segment_id: int, start: int, embedder: Embedder, schedule: Schedule) -> None:
        self.segment_id = segment_id
        self.start = start
        self._embedder = embedder
        self._schedule = schedule
        self._pending: Samples = np.zeros(0, np.float32)
        self._taken = start
        self._end: int | None = None
        self._sent = 0
        self.is_complete = False
        """Whether its last job was given out."""

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
        return not self.is_complete and (
            self._end is not None or len(self._pending) >= self._schedule.step
        )

    def add(self, samples: Samples) -> None:
        """Adds the next samples, `[samples]`."""
        self._pending = np.concatenate((self._pending, samples))

    def end_at(self, end: int) -> None:
        """Ends it at a position up to `received`; what is behind and still waits is dropped."""
        self._pending = self._pending[: max(0, end - self._taken)]
        self._end = end

    def next_job(self) -> Callable[[], Tensor]:
        """Takes the next audio; gives a job that makes embeddings `[embeddings, width]` of it."""
        most = _STEPS_PER_JOB * self._schedule.step
        chunk, self._pending = self._pending[:most], self._pending[most:]
        self._taken += len(chunk)
        end = self._end if len(self._pending) == 0 else None
        self.is_complete = end is not None

        def job() -> Tensor:
            made = self._embedder.process(chunk)
            if end is None:
                return made
            length = min(end - self.start, self._embedder.samples)
            return torch.cat((made, self._embedder.finish(length)))

        return job

    def answer(self, embeddings: Tensor, *, final: bool) -> encoder_pb2.EncodeResponse:
        """The message that carries the next embeddings, `[embeddings, width]`."""
        rows, columns = embeddings.shape
        first, self._sent = self._sent, self._sent + rows
        stands_for_until = self.start + self._sent * self._schedule.embedding
        if final and self._end is not None:
            # The last one may reach beyond the end; if the end lies further back, what was final
            # before the caller knew where the segment ends stays as it is.
            over = stands_for_until - self._end
            if over < self._schedule.embedding:
                stands_for_until = self._end
        return encoder_pb2.EncodeResponse(
            embeddings=encoder_pb2.SegmentEmbeddings(
                segment_id=self.segment_id,
                first_index=first,
                embeddings=common_pb2.FloatMatrix(
                    data=embeddings.contiguous().numpy().astype("<f4", copy=False).tobytes(),
                    rows=rows,
                    columns=columns,
                ),
                end_sample=stands_for_until,
                final=final,
            )
        )
