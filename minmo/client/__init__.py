"""Talking with a MinMo server: conversations that survive reconnects, one-shot speech, sessions."""

from minmo.client.conversation import Conversation
from minmo.client.errors import ClientError, NothingSaidError
from minmo.client.recording import Recording
from minmo.client.talk import TalkTurn, ask
from minmo.client.target import Target

__all__ = [
    "ClientError",
    "Conversation",
    "NothingSaidError",
    "Recording",
    "TalkTurn",
    "Target",
    "ask",
]
