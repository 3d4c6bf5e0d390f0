"""`python -m services.voice_decoder`: the voice decoder's process."""

from minmo.rpc.server import serve
from minmo.settings import VoiceDecoderSettings
from services.voice_decoder.service import VoiceDecoderService


def main() -> None:
    """Runs the voice decoder until it is told to stop."""
    serve(VoiceDecoderSettings.load("minmo-voice-decoder"), VoiceDecoderService)


if __name__ == "__main__":
    main()
