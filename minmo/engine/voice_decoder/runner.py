"""Computes what the scheduler has decided, and decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from minmo.engine.voice import Samples
from minmo.engine.voice_decoder.modules import VoiceModules
from minmo.engine.voice_decoder.scheduler import Chunks, Problem, Readings
from minmo.engine.voice_decoder.sequence import Reading, SpeechSequence
from minmo.engine.voice_decoder.token2wav import Token2Wav
from minmo.engine.voice_decoder.token_reader import TokenReader

log = logging.getLogger(__name__)


class Runner:
    """The modules and what they remember of every slot.

    Args:
        modules: what speaks.
        slots: utterances at once.
        context: positions of the voice token LM for each.
        rows: positions that one step may read.
        lanes: slots that token2wav steps together.
        batched: whether steps are recorded, with fixed shapes; None where that is faster, on a GPU.
    """

    def __init__(
        self,
        modules: VoiceModules,
        slots: int,
        context: int,
        rows: int,
        lanes: int,
        batched: bool | None = None,
    ) -> None:
        self._reader = TokenReader(modules, slots, context, rows, batched)
        self._token2wav = Token2Wav(modules, slots, lanes, batched)
        self._owners: list[SpeechSequence | None] = [None] * slots

    def read(self, step: Readings) -> list[int | Problem | None]:
        """Steps the voice token LM; for each reading its token, if it asks for one."""
        return self._read(step.items)

    def _read(self, readings: Sequence[Reading]) -> list[int | Problem | None]:
        """Reads for all together; where that fails, for each alone, to find out for whom."""
        try:
            for reading in readings:
                self._enter(reading.slot, reading.sequence)
            return self._reader.read(readings)
        except Exception as error:
            if len(readings) == 1:
                log.exception("the voice token LM failed")
                return [Problem(f"the voice token LM failed: {type(error).__name__}")]
        return [result for reading in readings for result in self._read([reading])]

    def speak(self, step: Chunks) -> list[Samples | Problem]:
        """Steps token2wav; for each chunk its samples."""
        return self._token2wav.run(step.items)

    def _enter(self, slot: int, sequence: SpeechSequence) -> None:
        """Makes a slot ready for whoever holds it now."""
        before = self._owners[slot]
        if before is sequence:
            return
        if before is not None:
            self._reader.forget(before)
        self._token2wav.enter(slot, sequence.speaker)
        self._owners[slot] = sequence
