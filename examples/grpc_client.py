"""Asks a recorded question over gRPC and writes the spoken answer.

python examples/grpc_client.py 127.0.0.1:7100 examples/question.wav answer.wav
"""

import sys
import wave
from collections.abc import Iterator

import grpc

from minmo.v1.common_pb2 import AUDIO_ENCODING_PCM_S16LE, AudioChunk, AudioFormat
from minmo.v1.conversation_pb2 import ConverseConfig, ConverseRequest
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub


def pcm(rate: int) -> AudioFormat:
    """16-bit mono."""
    return AudioFormat(encoding=AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=rate, channels=1)


def requests(path: str) -> Iterator[ConverseRequest]:
    """The configuration, then the recording in frames of 20 ms."""
    with wave.open(path) as question:
        rate = question.getframerate()
        config = ConverseConfig(input_format=pcm(rate), output_format=pcm(24_000))
        yield ConverseRequest(config=config)
        for sequence in range(1 + question.getnframes() // (rate // 50)):
            frame = question.readframes(rate // 50)
            yield ConverseRequest(audio=AudioChunk(sequence=sequence, data=frame))


address, question, answer = sys.argv[1:]
with grpc.insecure_channel(address) as channel, wave.open(answer, "wb") as file:
    file.setparams((1, 2, 24_000, 0, "NONE", "not compressed"))
    for response in ConversationServiceStub(channel).Converse(requests(question)):
        file.writeframes(response.audio.data)
        if response.user_text.final:
            print("you:  ", response.user_text.text)
        if response.HasField("report"):
            print("minmo:", response.report.generated_text)
