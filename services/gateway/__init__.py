"""Browsers and OpenAI Realtime clients, in front of the orchestrator."""
