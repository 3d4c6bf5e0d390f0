"""The orchestrator's process: its channels, its store, its readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from minmo.rpc import client
from minmo.settings import OrchestratorSettings
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2_grpc import add_ConversationServiceServicer_to_server
from services.orchestrator.conversation import Upstreams
from services.orchestrator.servicer import ConversationServicer
from services.orchestrator.store import SessionStore


class OrchestratorService:
    """The conversation service, for `minmo.rpc.server.serve`."""

    name = "orchestrator"

    def __init__(self, settings: OrchestratorSettings) -> None:
        self._settings = settings
        self._upstreams = Upstreams(
            encoder=self._channel(settings.encoder_address),
            llm=self._channel(settings.llm_address),
            voice_decoder=self._channel(settings.voice_decoder_address),
            store=SessionStore(
                settings.redis_url,
                ttl_seconds=settings.session_ttl_seconds,
                max_sessions_per_owner=settings.max_sessions_per_owner,
                deadline_seconds=settings.store_deadline_seconds,
            ),
        )

    async def start(self) -> None:
        """Returns once Redis and the services answer."""
        await self._upstreams.store.ping()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Adds the conversation service."""
        servicer = ConversationServicer(self._settings, self._upstreams)
        add_ConversationServiceServicer_to_server(servicer, server)
        return [conversation_pb2.DESCRIPTOR.services_by_name["ConversationService"].full_name]

    async def stop(self) -> None:
        """Closes channels and store."""
        upstreams = self._upstreams
        await asyncio.gather(
            upstreams.encoder.close(),
            upstreams.llm.close(),
            upstreams.voice_decoder.close(),
            upstreams.store.close(),
        )

    def _channel(self, address: str) -> grpc.aio.Channel:
        settings = self._settings
        return client.channel(
            address,
            token=settings.upstream_token.get_secret_value() if settings.upstream_token else None,
            tls_ca=settings.upstream_ca,
            tls_cert=settings.upstream_cert,
            tls_key=settings.upstream_key,
        )
