"""The orchestrator's process: its channels, its store, its readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import grpc

from minmo.rpc import client
from minmo.rpc.following import keep_running
from minmo.rpc.health import Readiness
from minmo.settings import OrchestratorSettings
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2_grpc import add_ConversationServiceServicer_to_server
from services.orchestrator.conversation import Upstreams
from services.orchestrator.servicer import ConversationServicer
from services.orchestrator.store import SessionStore
from services.orchestrator.voices import Voices
from services.orchestrator.watch import Service, watch_service, watch_store


class OrchestratorService:
    """The conversation service, for `minmo.rpc.server.serve`."""

    name = "orchestrator"

    def __init__(self, settings: OrchestratorSettings) -> None:
        self._settings = settings
        self.readiness = Readiness()
        self._watching: list[asyncio.Task[None]] = []
        voice_decoder = self._channel(settings.voice_decoder_address)
        self._upstreams = Upstreams(
            readiness=self.readiness,
            encoder=self._channel(settings.encoder_address),
            # A session's cache is in one replica.
            llm=self._channel(settings.llm_address, "by_session"),
            voice_decoder=voice_decoder,
            voices=Voices(voice_decoder),
            store=SessionStore(
                settings.redis_url,
                ttl_seconds=settings.session_ttl_seconds,
                max_sessions_per_owner=settings.max_sessions_per_owner,
                deadline_seconds=settings.store_deadline_seconds,
            ),
        )

    async def start(self) -> None:
        """Returns once turns can be written and every service has a replica that is ready."""
        settings, upstreams = self._settings, self._upstreams
        services: list[tuple[Service, grpc.aio.Channel, str]] = [
            ("encoder", upstreams.encoder, settings.encoder_address),
            ("llm", upstreams.llm, settings.llm_address),
            ("voice_decoder", upstreams.voice_decoder, settings.voice_decoder_address),
        ]
        # Until each is known to be there, it is not.
        self.readiness.set_not_ready("Redis has not answered yet", "redis")
        watches: list[Callable[[], Awaitable[None]]] = [
            partial(watch_store, self.readiness, upstreams.store)
        ]
        for service, channel, address in services:
            self.readiness.set_not_ready(f"no {service} at {address} has answered yet", service)
            why = partial(self._problem_of, address)
            watches.append(partial(watch_service, self.readiness, service, channel, why))
        self._watching = [asyncio.create_task(keep_running(watch)) for watch in watches]
        await self.readiness.wait_complete()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the conversation service."""
        servicer = ConversationServicer(self._settings, self._upstreams)
        add_ConversationServiceServicer_to_server(servicer, server)
        return [conversation_pb2.DESCRIPTOR.services_by_name["ConversationService"].full_name]

    async def stop(self) -> None:
        """Closes channels and store."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        upstreams = self._upstreams
        await asyncio.gather(
            upstreams.encoder.close(),
            upstreams.llm.close(),
            upstreams.voice_decoder.close(),
            upstreams.store.close(),
        )

    async def _problem_of(self, address: str) -> str:
        settings = self._settings
        return await client.problem_of(
            address,
            tls_ca=settings.upstream_ca,
            tls_cert=settings.upstream_cert,
            tls_key=settings.upstream_key,
        )

    def _channel(self, address: str, balancing: client.Balancing = "by_load") -> grpc.aio.Channel:
        settings = self._settings
        return client.channel(
            address,
            token=settings.upstream_token.get_secret_value() if settings.upstream_token else None,
            tls_ca=settings.upstream_ca,
            tls_cert=settings.upstream_cert,
            tls_key=settings.upstream_key,
            balancing=balancing,
        )
