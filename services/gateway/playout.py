"""What the client is sent of the assistant's audio, when, and how far it has probably played it.

No I/O and no clock: who calls says what time it is, in seconds that never go back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from minmo.rpc import metrics
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import AudioOutput

KEPT_UTTERANCES = 8
PIECE_SECONDS = 0.2
"""Longest audio in one event."""
PROGRESS_SECONDS = 0.5
"""Time between two reports of progress."""
CAUTION_SECONDS = 0.5
"""How much less than probable is reported while an utterance is played: a client that says later
how far it came may not be contradicted."""
AFTERPLAY_SECONDS = 0.3
"""How much later than probable the end is reported: networks and loudspeakers take their time."""
TRUNCATE_SECONDS = 0.7
"""How long a client that was interrupted is waited for to say how far it has played; then what is
probable is reported, and what the client says later corrects the history."""
_SAMPLE_BYTES = 2


@dataclass
class _Utterance:
    """Stretches are `(start in seconds, first sample, samples)`, each played without a break."""

    utterance_id: str
    stretches: list[tuple[float, int, int]] = field(default_factory=list)
    sent: int = 0
    final: bool = False
    stopped_at: float | None = None
    told: int | None = None
    reported: int = -1
    reported_at: float = 0.0
    finished: bool = False


class Playout:
    """Holds audio back that a client would not play for long, and plays it virtually.

    Args:
        rate_hz: samples a second; 16 bits each.
        max_lead_seconds: audio that the client may have before it is played.
    """

    def __init__(self, rate_hz: int, max_lead_seconds: float) -> None:
        self.client_reports = False
        """Whether the client says itself how far it has played."""
        self._rate_hz = rate_hz
        self._max_lead = max_lead_seconds
        self._held: deque[AudioOutput] = deque()
        self._utterances: dict[str, _Utterance] = {}
        self._busy_until = 0.0

    # --- what is sent

    def offer(self, audio: AudioOutput) -> None:
        """Takes audio to send, in order."""
        if self._utterance(audio.utterance_id).stopped_at is not None:
            return
        size = int(PIECE_SECONDS * self._rate_hz) * _SAMPLE_BYTES
        for start in range(0, max(1, len(audio.data)), size):
            data = audio.data[start : start + size]
            self._held.append(
                AudioOutput(
                    utterance_id=audio.utterance_id,
                    first_sample=audio.first_sample + start // _SAMPLE_BYTES,
                    data=data,
                    final=audio.final and start + size >= len(audio.data),
                )
            )

    def due(self, now: float) -> Iterator[AudioOutput]:
        """What is to be sent now."""
        while self._held and self.wait_seconds(now) == 0:
            audio = self._held.popleft()
            self._send(audio, now)
            yield audio

    def wait_seconds(self, now: float) -> float | None:
        """Time until more is to be sent; None if nothing is held back."""
        if not self._held:
            return None
        return max(0.0, self._busy_until - now - self._max_lead)

    @property
    def busy(self) -> bool:
        """Whether there will be audio to send, or something to report, without any news."""
        if self._held:
            return True
        return not self.client_reports and any(
            utterance.stretches and not utterance.finished
            for utterance in self._utterances.values()
        )

    @property
    def held_bytes(self) -> int:
        """Audio that is held back."""
        return sum(len(audio.data) for audio in self._held)

    def stop(self, utterance_id: str, now: float) -> None:
        """The client was told to play no more of an utterance."""
        utterance = self._utterance(utterance_id)
        if utterance.stopped_at is None:
            utterance.stopped_at = now
            self._busy_until = now
            kept = [audio for audio in self._held if audio.utterance_id != utterance_id]
            self._held = deque(kept)

    def sent_ms(self, utterance_id: str) -> int:
        """Audio of an utterance that was sent, in milliseconds."""
        utterance = self._utterances.get(utterance_id)
        return 0 if utterance is None else utterance.sent * 1000 // self._rate_hz

    # --- what was heard

    def heard_until(self, utterance_id: str, audio_ms: int) -> bool:
        """The client said how far it has played, and that it plays no more.

        Returns:
            Whether that will be reported once the utterance is stopped; False if its end has been
            reported already, or is the client's to report.
        """
        utterance = self._utterances.get(utterance_id)
        if utterance is None or utterance.finished:
            return False
        utterance.told = audio_ms * self._rate_hz // 1000
        return not self.client_reports

    def played(self, utterance_id: str, now: float) -> int:
        """Samples of an utterance that were probably played."""
        utterance = self._utterances.get(utterance_id)
        if utterance is None:
            return 0
        until = now if utterance.stopped_at is None else min(now, utterance.stopped_at)
        return sum(
            min(samples, max(0, int((until - start) * self._rate_hz)))
            for start, _, samples in utterance.stretches
        )

    def reports(self, now: float) -> list[conversation_pb2.Playback]:
        """What the orchestrator is to be told now of clients that do not say it themselves."""
        if self.client_reports:
            return []
        made = []
        for utterance in self._utterances.values():
            if utterance.finished or not (utterance.stretches or utterance.final):
                continue
            report = self._report(utterance, now)
            if report is not None:
                made.append(report)
        return made

    def _report(self, utterance: _Utterance, now: float) -> conversation_pb2.Playback | None:
        played = self.played(utterance.utterance_id, now)
        if utterance.stopped_at is not None:
            told = utterance.told
            if told is None and now < utterance.stopped_at + TRUNCATE_SECONDS:
                return None
            played = played if told is None else min(told, utterance.sent)
            utterance.finished = True
        elif utterance.final and played >= utterance.sent:
            if now < self._end(utterance) + AFTERPLAY_SECONDS:
                return None
            utterance.finished = True
        else:
            played = max(0, played - int(CAUTION_SECONDS * self._rate_hz))
            if now < utterance.reported_at + PROGRESS_SECONDS or played <= utterance.reported:
                return None
        utterance.reported, utterance.reported_at = played, now
        return conversation_pb2.Playback(
            utterance_id=utterance.utterance_id,
            played_samples=played,
            finished=utterance.finished,
        )

    def _end(self, utterance: _Utterance) -> float:
        if not utterance.stretches:
            return 0.0
        start, _, samples = utterance.stretches[-1]
        return start + samples / self._rate_hz

    def _send(self, audio: AudioOutput, now: float) -> None:
        utterance = self._utterance(audio.utterance_id)
        samples = len(audio.data) // _SAMPLE_BYTES
        utterance.final = utterance.final or audio.final
        if not samples:
            return
        start = max(now, self._busy_until)
        if utterance.stretches and start > self._busy_until and not self.client_reports:
            metrics.STALLS.inc()
            metrics.STALL_SECONDS.inc(start - self._busy_until)
        if utterance.stretches and start == self._busy_until:
            began, first, before = utterance.stretches[-1]
            utterance.stretches[-1] = (began, first, before + samples)
        else:
            utterance.stretches.append((start, audio.first_sample, samples))
        utterance.sent += samples
        self._busy_until = start + samples / self._rate_hz

    def _utterance(self, utterance_id: str) -> _Utterance:
        if utterance_id not in self._utterances:
            self._utterances[utterance_id] = _Utterance(utterance_id)
            for old in list(self._utterances)[:-KEPT_UTTERANCES]:
                del self._utterances[old]
        return self._utterances[utterance_id]
