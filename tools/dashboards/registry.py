"""All dashboards."""

from __future__ import annotations

from tools.dashboards import (
    conversation,
    encoder,
    gateway,
    llm,
    orchestrator,
    overview,
    redis,
    voice_decoder,
)

MODULES = (overview, conversation, gateway, orchestrator, encoder, llm, voice_decoder, redis)
DASHBOARDS = tuple(module.DASHBOARD for module in MODULES)
