"""Asks a recorded question over gRPC and writes the spoken answer.

python examples/grpc_client.py 127.0.0.1:7100 examples/question.wav answer.wav
"""

import sys
import wave
from collections.abc import Iterator

import grpc

from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub

PCM = common_pb2.AudioFormat(encoding="AUDIO_ENCODING_PCM_S16LE", sample_rate_hz=16_000, channels=1)


def requests(path: str) -> Iterator[conversation_pb2.ConverseRequest]:
    """The configuration, then the recording (16 kHz, 16 bit, mono) in frames of 20 ms."""
    config = conversation_pb2.ConverseConfig(input_format=PCM, output_format=PCM)
    yield conversation_pb2.ConverseRequest(config=config)
    with wave.open(path) as question:
        for sequence in range(1 + question.getnframes() // 320):
            chunk = common_pb2.AudioChunk(sequence=sequence, data=question.readframes(320))
            yield conversation_pb2.ConverseRequest(audio=chunk)


address, question, answer = sys.argv[1:]
with grpc.insecure_channel(address) as channel, wave.open(answer, "wb") as file:
    file.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
    for response in ConversationServiceStub(channel).Converse(requests(question)):
        file.writeframes(response.audio.data)
        if response.user_text.final:
            print("you:  ", response.user_text.text)
        if response.HasField("report"):
            print("minmo:", response.report.generated_text)
