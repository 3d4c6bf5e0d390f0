"""Operations and events of the engine, as the messages that travel through Triton.

A request to the model has one tensor, `operation`: a serialised `RunRequest` whose text is
tokenised already. A response has one tensor, `event`: a serialised `RunResponse` whose tokens have
no text yet. Matrices stay inside the messages: for a token's hidden state a second tensor costs
more than the copy. A request without an operation asks for the model: its `event` is a serialised
`GetModelResponse`.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from minmo.engine.operations import (
    Action,
    BranchChanged,
    Cancel,
    Close,
    Event,
    Failed,
    FinishReason,
    Fork,
    Generate,
    Generated,
    Matrix,
    Operation,
    Prefill,
    Prefilled,
    Probe,
    Probed,
    Reason,
    Sampling,
    TokenDrawn,
    Tokens,
    Truncate,
)
from minmo.v1 import common_pb2, llm_pb2

MODEL: Final = "llm"
INPUT: Final = "operation"
OUTPUT: Final = "event"

# Codes of google.rpc.Code.
_CODES: Final = {
    Reason.STALE_EPOCH: 10,  # ABORTED
    Reason.CACHE_LOST: 5,  # NOT_FOUND
    Reason.WRONG_POSITION: 9,  # FAILED_PRECONDITION
    Reason.CONTEXT_FULL: 8,  # RESOURCE_EXHAUSTED
    Reason.NO_SLOT: 8,
    Reason.BUSY: 8,
    Reason.BAD_CONTENT: 3,  # INVALID_ARGUMENT
    Reason.NO_PREDICTOR: 9,
    Reason.CANCELLED: 1,  # CANCELLED
    Reason.INTERNAL: 13,  # INTERNAL
}
_FINISH_REASONS: Final = {
    FinishReason.STOP: llm_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: llm_pb2.FINISH_REASON_LENGTH,
    FinishReason.CONTEXT: llm_pb2.FINISH_REASON_CONTEXT,
    FinishReason.CANCELLED: llm_pb2.FINISH_REASON_CANCELLED,
}


def operation_of(request: llm_pb2.RunRequest) -> Operation:
    """The operation that a message asks for.

    Raises:
        ValueError: a part or a value cannot be read; says which.
    """
    return Operation(
        operation_id=request.operation_id,
        session_id=request.session_id,
        branch=request.branch,
        epoch=request.epoch,
        action=_action_of(request),
    )


def _action_of(request: llm_pb2.RunRequest) -> Action:
    match request.WhichOneof("operation"):
        case "prefill":
            prefill = request.prefill
            parts = tuple(_part_of(index, part) for index, part in enumerate(prefill.parts))
            return Prefill(
                prefill.position,
                parts,
                prefill.return_hidden_states,
                prefill.return_embeddings,
                prefill.return_last,
            )
        case "generate":
            return _generate_of(request.generate)
        case "probe":
            embedding = matrix_of("probe.embedding", request.probe.embedding)
            return Probe(request.probe.position, embedding)
    return _branch_action_of(request)


def _branch_action_of(request: llm_pb2.RunRequest) -> Action:
    """What computes nothing."""
    match request.WhichOneof("operation"):
        case "fork":
            return Fork(request.fork.source, request.fork.position)
        case "truncate":
            return Truncate(request.truncate.position)
        case "cancel":
            return Cancel(request.cancel.operation_id)
        case "close":
            return Close()
    raise ValueError(
        "no operation is set; set prefill, generate, probe, fork, truncate, cancel or close"
    )


def _generate_of(generate: llm_pb2.Generate) -> Generate:
    top_p, penalty = generate.top_p or 1.0, generate.repetition_penalty or 1.0
    if not (math.isfinite(generate.temperature) and generate.temperature >= 0):
        raise ValueError(f"temperature is {generate.temperature}; it must be 0 or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if not (math.isfinite(penalty) and penalty > 0):
        raise ValueError(f"repetition_penalty is {penalty}; it must be above 0")
    sampling = Sampling(generate.temperature, top_p, generate.seed, penalty)
    return Generate(generate.position, generate.max_tokens, sampling, generate.return_hidden_states)


def _part_of(index: int, part: llm_pb2.PromptPart) -> Tokens | Matrix:
    kind = part.WhichOneof("part")
    if kind == "tokens":
        return np.array(part.tokens.ids, dtype=np.int64)
    if kind == "embeddings":
        return matrix_of(f"parts[{index}].embeddings", part.embeddings)
    raise ValueError(f"parts[{index}] is {kind or 'empty'}; the model reads tokens and embeddings")


def matrix_of(field: str, matrix: common_pb2.FloatMatrix) -> Matrix:
    """The numbers `[rows, columns]` of a message.

    Raises:
        ValueError: their number is not rows times columns.
    """
    expected = matrix.rows * matrix.columns * 4
    if len(matrix.data) != expected:
        raise ValueError(
            f"{field} has {len(matrix.data)} bytes; {matrix.rows} rows of {matrix.columns} float32 "
            f"are {expected}"
        )
    return np.frombuffer(matrix.data, dtype="<f4").reshape(matrix.rows, matrix.columns)


def response_of(request: llm_pb2.RunRequest, event: Event, replica: str) -> llm_pb2.RunResponse:
    """The message that tells of an event of the request's operation."""
    response = llm_pb2.RunResponse(
        operation_id=request.operation_id,
        session_id=request.session_id,
        branch=request.branch,
        epoch=request.epoch,
        replica_id=replica,
    )
    match event:
        case TokenDrawn(index, token, hidden):
            response.token.index = index
            response.token.id = token
            if hidden is not None:
                response.token.hidden_state = hidden.astype("<f4", copy=False).tobytes()
        case Prefilled():
            _fill_prefill_done(response.prefill_done, event)
        case Generated(reason, count, position, elapsed_ms):
            done = response.generate_done
            done.reason = _FINISH_REASONS[reason]
            done.token_count, done.position, done.elapsed_ms = count, position, elapsed_ms
        case Probed(position, turn, elapsed_ms):
            response.probe_done.position = position
            response.probe_done.turn.assistant_turn, response.probe_done.turn.user_turn = turn
            response.probe_done.elapsed_ms = elapsed_ms
        case BranchChanged(position):
            response.branch_done.position = position
        case Failed(why, message, position):
            response.error.code = _CODES[why]
            response.error.reason = why.name
            response.error.message, response.error.position = message, position
    return response


def _fill_prefill_done(done: llm_pb2.PrefillDone, event: Prefilled) -> None:
    done.position = event.position
    done.part_positions.extend(event.part_positions)
    done.elapsed_ms = event.elapsed_ms
    for field, matrix in (
        (done.hidden_states, event.hidden_states),
        (done.embeddings, event.embeddings),
    ):
        if matrix is not None:
            field.rows, field.columns = matrix.shape
            field.data = matrix.astype("<f4", copy=False).tobytes()
    if event.turn is not None:
        done.turn.assistant_turn, done.turn.user_turn = event.turn
