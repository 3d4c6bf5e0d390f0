"""Makes a recording: asks questions, and writes down what the services with models say."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from minmo.audio.pcm import PcmFormat
from minmo.bench import lines
from minmo.bench.arrivals import RATE_HZ
from minmo.bench.processes import running_service
from minmo.bench.replay.recording import (
    TAIL_FRAMES,
    Activity,
    Piece,
    Question,
    Recording,
    Token,
    Words,
    digest,
)
from minmo.bench.replay.tap import Message, Tap, Tape
from minmo.bench.user import Habits, SimulatedUser
from minmo.client import Target
from minmo.client.errors import ClientError
from minmo.rpc.metrics import minmo_version
from minmo.v1 import encoder_pb2, llm_pb2, voice_decoder_pb2

_FRAME_SAMPLES = 320


async def record(
    targets: Mapping[str, str],
    redis_url: str,
    questions: Sequence[lines.Question],
    *,
    answer_tokens: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Recording:
    """Asks each question once, in a session of its own, after one that does not count.

    An orchestrator of its own asks the services, with `Tap` between.

    Args:
        targets: gRPC targets of encoder, llm and voice_decoder.
        redis_url: for the sessions.
        questions: to ask.
        answer_tokens: most text tokens of an answer.
        progress: hears how it goes.

    Raises:
        ClientError: no question was answered.
    """
    tap = Tap()
    recorded: list[Question] = []
    failures: list[str] = []
    model, prefills, branches = b"", [], []
    with tempfile.TemporaryDirectory(prefix="minmo-record-") as folder:
        async with (
            tap.serving(targets) as address,
            running_service(
                "orchestrator",
                Path(folder),
                *("--encoder-address", address, "--llm-address", address),
                *("--voice-decoder-address", address),
                environment={"MINMO_REDIS_URL": redis_url},
            ) as (orchestrator, _),
        ):
            for number, question in enumerate([questions[0], *questions]):
                progress(f"recording question {number} of {len(questions)}")
                tap.tapes.clear()
                line = lines.GrpcLine(Target(orchestrator), answer_tokens, speed=float("inf"))
                user = SimulatedUser(number, line, [question], Habits(), random.Random(0))
                try:
                    turn = await user.ask(question)
                    if number and turn.outcome == "answered":
                        text = max(user.told.user.items())[1]
                        recorded.append(distilled(question, text, tap.tapes))
                except (lines.LineError, ClientError) as failure:
                    failures.append(f"{question.name}: {failure}")
                    continue
                for tape in tap.tapes:
                    if tape.method == "GetModel":
                        model = tape.messages[-1].data
                    elif tape.method == "Run":
                        sizes, seconds = _operations(tape)
                        prefills += sizes
                        branches += seconds
    if not recorded:
        why = f": {failures[0]}" if failures else ""
        raise ClientError(f"none of {len(questions)} questions was answered{why}")
    return Recording(
        version=minmo_version(),
        model=model,
        prefills=tuple(sorted(prefills)),
        branch_seconds=median(branches) if branches else 0.0,
        questions=tuple(recorded),
    )


def distilled(question: lines.Question, text: str, tapes: Sequence[Tape]) -> Question:
    """What the calls of one question say of it.

    Args:
        question: as it was asked.
        text: the user's turn.
        tapes: of its session.

    Raises:
        ClientError: something of it is missing.
    """
    by_method = {tape.method: tape for tape in tapes}
    missing = {"Encode", "Run", "Decode"} - by_method.keys()
    if missing:
        raise ClientError(f"there was no call of {', '.join(sorted(missing))}")
    pcm = PcmFormat(RATE_HZ)
    frames = tuple(digest(pcm.encode(frame.samples)) for frame in question.frames)
    heard, words = _heard(by_method["Encode"], frames)
    tokens, reason = _generated(by_method["Run"])
    pieces, done_seconds, compute_ms = _spoken(by_method["Decode"])
    if not (tokens and pieces):
        raise ClientError("it was not answered aloud")
    return Question(
        name=question.name,
        frames=frames,
        heard=heard,
        words=words,
        text=text,
        tokens=tokens,
        finish_reason=reason,
        pieces=pieces,
        done_seconds=done_seconds,
        compute_ms=compute_ms,
    )


def _heard(tape: Tape, frames: tuple[str, ...]) -> tuple[tuple[Activity, ...], tuple[Words, ...]]:
    sent: list[tuple[float, str]] = []
    asked: dict[int, tuple[float, encoder_pb2.Recognize]] = {}
    activities: list[tuple[float, encoder_pb2.VoiceActivity]] = []
    transcripts: list[tuple[float, encoder_pb2.SegmentTranscript]] = []
    for message in tape.messages:
        if message.direction == "in":
            request = encoder_pb2.EncodeRequest.FromString(message.data)
            if request.HasField("audio"):
                sent.append((message.at, digest(request.audio.data)))
            elif request.HasField("recognize"):
                asked[request.recognize.segment_id] = (message.at, request.recognize)
        else:
            response = encoder_pb2.EncodeResponse.FromString(message.data)
            if response.HasField("activity"):
                activities.append((message.at, response.activity))
            elif response.HasField("transcript"):
                transcripts.append((message.at, response.transcript))
    names = [name for _, name in sent]
    first = _place_of(frames, names)
    start = first * _FRAME_SAMPLES
    heard = [
        _activity(activity, at - sent[place][0], start)
        for place, (at, activity) in enumerate(activities)
        if first <= place < first + len(frames) + TAIL_FRAMES
    ]
    words = [
        Words(
            end=transcript.end_sample - start,
            text=transcript.text.strip(),
            seconds=at - asked[transcript.segment_id][0],
            compute_ms=transcript.compute_ms,
        )
        for at, transcript in transcripts
    ]
    return tuple(heard), tuple(words)


def _place_of(frames: Sequence[str], names: Sequence[str]) -> int:
    """Where the question begins among the frames that were sent. Raises ClientError."""
    for place in range(len(names) - len(frames) + 1):
        if tuple(names[place : place + len(frames)]) == tuple(frames):
            return place
    raise ClientError("the encoder was not sent the question as it is")


def _activity(activity: encoder_pb2.VoiceActivity, seconds: float, start: int) -> Activity:
    spoken = activity.speech_end_sample > start
    return Activity(
        seconds=seconds,
        probability=activity.probability,
        speaking=activity.speaking,
        speech_start=activity.speech_start_sample - start if spoken else None,
        speech_end=activity.speech_end_sample - start if spoken else None,
    )


def _operations(tape: Tape) -> tuple[list[tuple[int, float]], list[float]]:
    """Sizes and times of what was read, and times of what was done to branches."""
    asked: dict[str, tuple[float, llm_pb2.RunRequest]] = {}
    prefills, branches = [], []
    for message in tape.messages:
        if message.direction == "in":
            request = llm_pb2.RunRequest.FromString(message.data)
            asked[request.operation_id] = (message.at, request)
            continue
        response = llm_pb2.RunResponse.FromString(message.data)
        began, request = asked[response.operation_id]
        if response.HasField("prefill_done"):
            prefills.append((request.prefill.ByteSize(), message.at - began))
        elif response.HasField("branch_done"):
            branches.append(message.at - began)
    return prefills, branches


def _generated(tape: Tape) -> tuple[tuple[Token, ...], int]:
    """The tokens of the generation, and why it ended."""
    began: dict[str, float] = {}
    tokens: list[Token] = []
    reason = 0
    for message in tape.messages:
        if message.direction == "in":
            request = llm_pb2.RunRequest.FromString(message.data)
            if request.HasField("generate"):
                began[request.operation_id] = message.at
            continue
        response = llm_pb2.RunResponse.FromString(message.data)
        if response.HasField("token"):
            seconds = message.at - began[response.operation_id]
            tokens.append(Token(seconds=seconds, text=response.token.text))
        elif response.HasField("generate_done"):
            reason = response.generate_done.reason
    return tuple(tokens), reason


def _spoken(tape: Tape) -> tuple[tuple[Piece, ...], float, float]:
    """The pieces of the utterance; seconds from the last of them to its end, and of computing."""
    count, ended, latest = 0, False, tape.messages[0].at
    pieces: list[Piece] = []
    done_seconds = compute_ms = 0.0
    last: Message | None = None
    for message in tape.messages:
        if message.direction == "in":
            request = voice_decoder_pb2.DecodeRequest.FromString(message.data)
            if request.HasField("config") and request.config.format.sample_rate_hz != RATE_HZ:
                raise ClientError(f"the voice was asked for other audio than of {RATE_HZ} Hz")
            count += len(request.tokens.tokens)
            ended = ended or request.HasField("end")
            latest = message.at
            continue
        response = voice_decoder_pb2.DecodeResponse.FromString(message.data)
        if response.HasField("audio"):
            audio = response.audio
            pieces.append(
                Piece(
                    tokens=count,
                    ended=ended,
                    seconds=message.at - latest,
                    first_sample=audio.first_sample,
                    data=audio.data,
                    marks=tuple((mark.token_count, mark.sample) for mark in audio.marks),
                )
            )
            last = message
        elif response.HasField("done"):
            compute_ms = response.done.compute_ms
            done_seconds = message.at - max(latest, last.at if last is not None else latest)
    return tuple(pieces), done_seconds, compute_ms
