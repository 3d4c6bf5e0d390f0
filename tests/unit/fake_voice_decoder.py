"""A voice decoder in this process that reads the LLM, and says a sample for each token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from minmo.v1 import voice_decoder_pb2
from minmo.v1.voice_decoder_pb2_grpc import (
    VoiceDecoderServiceServicer,
    add_VoiceDecoderServiceServicer_to_server,
)


class FakeVoiceDecoder(VoiceDecoderServiceServicer):
    """Keeps what it was sent; `break_after` tokens it is lost, once."""

    def __init__(self, *, reads_hidden_states: bool = True) -> None:
        self.reads_hidden_states = reads_hidden_states
        self.configs: list[voice_decoder_pb2.DecodeConfig] = []
        self.tokens: list[voice_decoder_pb2.TextTokens] = []
        self.break_after = 0

    @property
    def text(self) -> str:
        return "".join(token.text for some in self.tokens for token in some.tokens)

    async def ListVoices(
        self, request: voice_decoder_pb2.ListVoicesRequest, context: grpc.aio.ServicerContext
    ) -> voice_decoder_pb2.ListVoicesResponse:
        return voice_decoder_pb2.ListVoicesResponse(
            names=["default"],
            reads_hidden_states=self.reads_hidden_states,
            max_query_positions=100 if self.reads_hidden_states else 0,
        )

    async def Decode(
        self,
        request_iterator: AsyncIterator[voice_decoder_pb2.DecodeRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[voice_decoder_pb2.DecodeResponse]:
        count = 0
        async for request in request_iterator:
            if request.HasField("config"):
                self.configs.append(request.config)
                count = request.config.first_token
                yield voice_decoder_pb2.DecodeResponse(ready=voice_decoder_pb2.DecodeReady())
            for token in request.tokens.tokens:
                audio = voice_decoder_pb2.DecodedAudio(first_sample=count, data=bytes(2))
                count += 1
                # As of a voice that makes speech tokens.
                audio.token2wav_ms = 70 if count == 1 else 0
                audio.marks.add(token_count=count, sample=count)
                yield voice_decoder_pb2.DecodeResponse(audio=audio)
                if self.break_after == count:
                    self.break_after = 0
                    await context.abort(grpc.StatusCode.UNAVAILABLE, f"died of {token.text}")
            if request.HasField("tokens"):
                self.tokens.append(request.tokens)
            if request.HasField("end"):
                done = voice_decoder_pb2.DecodeDone(sample_count=count, token_count=count)
                yield voice_decoder_pb2.DecodeResponse(done=done)


@asynccontextmanager
async def served(decoder: FakeVoiceDecoder) -> AsyncIterator[grpc.aio.Channel]:
    """The service on a port of this machine, and a channel to it."""
    server = grpc.aio.server()
    add_VoiceDecoderServiceServicer_to_server(decoder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)
