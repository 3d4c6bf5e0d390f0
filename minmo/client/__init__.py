"""Talking with a MinMo server: conversations that survive reconnects, one-shot speech, sessions.

What happens in a conversation is in `minmo.client.events`; `minmo.client.sync` has all of it
without ``async``.
"""

from minmo.client.conversation import Conversation
from minmo.client.errors import ClientError, NotConnectedError, NothingSaidError
from minmo.client.recording import Recording
from minmo.client.sessions import delete_session, get_session, list_sessions
from minmo.client.speech import say, transcribe
from minmo.client.talk import TalkTurn, ask
from minmo.client.target import Target
from minmo.rpc.errors import StatusError
from minmo.v1.conversation_pb2 import SessionSettings, Tool, ToolChoice, TurnDetection

__all__ = [
    "ClientError",
    "Conversation",
    "NotConnectedError",
    "NothingSaidError",
    "Recording",
    "SessionSettings",
    "StatusError",
    "TalkTurn",
    "Target",
    "Tool",
    "ToolChoice",
    "TurnDetection",
    "ask",
    "delete_session",
    "get_session",
    "list_sessions",
    "say",
    "transcribe",
]
