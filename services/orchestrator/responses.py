"""What the client of a conversation is told."""

from __future__ import annotations

from minmo.rpc.errors import StatusError
from minmo.rpc.queues import BoundedStream
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import ConverseResponse, TurnEventKind, TurnOutcome
from services.orchestrator.store import StoredTurn
from services.orchestrator.turn_taking import SAMPLE_RATE_HZ
from services.orchestrator.utterance import Audio, Utterance
from services.orchestrator.waterfall import Waterfall

_OUTCOMES = {
    "completed": TurnOutcome.TURN_OUTCOME_COMPLETED,
    "interrupted": TurnOutcome.TURN_OUTCOME_INTERRUPTED,
    "failed": TurnOutcome.TURN_OUTCOME_FAILED,
}


class Responses:
    """Says things to the client, in order. Every method raises StatusError if it does not read.

    Args:
        out: where responses go.
        output_rate_hz: of the assistant's audio.
    """

    def __init__(self, out: BoundedStream[ConverseResponse], output_rate_hz: int) -> None:
        self._out = out
        self._rate_hz = output_rate_hz
        self._lost: set[str] = set()
        self.position = 0
        """Where in the user's audio we are, in samples at 16 kHz: events carry it."""

    async def ready(self, session_id: str, turn_count: int, mode: str) -> None:
        """The stream has its session."""
        ready = conversation_pb2.ConverseReady(
            session_id=session_id, resumed=turn_count > 0, turn_count=turn_count, mode=mode
        )
        await self._out.put(ConverseResponse(ready=ready))

    async def event(
        self,
        kind: TurnEventKind.ValueType,
        *,
        position: int | None = None,
        utterance_id: str = "",
        detail: str = "",
    ) -> None:
        """Something happened, at `position` or now."""
        samples = self.position if position is None else position
        event = conversation_pb2.TurnEvent(
            kind=kind,
            audio_ms=samples * 1000 // SAMPLE_RATE_HZ,
            utterance_id=utterance_id,
            detail=detail,
        )
        await self._out.put(ConverseResponse(event=event))

    async def user_text(self, turn_index: int, text: str, *, final: bool) -> None:
        """What the user said, so far or finally."""
        said = conversation_pb2.UserText(turn_index=turn_index, text=text, final=final)
        await self._out.put(ConverseResponse(user_text=said))

    async def assistant_text(self, utterance_id: str, index: int, text: str) -> None:
        """A token's text; nothing is sent for one that completes no character."""
        if text:
            says = conversation_pb2.AssistantText(
                utterance_id=utterance_id, token_index=index, text=text
            )
            await self._out.put(ConverseResponse(assistant_text=says))

    async def audio(self, utterance_id: str, audio: Audio) -> None:
        """A piece of the assistant's audio."""
        output = conversation_pb2.AudioOutput(
            utterance_id=utterance_id,
            first_sample=audio.first_sample,
            data=audio.data,
            marks=audio.marks,
            final=audio.final,
        )
        await self._out.put(ConverseResponse(audio=output))

    async def stop_playback(self, utterance_id: str) -> None:
        """Play no more of it."""
        stop = conversation_pb2.StopPlayback(utterance_id=utterance_id)
        await self._out.put(ConverseResponse(stop_playback=stop))

    async def outage(self, service: str, lost: bool, detail: str = "") -> None:
        """A service was lost, or is back: told once each."""
        if lost == (service in self._lost):
            return
        if lost:
            self._lost.add(service)
            kind = TurnEventKind.TURN_EVENT_KIND_RECOVERING
        else:
            self._lost.discard(service)
            kind = TurnEventKind.TURN_EVENT_KIND_RECOVERED
        await self.event(kind, detail=f"{service}: {detail}" if detail else service)

    async def report(
        self,
        outcome: str,
        waterfall: Waterfall,
        *,
        user: StoredTurn | None,
        turn: StoredTurn | None,
        utterance: Utterance | None,
        error: StatusError | None,
    ) -> None:
        """How an answer went."""
        report = conversation_pb2.TurnReport(
            outcome=_OUTCOMES[outcome],
            user_turn_index=user.index if user is not None else 0,
            assistant_turn_index=turn.index if turn is not None else 0,
            first_audio_ms=waterfall.first_audio_ms,
            waterfall=waterfall.spans(),
            detail=str(error) if error is not None else "",
        )
        if utterance is not None:
            report.utterance_id = utterance.utterance_id
            report.heard_text = utterance.heard_text
            report.generated_text = utterance.text
            report.token_count = utterance.token_count
            report.audio_ms = round(utterance.sample_count * 1000 / self._rate_hz)
            report.voice_compute_ms = utterance.voice_compute_ms
            report.generate_ms = utterance.generate_seconds * 1000
        await self._out.put(ConverseResponse(report=report))
