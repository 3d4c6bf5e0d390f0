"""What the client of a conversation is told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from minmo.rpc import metrics, tracing
from minmo.rpc.errors import StatusError
from minmo.rpc.queues import BoundedStream, StreamClosedError
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import ConverseResponse, TurnEventKind, TurnOutcome
from services.orchestrator import protos
from services.orchestrator.codecs import Outgoing
from services.orchestrator.session_settings import Settings
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
        outgoing: writes the assistant's audio as the client wants it.
    """

    def __init__(self, out: BoundedStream[ConverseResponse], outgoing: Outgoing) -> None:
        self._out = out
        self._outgoing = outgoing
        self._lost: dict[str, float] = {}
        self.position = 0
        """Where in the user's audio we are, in samples at 16 kHz: events carry it."""

    @property
    def are_read(self) -> bool:
        """Whether the client's transport has taken everything."""
        return not len(self._out)

    async def ready(
        self, session_id: str, turn_count: int, mode: str, voices: Sequence[str]
    ) -> None:
        """The stream has its session."""
        ready = conversation_pb2.ConverseReady(
            session_id=session_id,
            resumed=turn_count > 0,
            turn_count=turn_count,
            mode=mode,
            voices=voices,
            keeps_audio=False,
        )
        await self._out.put(ConverseResponse(ready=ready))

    async def moving(self, moving: conversation_pb2.Moving) -> None:
        """Another server should go on."""
        await self._out.put(ConverseResponse(moving=moving))

    async def event(
        self,
        kind: TurnEventKind.ValueType,
        *,
        position: int | None = None,
        utterance_id: str = "",
        detail: str = "",
        read_count: int = 0,
        request_id: str = "",
    ) -> None:
        """Something happened, at `position` or now."""
        samples = self.position if position is None else position
        event = conversation_pb2.TurnEvent(
            kind=kind,
            audio_ms=samples * 1000 // SAMPLE_RATE_HZ,
            utterance_id=utterance_id,
            detail=detail,
            read_count=read_count,
        )
        await self._out.put(
            ConverseResponse(event=event, request_id=request_id, traceparent=tracing.traceparent())
        )

    async def user_text(
        self, turn_index: int, text: str, *, final: bool, request_id: str = ""
    ) -> None:
        """What the user said, so far or finally."""
        said = conversation_pb2.UserText(turn_index=turn_index, text=text, final=final)
        await self._out.put(ConverseResponse(user_text=said, request_id=request_id))

    async def assistant_text(
        self, utterance_id: str, index: int, text: str, *, request_id: str = ""
    ) -> None:
        """A token's text; nothing is sent for one that completes no character."""
        if text:
            says = conversation_pb2.AssistantText(
                utterance_id=utterance_id, token_index=index, text=text
            )
            await self._out.put(ConverseResponse(assistant_text=says, request_id=request_id))

    async def audio(self, utterance_id: str, audio: Audio, *, request_id: str = "") -> None:
        """A piece of the assistant's audio."""
        for place, piece in enumerate(self._outgoing.pieces(utterance_id, audio)):
            if place:
                await asyncio.sleep(0)  # others work between two packets
            output = conversation_pb2.AudioOutput(
                utterance_id=utterance_id,
                first_sample=piece.first_sample,
                data=piece.data,
                marks=piece.marks,
                final=piece.final,
            )
            await self._out.put(ConverseResponse(audio=output, request_id=request_id))

    async def stop_playback(self, utterance_id: str, *, request_id: str = "") -> None:
        """Play no more of it."""
        stop = conversation_pb2.StopPlayback(utterance_id=utterance_id)
        await self._out.put(ConverseResponse(stop_playback=stop, request_id=request_id))

    async def tool_call(self, turn: StoredTurn, *, request_id: str = "") -> None:
        """The assistant calls a tool."""
        call = protos.tool_call(turn)
        await self._out.put(ConverseResponse(tool_call=call, request_id=request_id))

    async def settings_updated(self, settings: Settings, *, request_id: str = "") -> None:
        """The settings are others from here on."""
        updated = conversation_pb2.SettingsUpdated(settings=protos.settings(settings))
        await self._out.put(ConverseResponse(settings_updated=updated, request_id=request_id))

    async def turn_added(self, turn: StoredTurn, *, request_id: str = "") -> None:
        """The history has a turn that nobody spoke."""
        added = conversation_pb2.TurnAdded(turn=protos.turn(turn))
        await self._out.put(ConverseResponse(turn_added=added, request_id=request_id))

    async def turn_deleted(self, index: int, *, request_id: str = "") -> None:
        """The history has lost a turn."""
        deleted = conversation_pb2.TurnDeleted(turn_index=index)
        await self._out.put(ConverseResponse(turn_deleted=deleted, request_id=request_id))

    async def turn_changed(self, turn: StoredTurn, utterance_id: str) -> None:
        """Something else was heard of a turn than it seemed."""
        changed = conversation_pb2.TurnChanged(turn=protos.turn(turn), utterance_id=utterance_id)
        await self._out.put(ConverseResponse(turn_changed=changed))

    async def refused(
        self, reason: str, message: str, *, field: str = "", request_id: str = ""
    ) -> None:
        """A request was not carried out, and nothing has changed."""
        metrics.REQUESTS_REFUSED.labels(reason).inc()
        refused = conversation_pb2.Refused(reason=reason, message=message, field=field)
        await self._out.put(ConverseResponse(refused=refused, request_id=request_id))

    async def outage(self, service: str, lost: bool, detail: str = "") -> None:
        """A service was lost, or is back: told once each."""
        if lost == (service in self._lost):
            return
        if lost:
            self._lost[service] = time.monotonic()
            metrics.OUTAGES.labels(service).inc()
            kind = TurnEventKind.TURN_EVENT_KIND_RECOVERING
        else:
            duration = time.monotonic() - self._lost.pop(service)
            metrics.OUTAGE_DURATION.labels(service).observe(duration)
            kind = TurnEventKind.TURN_EVENT_KIND_RECOVERED
        # What has begun goes on to its end when the client has gone: there is nobody to tell.
        with contextlib.suppress(StreamClosedError):
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
        read_count: int = 0,
        request_id: str = "",
    ) -> None:
        """How an answer went."""
        report = conversation_pb2.TurnReport(
            outcome=_OUTCOMES[outcome],
            user_turn_index=user.index if user is not None else 0,
            assistant_turn_index=turn.index if turn is not None else 0,
            first_audio_ms=waterfall.first_audio_ms,
            waterfall=waterfall.spans(),
            detail=str(error) if error is not None else "",
            read_count=read_count,
        )
        if utterance is not None:
            report.utterance_id = utterance.utterance_id
            report.heard_text = utterance.heard_text
            report.generated_text = utterance.text
            report.token_count = utterance.made_count
            report.audio_ms = round(
                utterance.sample_count * 1000 / self._outgoing.pcm_format.sample_rate_hz
            )
            report.voice_compute_ms = utterance.voice_compute_ms
            report.generate_ms = utterance.generate_seconds * 1000
            report.token2wav_ms = utterance.token2wav_ms
        await self._out.put(
            ConverseResponse(
                report=report, request_id=request_id, traceparent=tracing.traceparent()
            )
        )
