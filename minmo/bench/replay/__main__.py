"""A service that replays: ``python -m minmo.bench.replay SERVICE --recording FILE FLAG...``.

SERVICE is encoder, llm or voice_decoder; the flags are those of the service.
"""

from __future__ import annotations

import sys

from minmo.bench.replay.encoder import ReplayedEncoder
from minmo.bench.replay.llm import ReplayedLlm
from minmo.bench.replay.settings import EncoderSettings, LlmSettings, VoiceDecoderSettings
from minmo.bench.replay.voice_decoder import ReplayedVoiceDecoder
from minmo.rpc.server import serve


def main() -> None:
    """Serves until SIGTERM."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    program = f"minmo-replayed-{name}"
    match name:
        case "encoder":
            serve(EncoderSettings.load(program, arguments), ReplayedEncoder)
        case "llm":
            serve(LlmSettings.load(program, arguments), ReplayedLlm)
        case "voice_decoder":
            serve(VoiceDecoderSettings.load(program, arguments), ReplayedVoiceDecoder)
        case _:
            raise SystemExit(f"give encoder, llm or voice_decoder, not {name!r}")


if __name__ == "__main__":
    main()
