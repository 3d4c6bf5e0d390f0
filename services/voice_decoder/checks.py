"""What a request may hold: everything is checked here before it reaches a voice."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from minmo.audio.pcm import AudioError, PcmFormat
from minmo.engine.voice import (
    HiddenStates,
    InstructError,
    Query,
    TokenError,
    Utterance,
    Voice,
    VoiceBusyError,
)
from minmo.rpc import metrics
from minmo.rpc.errors import StatusError, invalid_argument, not_found, resource_exhausted
from minmo.v1 import common_pb2, voice_decoder_pb2

_MAX_INSTRUCT_CHARACTERS = 200
_MAX_SHOWN = 60
# What a configuration carries besides the query.
_CONFIG_BYTES = 64 * 1024
# About the length of an answer.
_RETRY_AFTER_SECONDS = 5.0


def audio_format(message: common_pb2.AudioFormat) -> PcmFormat:
    """The format of the audio to return.

    Raises:
        StatusError: INVALID_ARGUMENT, it is not supported, or has two channels.
    """
    try:
        checked = PcmFormat.from_proto(message)
    except AudioError as error:
        raise invalid_argument(
            f"config.format.{error.field}", f"is {error.value}", limit=error.allowed
        ) from None
    if checked.channels != 1:
        raise invalid_argument("config.format.channels", "a voice has one channel", limit="1")
    return checked


def voice_named(name: str, voices: Mapping[str, Voice]) -> Voice:
    """The voice of that name, or the first one if the name is empty.

    Raises:
        StatusError: NOT_FOUND, it does not exist; says which do.
    """
    if not name:
        return next(iter(voices.values()))
    if name not in voices:
        known = ", ".join(voices)
        raise not_found(
            f"config.voice: there is no voice {name[:_MAX_SHOWN]!r}; there are: {known}",
            reason="VOICE_NOT_FOUND",
            metadata={"voices": known},
        )
    return voices[name]


def max_query_positions(voice: Voice, max_message_bytes: int) -> int:
    """Positions of a query that the voice reads at most and that a message holds."""
    if not voice.reads_hidden_states:
        return 0
    room = max_message_bytes - _CONFIG_BYTES
    return min(voice.max_query_positions, max(0, room // (2 * 4 * voice.hidden_width)))


def opened(voice: Voice, config: voice_decoder_pb2.DecodeConfig) -> Utterance:
    """A new utterance of the voice, told how to speak.

    Raises:
        StatusError: INVALID_ARGUMENT, the instruction is too long or one that the voice cannot
            follow, or the query's hidden states are malformed. RESOURCE_EXHAUSTED, too many
            others speak.
    """
    if len(config.instruct) > _MAX_INSTRUCT_CHARACTERS:
        raise invalid_argument(
            "config.instruct",
            f"has {len(config.instruct)} characters",
            limit=f"{_MAX_INSTRUCT_CHARACTERS} characters",
        )
    query = _query(config, voice)
    try:
        return voice.open(config.instruct, query)
    except InstructError as error:
        raise invalid_argument(
            "config.instruct", str(error), reason="INSTRUCT_NOT_SUPPORTED"
        ) from None
    except TokenError as error:
        raise invalid_argument("config.query_hidden_states", str(error)) from None
    except VoiceBusyError as error:
        raise busy(error) from None


def _query(config: voice_decoder_pb2.DecodeConfig, voice: Voice) -> Query | None:
    """What the user has said; None if it was not sent, or is not read."""
    states = hidden_states(config.query_hidden_states, "config.query_hidden_states", voice)
    embeddings = hidden_states(config.query_embeddings, "config.query_embeddings", voice)
    rows = [0 if matrix is None else len(matrix) for matrix in (embeddings, states)]
    if rows[0] != rows[1]:
        raise invalid_argument(
            "config.query_embeddings.rows",
            f"is {rows[0]}, and config.query_hidden_states has {rows[1]}; send both, one row a "
            "position",
        )
    return None if states is None or embeddings is None else Query(embeddings, states)


def busy(error: VoiceBusyError) -> StatusError:
    """Counts a caller for whom there is no room; what it is told."""
    metrics.VOICE_REFUSED.inc()
    return resource_exhausted(
        str(error), reason="VOICE_BUSY", retry_after_seconds=_RETRY_AFTER_SECONDS
    )


def token_hidden_states(message: voice_decoder_pb2.TextTokens, voice: Voice) -> HiddenStates | None:
    """The hidden states that came with tokens, `[tokens, hidden_width]`; None if unread.

    Raises:
        StatusError: INVALID_ARGUMENT, they are malformed, or not one row a token.
    """
    field = "tokens.hidden_states"
    matrix = message.hidden_states
    given = matrix.rows > 0 or len(matrix.data) > 0
    if (given or voice.reads_hidden_states) and matrix.rows != len(message.tokens):
        raise invalid_argument(
            f"{field}.rows", f"is {matrix.rows}, for {len(message.tokens)} tokens; send one a token"
        )
    return hidden_states(matrix, field, voice)


def hidden_states(matrix: common_pb2.FloatMatrix, field: str, voice: Voice) -> HiddenStates | None:
    """A matrix of hidden states, `[rows, hidden_width]`; None if it is empty or unread.

    Raises:
        StatusError: INVALID_ARGUMENT, its size is not what it says; where the voice reads it also:
            its width is not the voice's, or it holds NaN or infinity.
    """
    expected = matrix.rows * matrix.columns * 4
    if len(matrix.data) != expected:
        raise invalid_argument(
            f"{field}.data",
            f"has {len(matrix.data)} bytes; {matrix.rows} rows of {matrix.columns} columns "
            f"of 4 bytes are {expected}",
        )
    if not voice.reads_hidden_states or not matrix.rows:
        return None
    if matrix.columns != voice.hidden_width:
        raise invalid_argument(
            f"{field}.columns",
            f"is {matrix.columns}; voice {voice.name!r} reads hidden states of another model",
            limit=f"{voice.hidden_width}",
        )
    values = np.frombuffer(matrix.data, "<f4").reshape(matrix.rows, matrix.columns)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise invalid_argument(
            f"{field}.data",
            f"row {int(bad.argmax())} holds NaN or infinity; every value must be a finite number",
        )
    return values
